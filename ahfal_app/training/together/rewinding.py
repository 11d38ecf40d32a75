"""Training that was broken off is begun anew as if nothing had been drawn."""

from __future__ import annotations

from collections.abc import Sequence

from ahfal_app.training.local_updates.kcfu import CompensatoryLoss
from ahfal_app.training.penalties import part_of
from ahfal_app.training.sgd import LocalUpdate


class Rewinding:
    """Remembers where the draws of some updates are.

    Parameters
    ----------
    updates : Sequence[LocalUpdate]
        Their generators, and those of KCFU's loss, are looked at.
    """

    def __init__(self, updates: Sequence[LocalUpdate]) -> None:
        self._generators = [(update.generator, update.generator.get_state()) for update in updates]
        losses = [part_of(update.objective.penalty, CompensatoryLoss) for update in updates]
        self._losses = [(loss, loss.position()) for loss in losses if loss is not None]

    def rewind(self) -> None:
        """Have the updates draw again what they have drawn since."""
        for generator, state in self._generators:
            generator.set_state(state)
        for loss, position in self._losses:
            loss.return_to(position)
