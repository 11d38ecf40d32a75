"""Every error that AHFAL raises on purpose, by name.

A run stops with one of these, or goes on; nothing is swallowed on the way.
"""

from __future__ import annotations

from collections.abc import Sequence


class AhfalError(Exception):
    """Base of all named errors."""


class ConfigError(AhfalError):
    """One or more settings cannot be used.

    Parameters
    ----------
    problems : Sequence[str]
        One line for each problem, naming the key, the value and what is allowed.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 setting cannot be used" if count == 1 else f"{count} settings cannot be used"
        super().__init__("\n".join([head + ":", *(f"  - {problem}" for problem in self.problems)]))


class BenchmarkError(AhfalError):
    """What takes part in a benchmark, or what it is run on, is not what its protocol allows.

    Parameters
    ----------
    problems : Sequence[str]
        One line for each problem, naming what it is, what was found and what is allowed.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  - ".join(["the protocol does not allow this:", *self.problems]))


class DatasetError(AhfalError):
    """A data set is missing, unreadable or has no usable images or labels."""


class ImageSizesDiffer(DatasetError):
    """The images of a data set have several sizes, and nobody says what they are scaled to."""


class PartitionError(AhfalError):
    """No partition with the wanted properties was found within the allowed attempts."""


class UnknownComponent(AhfalError):
    """No component of its kind has this name, or what is registered under it is none."""


class DuplicateComponent(AhfalError):
    """Two components of a kind claim the same name."""


class InvalidMetric(AhfalError):
    """A metric gave something that is no number."""


class InvalidSelection(AhfalError):
    """A query strategy broke its contract: wrong count, duplicates or foreign ids."""


class NonFiniteSignal(AhfalError):
    """Model outputs that a query strategy needs contain NaN or infinity."""


class PoolExhausted(AhfalError):
    """Samples were asked for that the pool does not hold."""


class BudgetExceeded(AhfalError):
    """More labels were asked for than the ledger has free."""


class LabelConflict(AhfalError):
    """A label contradicts the store: unknown sample, class out of range or foreign request."""


class StoreError(AhfalError):
    """A label store is missing, damaged or of another version."""


class LabelFileError(AhfalError):
    """A file of labels cannot be used: nothing of it is."""


class OracleError(AhfalError):
    """Whoever labels cannot be reached, or answers what cannot be used."""


class PageError(AhfalError):
    """A page cannot be served on this machine."""


class CheckpointError(AhfalError):
    """No usable checkpoint: missing, damaged or of another version."""


class ResumeError(AhfalError):
    """A run cannot be continued from what its folder and its clients still hold."""


class SweepError(AhfalError):
    """A sweep cannot be run or read in this folder."""


class NoLabelledClients(AhfalError):
    """No client has a labelled sample, so there is nothing to take statistics of."""


class PrivacyBudgetExceeded(AhfalError):
    """A release would cost more than is left of the privacy budget ε."""


class PrivacyRefused(AhfalError):
    """A client was asked for more than the run's privacy allows it to tell."""


class MessageRefused(AhfalError):
    """A message says what no server that follows the protocol would say: nothing of it is done."""


class PolicyRefused(AhfalError):
    """A run asks for more than the site's policy allows; nothing was computed for it.

    Parameters
    ----------
    rules : Sequence[str]
        Keys of the rules that it breaks, as in `--node-config`.
    problems : Sequence[str]
        One line for each: what is asked for, and what is allowed. They stay at the site.
    """

    def __init__(self, rules: Sequence[str], problems: Sequence[str]) -> None:
        self.rules = tuple(rules)
        super().__init__("the site's policy does not allow it: " + "; ".join(problems))


class SecureAggregationFailed(AhfalError):
    """A secure sum cannot be had: too few clients stayed, or what they sent does not fit."""


class QuorumNotReached(AhfalError):
    """Too few clients answered usefully for the run to go on."""


class EvaluationFailed(AhfalError):
    """No client could test the global model, and nobody else does."""


class NonFiniteModel(AhfalError):
    """An aggregate of finite models is not finite, or what the server has learned of choices."""


class CodeMismatch(AhfalError):
    """Server and clients run different versions of the code."""


class EngineError(AhfalError):
    """An engine (Flower's simulation) could not be started or ended in failure."""


class CertificateError(AhfalError):
    """Certificates and keys cannot be written as asked."""


class ReportError(AhfalError):
    """A run's folder lacks what its report needs."""


class DeviceMemoryExhausted(AhfalError):
    """The memory of a GPU does not hold what is to be trained at once."""
