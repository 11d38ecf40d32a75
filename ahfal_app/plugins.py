"""Finds components by name: the modules of a package of ours, and other packages' entry points.

One family for each kind of thing that one adds. A module of a family's package is a component by
being there, named after its file with hyphens; another package registers one in the family's
entry-point group, as `name = "module"` or `name = "module:object"`. Listing names imports none.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from ahfal_app.code_version import code_hash
from ahfal_app.errors import DuplicateComponent, UnknownComponent
from ahfal_app.parameters import Parameters, Scalar, parameter_problems, suggestion


@cache
def entry_points(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group.

    Read once: that opens a file of every installed package, and a sweep asks many times.
    """
    return tuple(metadata.entry_points(group=group))


@dataclass(frozen=True)
class Family:
    """One kind of component.

    Attributes
    ----------
    kind : str
        What one is called in messages.
    setting : str
        The setting that names one; its parameters are `<setting>.<parameter>`.
    package : str
        Dotted name of the package whose modules are components.
    group : str
        Entry-point group of other packages' components.
    base : str
        Where components are classes: what they are subclasses of, as `module:Class`.
    part : str
        Where they are functions or objects: what that is called in a module.
    reserved : tuple[str, ...]
        Names with a meaning of their own, and prefixes of such names, which end with `/`.
    alone : str
        Where the setting may name several, with commas between: the one that stands alone.
    """

    kind: str
    setting: str
    package: str
    group: str
    base: str = ""
    part: str = ""
    reserved: tuple[str, ...] = ()
    alone: str = ""

    def chosen(self, value: str) -> tuple[str, ...]:
        """Return the names in the setting's value: one, but where it may be several."""
        return tuple(name.strip() for name in value.split(",")) if self.alone else (value,)

    def choice_problems(self, value: str) -> list[str]:
        """Return a line for each name that cannot be chosen, or stands where it must not."""
        names = self.chosen(value)
        problems = [problem for name in names if (problem := self.problem(name)) is not None]
        if len(names) > 1 and self.alone in names:
            problems.append(f"{self.setting}={value!r}: allowed is {self.alone!r} alone, or others")
        if len(set(names)) < len(names):
            problems.append(f"{self.setting}={value!r}: allowed is each name once")
        return problems

    def parameter_problems(self, value: str, parameters: Mapping[str, Scalar]) -> list[str]:
        """Return a line for each parameter that none of the chosen components can take."""
        names = self.chosen(value)
        models = {name: self.parameters(name) for name in names}
        if len(names) == 1:
            return parameter_problems(self.setting, value, models[value], parameters)
        known = {each.alias for model in models.values() for each in model.model_fields.values()}
        unknown = {key: each for key, each in parameters.items() if key not in known}
        problems = {
            problem: None
            for name, model in models.items()
            for problem in parameter_problems(
                self.setting, name, model, self.parameters_of(name, parameters)
            )
        }
        takes = ", ".join(sorted(filter(None, known))) or "none"
        problems |= {
            f"{self.setting}.{key}: {value!r} has no such parameter"
            f"{suggestion(key, filter(None, known))}; it takes: {takes}": None
            for key in unknown
        }
        return list(problems)

    def parameters_of(self, name: str, parameters: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return those parameters that a component has, of all that chosen ones are given."""
        own = {field.alias for field in self.parameters(name).model_fields.values()}
        return {key: value for key, value in parameters.items() if key in own}

    def names(self) -> tuple[str, ...]:
        """Return the names of all components in order, without importing them.

        Raises
        ------
        DuplicateComponent
            Two claim the same name, or one a reserved name.
        """
        return tuple(sorted(self._origins()))

    def own_names(self) -> tuple[str, ...]:
        """Return the names of our own components in order."""
        return tuple(sorted(_modules(self.package)))

    def problem(self, name: object, also: Iterable[str] = ()) -> str | None:
        """Return the line that refuses a name that no component has, or None.

        Parameters
        ----------
        name : object
            The setting's value; what is not text is refused elsewhere.
        also : Iterable[str]
            Further names that are allowed.
        """
        known = [*also, *self.names()]
        if not isinstance(name, str) or name in known:
            return None
        near = suggestion(name, known)
        return f"{self.setting}={name!r}: allowed is {' | '.join(known)}{near}"

    def load(self, name: str) -> object:
        """Import a component: a module of ours, or what an entry point names.

        Raises
        ------
        UnknownComponent
            No component has this name, or the other package's cannot be imported.
        DuplicateComponent
            Two claim the same name.
        """
        origin = self._origin(name)
        if isinstance(origin, str):
            return importlib.import_module(origin)
        try:
            return origin.load()
        except (ImportError, AttributeError) as error:
            raise UnknownComponent(
                f"{self.setting}={name!r}: {origin.value} cannot be loaded: {error}"
            ) from error

    def component(self, name: str) -> Any:
        """Import a component: a class with this `name`, or the part that modules must have.

        Raises
        ------
        UnknownComponent, DuplicateComponent
            As of `load`, or what is registered holds no such thing.
        """
        loaded = self.load(name)
        if self.base:
            return self._class_in(loaded, name)
        if not isinstance(loaded, ModuleType):
            return loaded
        if not hasattr(loaded, self.part):
            raise UnknownComponent(
                f"{self.setting}={name!r}: {self.where(name)} has no `{self.part}`"
            )
        return getattr(loaded, self.part)

    def trait(self, name: str, trait: str, default: Any) -> Any:
        """Return what a component says of itself under a name, or the default.

        A class has it as an attribute; of a function it may be one, or stand in its module.
        """
        try:
            component = self.component(name)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("ahfal_app"):
                raise
            # Its library is an extra that is not installed; who opens the component is told so.
            return default
        if not self.base and not hasattr(component, trait):
            module = sys.modules.get(getattr(component, "__module__", ""))
            loaded = self.load(name)
            return getattr(loaded if isinstance(loaded, ModuleType) else module, trait, default)
        return getattr(component, trait, default)

    def parameters(self, name: str) -> type[Parameters]:
        """Return the model of a component's parameters: its `Parameters`, none by default.

        Raises
        ------
        UnknownComponent, DuplicateComponent
            As of `component`, or its `Parameters` is something else.
        """
        model = self.trait(name, "Parameters", Parameters)
        if not (isinstance(model, type) and issubclass(model, Parameters)):
            raise UnknownComponent(
                f"{self.setting}={name!r}: `Parameters` of {self.where(name)} is no subclass of "
                "ahfal_app.parameters.Parameters"
            )
        return model

    def _class_in(self, loaded: object, name: str) -> type:
        module, _, attribute = self.base.partition(":")
        base: type = getattr(importlib.import_module(module), attribute)
        candidates = vars(loaded).values() if isinstance(loaded, ModuleType) else [loaded]
        for candidate in candidates:
            if not (isinstance(candidate, type) and issubclass(candidate, base)):
                continue
            # The abstract bases that a module imports have no name.
            if getattr(candidate, "name", None) == name:
                return candidate
        raise UnknownComponent(
            f"{self.setting}={name!r}: {self.where(name)} holds no {attribute} whose `name` "
            f"is {name!r}"
        )

    def where(self, name: str) -> str:
        """Return what defines a component, for messages."""
        return _where(self._origin(name))

    def provenance(self, name: str) -> Provenance | None:
        """Return where another package's component comes from; None of ours, or of nobody's."""
        origin = self._origins().get(name)
        if origin is None or isinstance(origin, str):
            return None
        package, version = None, None
        if origin.dist is not None:
            package, version = origin.dist.name, origin.dist.version
        return Provenance(
            self.setting, name, origin.value, package, version, _source_hash(origin.module)
        )

    def _origin(self, name: str) -> str | EntryPoint:
        origins = self._origins()
        if name not in origins:
            known = ", ".join(sorted(origins))
            near = suggestion(name, origins)
            raise UnknownComponent(f"no {self.kind} is named {name!r}{near}; there are: {known}")
        return origins[name]

    def _origins(self) -> dict[str, str | EntryPoint]:
        """Return where each component comes from: a module's name or an entry point."""
        origins: dict[str, str | EntryPoint] = {
            kebab: f"{self.package}.{module}" for kebab, module in _modules(self.package).items()
        }
        for entry_point in entry_points(group=self.group):
            name = entry_point.name
            if name in self.reserved or name.partition("/")[0] + "/" in self.reserved:
                raise DuplicateComponent(
                    f"{self.kind} {name!r} has a meaning already, and {entry_point.value} claims it"
                )
            if name in origins:
                raise DuplicateComponent(
                    f"{self.kind} {name!r} is defined twice: {_where(origins[name])} and "
                    f"{entry_point.value}"
                )
            origins[name] = entry_point
        return origins


@dataclass(frozen=True)
class Provenance:
    """Where a component of another package comes from.

    Attributes
    ----------
    setting, name : str
        The setting that chooses it, and its name.
    value : str
        What the entry point names: `module` or `module:object`.
    package, version : str | None
        The distribution that registers it; None where that is not known.
    source : str
        SHA-256 of the Python files of the package that its module belongs to.
    """

    setting: str
    name: str
    value: str
    package: str | None
    version: str | None
    source: str


STRATEGIES = Family(
    "query strategy",
    "strategy",
    "ahfal_app.query",
    "ahfal_app.strategies",
    base="ahfal_app.query.core.base:QueryStrategy",
)
ORACLES = Family("oracle", "oracle", "ahfal_app.oracle", "ahfal_app.oracles", part="make")
DATASETS = Family(
    "data set", "dataset", "ahfal_app.data.known", "ahfal_app.datasets", part="DATASET"
)
MODELS = Family(
    "model",
    "model",
    "ahfal_app.models",
    "ahfal_app.models",
    part="build",
    reserved=("auto", "torchvision/"),
)
BACKBONES = Family(
    "backbone",
    "backbone",
    "ahfal_app.backbones",
    "ahfal_app.backbones",
    part="build",
    reserved=("none", "timm/", "torchvision/"),
)
AGGREGATIONS = Family(
    "aggregation",
    "aggregation",
    "ahfal_app.server.aggregation",
    "ahfal_app.aggregations",
    base="ahfal_app.server.aggregation.core.base:AggregationMethod",
)
LOCAL_UPDATES = Family(
    "local update",
    "local-update",
    "ahfal_app.training.local_updates",
    "ahfal_app.local_updates",
    base="ahfal_app.training.local_updates.core.base:LocalUpdateMethod",
)
TRACKERS = Family(
    "tracker",
    "tracker",
    "ahfal_app.trackers",
    "ahfal_app.trackers",
    part="make",
    reserved=("none",),
)
STOPPING = Family(
    "stopping rule",
    "stopping",
    "ahfal_app.stopping",
    "ahfal_app.stopping_rules",
    base="ahfal_app.stopping.core.base:StoppingRule",
    alone="none",
)
ARRIVAL_ORDERS = Family(
    "order of arrival",
    "arrival-order",
    "ahfal_app.arrivals",
    "ahfal_app.arrival_orders",
    base="ahfal_app.arrivals.core.base:ArrivalOrder",
)
METRICS = Family("metric", "metrics", "ahfal_app.metrics", "ahfal_app.metrics", part="measure")

#: Every kind of component that a setting chooses, by that setting.
FAMILIES: Mapping[str, Family] = {
    family.setting: family
    for family in (
        STRATEGIES,
        ORACLES,
        DATASETS,
        MODELS,
        AGGREGATIONS,
        LOCAL_UPDATES,
        TRACKERS,
        STOPPING,
        ARRIVAL_ORDERS,
    )
}

#: Those that a run consists of; backbones have no parameters, and are named in other ways, too.
_OF_A_RUN = (*FAMILIES.values(), BACKBONES)

#: Those whose code runs on the server and on the clients, which must have the same.
SHARED = (STRATEGIES, MODELS, BACKBONES, LOCAL_UPDATES, ARRIVAL_ORDERS)


def provenances(
    settings: Mapping[str, object], families: Iterable[Family] = _OF_A_RUN
) -> tuple[Provenance, ...]:
    """Return where the other packages' components come from that flat settings choose."""
    found = (
        family.provenance(name)
        for family in families
        for name in family.chosen(str(settings.get(family.setting, "")))
    )
    return tuple(each for each in found if each is not None)


def shared_code_hash(settings: Mapping[str, object]) -> str:
    """Return a hash of all code that server and clients must have in common.

    Parameters
    ----------
    settings : Mapping[str, object]
        Flat settings; a component of another package that they choose counts, too.
    """
    return with_provenances(code_hash(), provenances(settings, SHARED))


def with_provenances(code: str, found: Iterable[Provenance]) -> str:
    """Return a hash of our code together with that of other packages' components."""
    sources = [[each.setting, each.name, each.source] for each in found]
    if not sources:
        return code
    return hashlib.sha256(json.dumps([code, sources]).encode()).hexdigest()


def _where(origin: str | EntryPoint) -> str:
    return origin if isinstance(origin, str) else origin.value


@cache
def _modules(package: str) -> dict[str, str]:
    """Return the modules of a package of ours that are components, by name with hyphens."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return {
        module.name.replace("_", "-"): module.name
        for module in pkgutil.iter_modules(folders)
        # A package beside them is what they are made of; an oracle may be one itself.
        if module.name != "core" and not module.name.startswith("_")
    }


def _source_hash(module: str) -> str:
    """Return a hash of all Python files of the package that a module belongs to."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    digest = hashlib.sha256()
    if spec is None:
        return digest.hexdigest()
    roots = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not roots and spec.origin:
        roots = [Path(spec.origin)]
    for root in roots:
        files = [root] if root.is_file() else sorted(root.rglob("*.py"))
        for file in files:
            name = file.name if root.is_file() else file.relative_to(root).as_posix()
            digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
