"""The committed table is of these commits."""

from __future__ import annotations

import pytest
from support import official as code

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu")]


@pytest.mark.parametrize("repository", sorted(code.REPOSITORIES))
def test_the_repositories_are_at_the_commits_of_the_table(repository: str) -> None:
    assert code.commit(repository) == code.REPOSITORIES[repository][1]
