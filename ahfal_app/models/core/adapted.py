"""Other people's networks as classifiers: with a head, checked, and without chance of their own.

Shapes: B samples of a batch, c channels, H height, W width, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ahfal_app.errors import ConfigError
from ahfal_app.models.core.base import Classifier
from ahfal_app.models.core.batch_norm import BatchNorm2d

_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


#: What timm calls the chance of its own stochastic depth.
_DROP_PROB = "drop_prob"


class Adapted(Classifier):
    """A network whose last linear layer has become the head.

    It says nothing of its maps, so that its feature map is its features.

    Parameters
    ----------
    network : nn.Module
        Gives features (B, D).
    head : nn.Linear
        Gives logits (B, C) of them.
    """

    def __init__(self, network: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def features(self, images_BcHW: Tensor) -> Tensor:
        """Return the input of the last linear layer, shape (B, D)."""
        features_BD: Tensor = self.network(images_BcHW)
        return features_BD


def as_classifier(
    network: nn.Module, name: str, image_shape: tuple[int, int, int], num_classes: int
) -> Classifier:
    """Return a network as a classifier that can be trained here.

    Dropout and stochastic depth are switched off: they draw from torch's global generator,
    which all clients of a process share, so that results would depend on how threads take
    turns. What draws from it otherwise in training (`dropout` as a function, `nn.RReLU`, noise)
    cannot be switched off from here and is refused. A `Classifier` is otherwise left as it is.
    Of any other module the last linear layer becomes the head, and batch norm the one of this
    package, which can also be trained on a single value a channel, as the last batch of an
    epoch may have.

    Parameters
    ----------
    network : nn.Module
        Gives logits (B, C) by a last `nn.Linear`; changed in place.
    name : str
        What the setting `model` calls it.
    image_shape : tuple[int, int, int]
        Height, width and channels of an image.
    num_classes : int
        Number of classes C.

    Raises
    ------
    ConfigError
        The network cannot take such images, draws random numbers in training, or its output is
        not what it has to be.
    """
    switch_off_chance(network)
    if not isinstance(network, Classifier):
        use_own_batch_norm(network)
    expected_BC = _try(network, name, image_shape)
    model = network if isinstance(network, Classifier) else _with_head(network, name)
    _check(model, expected_BC, name, image_shape, num_classes)
    return model.train()


def switch_off_chance(network: nn.Module) -> None:
    """Switch off dropout and stochastic depth, which draw from torch's global generator."""
    # Not above: torchvision brings torch's compiler, which takes longer to load than all else.
    from torchvision.ops import StochasticDepth

    for module in network.modules():
        if isinstance(module, (*_DROPOUT, StochasticDepth)):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif isinstance(getattr(module, _DROP_PROB, None), float):
            # timm's own stochastic depth, and dropout of blocks.
            setattr(module, _DROP_PROB, 0.0)


def use_own_batch_norm(network: nn.Module) -> None:
    """Have batch norms take a single value a channel, too, by their running statistics.

    Torch's own are replaced by this package's; others, such as those of timm with an activation
    inside, are left what they are.
    """
    replaced: dict[nn.Module, BatchNorm2d] = {}
    # Under each of its names: a module that is used twice is to stay one module.
    for path, module in list(network.named_modules(remove_duplicate=False)):
        plain = type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats
        if plain and module.momentum is not None:
            if module not in replaced:
                own = BatchNorm2d(module.num_features, module.eps, module.momentum)
                own.load_state_dict(module.state_dict())
                replaced[module] = own
            network.set_submodule(path, replaced[module])
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, BatchNorm2d):
            rest = _Rest()
            module.register_forward_pre_hook(rest.before)
            module.register_forward_hook(rest.after)


