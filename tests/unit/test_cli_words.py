"""A command that runs on a cluster's head is the command that was typed here, but for what says where."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from raylt.cli import app, common


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
    monkeypatch.setattr(common, "head_to_ask", lambda root, local, cluster: "the head" if cluster == "c.yaml" else None)
    monkeypatch.setattr("raylt.ssh.run", lambda head, words: ran.append((head, " ".join(words))) or 7)
    assert CliRunner().invoke(app, typed.split()).exit_code == 7
    assert ran == [("the head", sent)]
