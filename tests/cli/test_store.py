"""`raylt store du` and `verify` without a store."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("command", ["du", "verify"])
def test_a_place_that_is_no_store_is_refused(command, call, here):
    """It would else be called free of damage."""
    Path("empty").mkdir()
    for root in ("nowhere", "empty"):
        (line,) = call("store", command, "--root", root).errors
        assert line.startswith(f"{root} is no store")
    assert not Path("nowhere").exists()