class _Rest:
    """Has a batch norm rest on its running statistics while it is given a single value."""

    def __init__(self) -> None:
        self._is_resting = False

    def before(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Switch to the running statistics, where there are some."""
        values = inputs[0]
        is_single = values.numel() == values.shape[1]
        if norm.training and is_single and norm.running_mean is not None:
            norm.training, self._is_resting = False, True

    def after(self, norm: nn.Module, _inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        """Switch back."""
        if self._is_resting:
            norm.training, self._is_resting = True, False
            # A second pass must not move what the gradient of this one needs.
            for name in ("running_mean", "running_var"):
                setattr(norm, name, getattr(norm, name).clone())


def _try(network: nn.Module, name: str, image_shape: tuple[int, int, int]) -> Tensor:
    """Return the logits of `_images`, having trained on one image without leaving a trace."""
    # Evaluation comes first, since lazy layers get their sizes by it.
    logits_BC = _output(network.eval(), _images(2, image_shape), f"model={name!r}")
    try_training(network, f"model={name!r}", image_shape)
    return logits_BC


def try_training(network: nn.Module, said: str, image_shape: tuple[int, int, int]) -> None:
    """Have a network take an image in training mode, without leaving a trace, or refuse it.

    Parameters
    ----------
    network : nn.Module
        Left in training mode.
    said : str
        The setting that names it, as in `model='mine'`.
    image_shape : tuple[int, int, int]
        Height, width and channels of an image.

    Raises
    ------
    ConfigError
        It cannot be trained on a single image, as the last batch of an epoch may have, or it
        draws random numbers.
    """
    buffers = {path: buffer.clone() for path, buffer in network.named_buffers()}
    state = torch.random.get_rng_state()
    _output(network.train(), _images(1, image_shape), said)
    if not torch.equal(state, torch.random.get_rng_state()):
        raise ConfigError(
            [
                f"{said}: allowed is a network that draws no random numbers in training, "
                "since all clients of a process share torch's generator; dropout may be an "
                "nn.Dropout, which is switched off"
            ]
        )
    for path, buffer in network.named_buffers():
        buffer.copy_(buffers[path])


def _with_head(network: nn.Module, name: str) -> Classifier:
    modules = network.named_modules()
    linear = {path: module for path, module in modules if isinstance(module, nn.Linear)}
    if not any(linear):
        raise ConfigError(
            [f"model={name!r}: allowed is a network that ends in an nn.Linear; it has none"]
        )
    path, head = list(linear.items())[-1]
    network.set_submodule(path, nn.Identity())
    return Adapted(network, head)


def _check(
    model: Classifier,
    expected_BC: Tensor,
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> None:
    """Refuse logits, features or maps that do not belong together."""
    images_BcHW = _images(2, image_shape)
    model.eval()
    with torch.no_grad():
        features_BD = model.features(images_BcHW)
        of_map_BD = model.features_of_map(model.feature_map(images_BcHW))
    sizes = {
        "logits": (expected_BC, num_classes),
        "features": (features_BD, model.head.in_features),
        "features of its map": (of_map_BD, model.head.in_features),
    }
    problems = [
        f"model={name!r}: {what} of 2 images have the shape {tuple(values.shape)}; "
        f"allowed is (2, {size})"
        for what, (values, size) in sizes.items()
        if tuple(values.shape) != (2, size)
    ]
    if not problems and not torch.allclose(of_map_BD, features_BD):
        problems = [f"model={name!r}: allowed are features that are those of its map"]
    if not problems and not torch.allclose(model.head(features_BD), expected_BC):
        problems = [
            f"model={name!r}: allowed is a network that ends in an nn.Linear; after its last "
            "one it does something else"
        ]
    if problems:
        raise ConfigError(problems)


def _output(network: nn.Module, images_BcHW: Tensor, said: str) -> Tensor:
    """Return what a network gives, shape (B, C), or refuse it."""
    size, channels, height, width = images_BcHW.shape
    mode = "training" if network.training else "evaluation"
    tried = f"{size} image{'s' if size > 1 else ''} of {height}x{width}x{channels} in {mode} mode"
    try:
        with torch.no_grad():
            output_BC = network(images_BcHW)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            [f"{said}: allowed is a network that can take {tried}; it says: {error}"]
        ) from error
    if not isinstance(output_BC, Tensor):
        raise ConfigError(
            [
                f"{said}: allowed is a network that gives one tensor; for {tried} it "
                f"gives {type(output_BC).__name__}"
            ]
        )
    return output_BC


def _images(size: int, image_shape: tuple[int, int, int]) -> Tensor:
    """Return images that are alike in nothing, without drawing them. Shape (B, c, H, W)."""
    height, width, channels = image_shape
    count = size * channels * height * width
    return torch.linspace(-1.0, 1.0, count).sin().reshape(size, channels, height, width)
