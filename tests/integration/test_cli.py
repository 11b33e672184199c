"""The command line without Ray: what each command prints and leaves behind, and the code it exits with."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline

from raylt import cli
from raylt.diffusion.data import load_images
from raylt.diffusion.tensors import unpack
from raylt.diffusion.train import Compute
from raylt.spec import SweepSpec, dump_yaml
from raylt.spec.load import builtin_sweeps
from raylt.store import Ledger, Store
from raylt.store.layout import SAMPLES, TICKET, TRAINED
from raylt.sweep.dispatch import Dispatcher, Finished
from raylt.ticket.ticket_file import load_ticket
from raylt.trial.inputs import Inputs
from raylt.trial.run import Bench, TrialRun, failure
from tests.begun import write_begun
from tests.conftest import TINY, merged
from tests.unit.test_specfile import TEN_ERRORS, TEN_MESSAGES

SMALL = merged(
    TINY,
    {
        "name": "small",
        "train": {"learning_rate": 2e-2, "batch_size": 16},  # enough in 12 steps for tickets that are not broken
        "search": {"trials": 2, "pilots": 0, "profile": "movement", "sampler": "random"},
        "metrics": {"keep_samples": True},
        "resources": {"gpus": 0},
    },
)
SEARCHED, BROKEN_OFF = 3, 4  # of its trials, two; the others: dense, uniform, erk
HEAVY = {"torch", "ray", "mlflow", "optuna", "diffusers", "torchvision"}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines of a refusal: nothing on stdout, and no traceback."""
        assert (self.code, self.out) == (2, "")
        assert "Traceback" not in self.err
        return self.err.splitlines()


