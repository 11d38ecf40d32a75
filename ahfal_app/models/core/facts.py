"""What was measured or tested of a network, and decides how it is trained by default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkFacts:
    """Facts that stand with a network, as `FACTS` in its module or of its function.

    The defaults are what is safe where nothing is known.

    Attributes
    ----------
    stackable : bool
        Whether copies were tested to train together, as one tensor program, as they do alone.
    compiling_pays : bool
        Whether a compiled training step was measured to be faster on a CPU.
    compiling_pays_from : int | None
        Of a network of which that is not so: pixels of an image from which on it is.
    together_pays_on_cpu : bool
        Whether copies train faster together than one after the other on a CPU, too; a linear head
        on vectors does, whose steps are two small matrix products. With a hidden layer the weights
        of all copies no longer fit into a cache, those of one do.
    bf16_pays : bool
        Whether bf16 is faster than fp32 where the hardware has it; a tiny network loses by the
        conversions.
    bf16_pays_on_cpu_from : int | None
        Of a network of which that is not so: pixels of an image from which on it is on a CPU.
    takes_vectors : bool
        Whether it is made for vectors, samples of shape (1, 1, D), and not for images alone.
    """

    stackable: bool = False
    compiling_pays: bool = False
    compiling_pays_from: int | None = None
    together_pays_on_cpu: bool = False
    bf16_pays: bool = True
    bf16_pays_on_cpu_from: int | None = None
    takes_vectors: bool = False
