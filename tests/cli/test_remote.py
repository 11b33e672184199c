"""A command that runs on a cluster's head is the command that was typed here, but for what says where."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylt.cli import app, options
from raylt.spec import dump_yaml


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("status s --cluster c.yaml", "status s"),
        ("results s --json --pareto --cluster c.yaml", "results s --pareto --json"),
        ("results s --sort loss --protocol final --cluster c.yaml", "results s --protocol final --sort loss"),
        ("logs s 17 -f --cluster c.yaml", "logs s 17 -f"),
        ("stop s --cluster c.yaml", "stop s"),
        ("retry s --failed --cluster c.yaml", "retry s --failed"),
        ("record a b --cluster c.yaml", "record a b"),
        ("record --cluster c.yaml", "record"),
        ("store du --cluster c.yaml", "store du"),
        ("store gc s --dry-run --cluster c.yaml", "store gc s --dry-run"),
    ],
)
def test_the_head_is_sent_the_very_command(typed, sent, monkeypatch):
    ran = []
    monkeypatch.setattr(options, "head_to_ask", lambda where: "the head" if where.cluster == "c.yaml" else None)
    monkeypatch.setattr("raylt.cluster.ssh.run", lambda head, words: ran.append((head, " ".join(words))) or 7)
    assert CliRunner().invoke(app, typed.split()).exit_code == 7
    assert ran == [("the head", sent)]


def test_what_is_confirmed_lies_in_the_store_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--root comes before RAYLT_ROOT, for a sweep that comes with raylt, for a file, and for one that was started."""
    from raylt.cli.stored_spec import spec_to_confirm
    from tests.support.confirmed import begun

    root = tmp_path / "here"
    monkeypatch.setenv("RAYLT_ROOT", str(tmp_path / "elsewhere"))
    builtin = spec_to_confirm("digits", ["search.seed=7"], str(root))[0]
    assert (builtin.storage.root, builtin.search.seed) == (str(root), 7)
    assert spec_to_confirm("digits", None, None)[0].storage.root == str(tmp_path / "elsewhere")
    file = tmp_path / "mine.yaml"
    file.write_text(dump_yaml({**builtin.dump(), "name": "mine"}))
    assert spec_to_confirm(str(file), None, str(root))[0].storage.root == str(root)
    begun(root, builtin)
    again = spec_to_confirm("digits", ["confirm.seeds=5"], str(root))[0]
    assert (again.search.seed, again.storage.root, again.confirm.seeds) == (7, str(root), 5)
