"""`raylt validate`, `sweep --dry-run` and `ticket`: which spec they take, what they refuse, what they print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from raylt.spec import dump_yaml
from raylt.spec.load import builtin_sweeps
from tests.conftest import TINY, merged
from tests.spec.test_load import TEN_ERRORS, TEN_MESSAGES
from tests.support.commands import Call, paths, start

pytestmark = pytest.mark.usefixtures("own_folder")


def test_a_spec_left_out_is_that_of_the_environment_then_of_the_folder_then_digits(call, monkeypatch):
    assert call("validate").out.startswith("digits: valid (")
    Path("sweep.yaml").write_text("schema: 1\nname: of-the-folder\n")
    assert call("validate").out.startswith("of-the-folder: valid (")
    Path("other.yaml").write_text("schema: 1\nname: of-the-environment\n")
    monkeypatch.setenv("RAYLT_SPEC", "other.yaml")
    assert call("validate").out.startswith("of-the-environment: valid (")
    assert call("validate", "sweep.yaml").out.startswith("of-the-folder: valid (")
    monkeypatch.setenv("RAYLT_SPEC", "nowhere.yaml")
    (line,) = call("validate").errors
    assert "RAYLT_SPEC" in line
    assert "nowhere.yaml" in line


def test_the_sweeps_that_come_with_raylt_are_known_by_name(call):
    of_the_studies = {"digits-results", "mnist-results", "mnist-rewind", "mnist-similarity"}
    assert set(builtin_sweeps()) == {"digits", "mnist", "cifar10", "cifar100", "cifar10-uniform"} | of_the_studies
    for name in builtin_sweeps():
        assert call("validate", name).out.startswith(f"{name}: valid (")
    (line,) = call("validate", "cifar11").errors
    assert "cifar10-uniform" in line


def test_a_dry_run_in_an_empty_folder_says_what_the_quickstart_would_do(call):
    done = call("sweep", "--dry-run")
    assert done.code == 0, done.err
    facts = dict(line.split(maxsplit=1) for line in done.out.splitlines() if not line.startswith("group"))
    assert facts["sweep"].startswith("digits (")
    assert facts["data"].startswith("digits: 1437 training")
    assert facts["trials"].startswith("1 dense, 2 pilots, 2 baselines (uniform, erk), 8 search trials")
    assert paths() == []


def test_a_dry_run_refuses_a_changed_identity_as_the_sweep_would_and_knows_the_next_free_name(call, here):
    words, before = ("sweep", "--dry-run", "small.yaml"), paths()
    assert call(*words).out.startswith("sweep    small (")
    errors = call(*words, "--set", "train.steps=13", "--set", "search.trials=9").errors
    assert errors[1:] == ["  train.steps: 12 -> 13"]  # more trials are no other sweep
    assert "small-2" in errors[0]
    assert "--new" in errors[0]
    assert call(*words, "--set", "train.steps=13", "--new").out.startswith("sweep    small-2 (")
    left = [line for line in call(*words, "--set", "search.trials=3").out.splitlines() if line.startswith("left")]
    assert left == ["left     1 trial, 1 training, 10 training steps, 80 samples"]
    assert paths() == before


@pytest.mark.parametrize("command", ["validate", "sweep", "ticket"])
def test_ten_errors_are_ten_lines_and_leave_nothing_behind(command, call):
    Path("ten.yaml").write_text(TEN_ERRORS)
    run = start if command == "sweep" else call
    assert run(command, "ten.yaml").errors == [f"ten.yaml:{message}" for message in TEN_MESSAGES]
    assert len(TEN_MESSAGES) == 10
    assert paths() == ["ten.yaml"]


def test_errors_of_overrides_say_so(call):
    lines = call("validate", "digits", "--set", "train.stepz=3", "--set", "nonsense", "--set", "train.batch_size=many").errors
    assert len(lines) == 3
    assert all(line.startswith("--set: ") for line in lines)
    assert any("train.stepz: unknown key" in line and "'steps'" in line for line in lines)
    assert any("'nonsense'" in line and "KEY=VALUE" in line for line in lines)
    assert any("train.batch_size" in line and "'many'" in line for line in lines)


def test_an_override_counts_as_if_it_stood_in_the_file(call):
    Path("a.yaml").write_text("schema: 1\nname: a\ntrain: {steps: 5}\n")
    Path("b.yaml").write_text("schema: 1\nname: a\n")
    assert call("validate", "a.yaml").out == call("validate", "b.yaml", "--set", "train.steps=5").out
    assert call("validate", "a.yaml").out != call("validate", "b.yaml").out


@pytest.mark.parametrize("command", [("sweep", "--dry-run"), ("sweep",), ("ticket",)], ids=" ".join)
def test_a_density_that_cannot_be_met_is_refused_with_its_line_and_the_smallest_that_can(command, call):
    Path("sparse.yaml").write_text(dump_yaml(merged(TINY, {"ticket": {"density": 1e-4}})))
    (line,) = call(*command, "sparse.yaml").errors
    found = re.fullmatch(r"sparse\.yaml:(\d+): ticket\.density: .*\(got 0\.0001\); ([\d.]+) or more.*", line)
    assert found
    assert "density" in Path("sparse.yaml").read_text().splitlines()[int(found[1]) - 1]
    assert paths() == ["sparse.yaml"]
    assert call("sweep", "--dry-run", "sparse.yaml", "--set", f"ticket.density={found[2]}").code == 0
    (line,) = call(*command, "sparse.yaml", "--set", "ticket.density=0.0002").errors
    assert line.startswith("--set: ticket.density: ")


def ticket(call: Call, *words: str) -> dict[str, Any]:
    done = call("ticket", "small.yaml", "--json", *words)
    assert done.code == 0, done.err
    return json.loads(done.out, parse_constant=pytest.fail)


def test_ticket_prints_one_trial_and_the_same_again(call, here):
    words = ("--rule", "erk", "--density", "0.3", "--seed", "1")
    first, second = ticket(call, *words), ticket(call, *words)
    free = ("steps", "timing")
    assert {k: v for k, v in first.items() if k not in free} == {k: v for k, v in second.items() if k not in free}
    assert first["steps"] == {"asked": 32, "trained": 32 - 2, "shared": 2}  # the rewind point is the sweep's
    assert second["timing"].keys() == first["timing"].keys()
    kept, total = (sum(counts[i] for counts in first["layers"].values()) for i in (0, 1))
    assert (first["rule"], first["seed"], kept) == ("erk", 1, round(0.3 * total))
    known = json.loads(call("results", "small", "--json").out)["trials"][2]
    assert first.keys() == known.keys()


def test_ticket_equals_the_baseline_of_a_sweep_and_finds_its_stages(call, here, monkeypatch):
    known = json.loads(call("results", "small", "--json").out)["trials"][1]
    monkeypatch.setenv("RAYLT_ROOT", str(Path("raylt-data").rename("moved").resolve()))
    found = ticket(call, "--rule", "uniform")
    assert found["steps"] == {"asked": 32, "trained": 0, "shared": 32}
    free = ("id", "steps", "timing", "pareto")
    assert {k: v for k, v in found.items() if k not in free} == {k: v for k, v in known.items() if k not in free}
    assert not Path("raylt-data").exists()


def test_a_ticket_that_diverges_fails_with_its_cause(call, here):
    done = call("ticket", "small.yaml", "--set", "train.learning_rate=1e30", "--set", "train.gradient_clip=null", "--json")
    assert done.code == 1
    record = json.loads(done.out, parse_constant=pytest.fail)
    assert record["state"] == "FAIL"
    assert record["error"].startswith("training diverged: the loss is ")
    assert record["loss"] is None
    assert record["rounds"] == []
