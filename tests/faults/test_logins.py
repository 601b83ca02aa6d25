"""Many users at once, while wrong passwords arrive: all get in, and nobody who is right is called wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.logins import measure


@pytest.mark.parametrize("same_address", [False, True])
def test_everybody_gets_in_while_wrong_passwords_arrive(tmp_path: Path, same_address: bool) -> None:
    figures = measure(tmp_path, users=20, wrong=10, patience=30, same_address=same_address)
    assert len(figures.seconds) == 20
    assert (figures.refused, figures.busy) == (0, 0)
