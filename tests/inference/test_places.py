"""Where the commands that use a model write."""

from __future__ import annotations

from pathlib import Path

import pytest

from ahfal_app.errors import ConfigError
from ahfal_app.experiments.output import check_output


def test_a_folder_that_nobody_can_write_into_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_output(tmp_path / "new" / "table.csv", ".csv")
    assert list((tmp_path / "new").iterdir()) == []

    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # As root, who may write everywhere, a test cannot have such a folder.
    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(ConfigError, match=r"--out=.*table\.csv.*cannot be written \(Permission"):
        check_output(tmp_path / "table.csv", ".csv")