Call = Callable[..., Done]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in an empty folder of its own, with nothing in the environment."""
    for name in [name for name in os.environ if name.startswith(("RAYLT_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call("results", "small")`: the command in this process, which has its heavy imports behind it."""

    def run(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["raylt", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Done(left.value.code or 0, *capsys.readouterr())

    return run


def start(*words: str | Path, flags: tuple[str, ...] = ()) -> Done:
    """The command in a process of its own."""
    command = [sys.executable, *flags, "-m", "raylt.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def small(_warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the spec and the store of a sweep that has ended; its last trial failed."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(dump_yaml(SMALL))
    shutil.copytree(_warm_store, folder / "raylt-data")
    spec, store = SweepSpec.model_validate(SMALL), Store(str(folder / "raylt-data"))
    ledger = Ledger(store, spec.name, lambda: None)
    write_begun(ledger, spec, startup=1)
    dispatcher, bench = (
        Dispatcher(spec, ledger, 1, lambda trial, result: None),
        Bench.open(spec, Compute(), Inputs(load_images(spec.data))),
    )
    while not isinstance(trial := dispatcher.next_trial(()), Finished):
        run = TrialRun(trial, bench, Store(store.root, owner=f"small/{trial.id}"))
        if trial.id == BROKEN_OFF:
            dispatcher.ended(trial.id, failure(RuntimeError("the sky\nfell")))
            continue
        for _ in run:
            pass
        dispatcher.ended(trial.id, run.result)
    return folder


@pytest.fixture
def here(small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `small`, to work in."""
    folder = Path(shutil.copytree(small, Path("small")))
    monkeypatch.chdir(folder)
    return Path()


def paths(folder: Path = Path()) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- at once ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--help",), ("sweep", "--help"), ("validate", "digits")], ids=" ".join)
def test_answers_within_a_second(words):
    times = []
    while len(times) < 3 and min(times, default=9) >= 1:
        began = time.monotonic()
        assert start(*words).code == 0
        times.append(time.monotonic() - began)
    assert min(times) < 1, times


READERS = [("--help",), ("validate", "small.yaml"), ("status", "small"), ("results", "small", "--json")]


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_imports_nothing_heavy(words, here):
    done = start(*words, flags=("-X", "importtime"))
    assert done.code == 0, done.err
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.err.splitlines() if line.startswith("import time:")}
    assert "raylt" in imported
    assert imported & HEAVY == set()


def test_help_names_every_command(call):
    done = call("--help")
    assert done.code == 0
    for command in ("sweep", "validate", "ticket", "status", "results", "report", "export", "ui"):
        assert re.search(rf"^\W*{command} ", done.out, re.MULTILINE)


# --- which spec -------------------------------------------------------------------------------------------------------


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


# --- bad input --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("words", [("sweep", "--local", "--address", "auto"), ("ticket", "--rule", "magic")], ids=" ".join)
def test_options_that_make_no_sense_are_refused(words, call):
    (line,) = call(*words).errors
    assert words[1] in line
    assert paths() == []


@pytest.mark.parametrize("words", [("sweep", "--frobnicate"), ("frobnicate",), ("results",), ("report", "small")], ids=" ".join)
def test_usage_errors_exit_2(words, call):
    assert call(*words).errors


# --- what a sweep has found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("results",), ("status",), ("report", "-o", "page.html"), ("export",)], ids=" ".join)
def test_an_unknown_sweep_is_refused_with_those_there_are(words, call, here):
    more = ("0", "folder") if words == ("export",) else ()
    Path("raylt-data/sweeps/never-begun").mkdir()
    Path("raylt-data/sweeps/never-begun/lease.json").write_text("{}")
    before = paths()
    (line,) = call(words[0], "smal", *words[1:], *more).errors
    assert "'smal'" in line
    assert "there: small)" in line
    (line,) = call(words[0], "small", *words[1:], *more, "--root", "nowhere").errors
    assert "there: none)" in line
    assert paths() == before


def test_a_spec_file_that_is_another_than_the_sweep_of_its_name_is_said(call, here, caplog):
    text = Path("raylt-data/sweeps/small/spec.yaml").read_text()
    Path("same.yaml").write_text(text)
    Path("other.yaml").write_text(text.replace("learning_rate:", "learning_rate: 0.123  #", 1))
    assert call("status", "same.yaml").code == 0 and not caplog.messages
    assert call("status", "other.yaml").code == 0
    assert caplog.messages == ["sweep small was begun with another spec than other.yaml; this is what is stored of it"]


EMPTY = [  # as an unset variable of a script gives it
    "validate", "sweep --local", "ticket", "status", "results", "report small -o", "export small 3", "export",
    "record small --uri", "record", "ui --uri", "store du --root", "store gc", "status small --cluster",
    "sweep small.yaml --address", "stop", "confirm", "retry small",
]  # fmt: skip


@pytest.mark.parametrize("words", EMPTY)
def test_an_empty_name_or_path_is_refused(words, call, here):
    before = paths()
    done = call(*words.split(), "", *(["3", "out"] if words == "export" else []))
    (line,) = done.errors
    assert line == f"what follows {words.split()[-1]}: is empty; is a variable of the shell unset?"
    if words.split()[-1].startswith("--"):
        assert call(*words.split()[:-1], f"{words.split()[-1]}=").errors == [line.removeprefix("what follows ")]
    assert paths() == before


def test_a_folder_that_is_gone_from_under_the_shell(tmp_path):
    """torch's libraries would end the process, without a word of ours."""
    code = f"{sys.executable} -m raylt.cli ticket digits"
    (tmp_path / "gone").mkdir()
    shell = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && PYTHONPATH={Path.cwd()} {code}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("the folder that raylt was started in is gone")


@pytest.mark.parametrize("command", ["du", "verify"])
def test_a_place_that_is_no_store_is_refused(command, call, here):
    """It would else be called free of damage."""
    Path("empty").mkdir()
    for root in ("nowhere", "empty"):
        (line,) = call("store", command, "--root", root).errors
        assert line.startswith(f"{root} is no store")
    assert not Path("nowhere").exists()


def test_a_sweep_goes_by_its_name_or_its_spec_file_under_the_root_that_is_named(call, here, monkeypatch):
    expected = call("results", "small", "--json").out
    assert json.loads(expected)["name"] == "small"
    assert call("results", "small.yaml", "--json").out == expected
    root = Path("raylt-data").resolve()
    empty = here.resolve() / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert call("results", "small", "--json").errors
    assert call("results", "small", "--json", "--root", root).out == expected
    monkeypatch.setenv("RAYLT_ROOT", str(root))
    assert call("results", "small", "--json").out == expected
    assert call("results", "small", "--json", "--root", "elsewhere").errors


def test_status_counts_and_lists_causes(call, here):
    done = call("status", "small")
    assert done.code == 0
    first, *rest = done.out.splitlines()
    assert first == "small: complete (5 asked, 4 complete, 0 pruned, 1 failed, 0 running)"
    (failed,) = rest
    assert failed.split() == ["4", "search", "FAIL", "RuntimeError:", "the", "sky", "fell"]


def test_status_says_of_no_trial_that_it_runs_where_nobody_drives_it(call, here):
    assert call("retry", "small", "4").code == 0
    lines = call("status", "small").out.splitlines()
    assert lines[0] == "small: interrupted (6 asked, 4 complete, 0 pruned, 1 failed, 1 unfinished)"
    assert lines[2].split() == ["5", "search", "UNFINISHED"]
    assert lines[3].startswith("nothing runs") and "running" not in " ".join(lines).lower()


def test_results_as_tables_fit_a_terminal(call, here):
    done = call("results", "small")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert "\x1b" not in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert {"0", "1", "2", "3", "4"} <= {row[0] for row in rows if row}
    assert "RuntimeError: the sky fell" in done.out


def test_what_it_cost(call, here):
    document = json.loads(call("results", "small", "--json").out)
    asked, trained, shared = (document["steps"][key] for key in ("asked", "trained", "shared"))
    assert f"steps: {asked} asked, {trained} trained, {shared} shared; " in call("results", "small").out
    lines = call("results", "small", "--cost").out.splitlines()
    rows = [line.split() for line in lines if re.match(r" *(\d+|all) ", line)]
    assert max(map(len, lines)) <= 80
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "all"]
    assert rows[0][:7] == ["0", "dense", "-", "complete", "12", "12", "0"]
    assert rows[BROKEN_OFF][4:] == ["-"] * 4
    assert rows[-1][1:4] == [str(asked), str(trained), str(shared)]
    csv_rows = csv.DictReader(io.StringIO(call("results", "small", "--csv").out))
    assert [row["hours"] != "" for row in csv_rows] == [True] * 4 + [False]
    (line,) = call("results", "small", "--cost", "--csv").errors
    assert line.startswith("--cost is a table")


def test_hours_that_are_none(call):
    for hours in ("0", "-1", "nan"):
        assert "above 0, in hours" in " ".join(call("sweep", "--max-hours", hours).errors)


def test_results_of_the_front_alone(call, here):
    trials = json.loads(call("results", "small", "--json").out)["trials"]
    front = [trial for trial in trials if trial["pareto"]]
    assert 0 < len(front) < len(trials)
    assert json.loads(call("results", "small", "--json", "--pareto").out)["trials"] == front
    rows = list(csv.DictReader(io.StringIO(call("results", "small", "--csv", "--pareto").out)))
    assert [row["id"] for row in rows] == [str(trial["id"]) for trial in front]
    assert call("results", "small", "--pareto").code == 0


def test_results_as_csv_have_a_row_a_trial_and_nothing_where_there_is_no_number(call, here):
    trials = json.loads(call("results", "small", "--json").out)["trials"]
    rows = list(csv.DictReader(io.StringIO(call("results", "small", "--csv").out)))
    assert [(row["id"], row["kind"], row["state"]) for row in rows] == [
        (str(trial["id"]), trial["kind"], trial["state"]) for trial in trials
    ]
    for row, trial in zip(rows, trials, strict=True):
        assert None not in row
        for key in ("loss", "fid", "density"):
            assert (float(row[key]) if row[key] else None) == trial[key]
    assert rows[BROKEN_OFF]["loss"] == ""
    assert rows[BROKEN_OFF]["error"] == "RuntimeError: the sky fell"
    assert float(rows[SEARCHED]["density/mid_block"]) == trials[SEARCHED]["densities"]["mid_block"]


def test_report_writes_one_page(call, here):
    done = call("report", "small", "-o", "page.html")
    assert (done.code, done.out) == (0, "page.html\n")
    page = Path("page.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "RuntimeError: the sky fell" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)  # readable without a network
    (line,) = call("report", "small", "-o", "nowhere/page.html").errors
    assert "nowhere/page.html" in line


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_is_a_pipeline_that_diffusers_loads_with_its_ticket(call, here):
    done = call("export", "small", str(SEARCHED), "folder/deep")
    assert (done.code, done.out) == (0, "folder/deep\n")
    folder = Path("folder/deep")
    pipeline = DDPMPipeline.from_pretrained(folder)
    exported = dict(pipeline.unet.named_parameters())

    result = json.loads(Path(f"raylt-data/sweeps/small/trials/{SEARCHED:05d}/result.json").read_text())
    ema = unpack(Store("raylt-data").find(result["final_stage"]).read(TRAINED))["ema"]
    assert set(exported) == set(ema)
    assert all(torch.equal(exported[name], ema[name]) for name in ema)

    trial = json.loads(call("results", "small", "--json").out)["trials"][SEARCHED]
    ticket = load_ticket(folder / TICKET)
    assert ticket.mask.digest == trial["ticket"]
    assert (folder / TICKET).stat().st_size == trial["ticket_bytes"]
    for layer, keep in ticket.mask.layers.items():
        weight = exported[f"{layer}.weight"]
        assert [int(keep.sum()), keep.numel()] == trial["layers"][layer]
        assert torch.count_nonzero(weight[~keep]) == 0
        assert torch.count_nonzero(weight[keep]) > 0

    Path("begun/.raylt-killed").mkdir(parents=True)  # an export that was killed does not stand in the way of the next
    assert call("export", "small", str(SEARCHED), "begun").code == 0
    assert {path.name for path in Path("begun").iterdir()} == {path.name for path in folder.iterdir()} | {".raylt-killed"}

    images = np.load(folder / SAMPLES)["arr_0"]
    assert (images.shape, images.dtype) == ((80, 8, 8, 1), np.uint8)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 1)


@pytest.mark.parametrize("number", [99, BROKEN_OFF])
def test_export_of_a_trial_without_a_ticket_is_refused(number, call, here):
    (line,) = call("export", "small", str(number), "folder").errors
    assert f"trial {number} " in line
    assert "0, 1, 2, 3" in line
    assert not Path("folder").exists()


def test_export_overwrites_nothing(call, here):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    before = paths()
    (line,) = call("export", "small", "0", "full").errors
    assert "full" in line
    (line,) = call("export", "small", "0", "full/mine.txt").errors
    assert "mine.txt" in line
    assert paths() == before
    Path("empty").mkdir()
    assert call("export", "small", "0", "empty").code == 0


# --- one ticket -------------------------------------------------------------------------------------------------------


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
