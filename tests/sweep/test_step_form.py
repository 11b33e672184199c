"""Which form of a step a sweep takes: the one with which a search ends first, and none that fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raylt.cluster.ray_runtime import Resources
from raylt.diffusion.compute import CHANNELS_LAST, COMPILED, EAGER, FORMS, GRAPHED, Compute
from raylt.errors import SpecError
from raylt.spec import SweepSpec
from raylt.store.sweep_lock import SweepLock
from raylt.sweep import step_form
from raylt.sweep.step_form import CANDIDATES, TimedForm, chosen, refuse_without_compiler, trials_a_gpu, tune_step

SpecMaker = Callable[..., SweepSpec]


def of_times(monkeypatch: pytest.MonkeyPatch, times: dict[str, tuple[float, float]]) -> None:
    """In place of training: form -> (first step, a later one), in seconds; a form that is missing fails."""

    def attempt(spec: SweepSpec, compute: Compute) -> TimedForm:
        if compute.form not in times:
            raise RuntimeError("no compiler")
        return TimedForm(compute.form, *times[compute.form])

    monkeypatch.setattr(step_form, "_timed", attempt)
    monkeypatch.setattr(step_form, "_memory", lambda compute: 80_000_000_000)


@pytest.mark.parametrize(("steps", "expected"), [(10, CHANNELS_LAST), (1_000, COMPILED), (100_000, GRAPHED)])
def test_a_form_is_taken_where_it_pays_its_compilation(
    tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, steps: int, expected: str
) -> None:
    of_times(monkeypatch, {EAGER: (0.1, 0.04), CHANNELS_LAST: (0.1, 0.03), COMPILED: (20, 0.01), GRAPHED: (60, 0.005)})
    tuned = chosen(tiny_spec(train={"steps": steps}), Compute("cuda", "bf16", 2), FORMS)
    assert tuned.compute == Compute("cuda", "bf16", 2, expected)
    assert tuned.lines[0] == "step     eager: 40.0 ms, the first one 0.1 s"


def test_a_form_that_fails_is_none(tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    of_times(monkeypatch, {EAGER: (0.1, 0.04)})
    tuned = chosen(tiny_spec(), Compute("cuda"), FORMS)
    assert tuned.compute.form == EAGER
    assert [line for line in tuned.lines if "no compiler" in line] == [*tuned.lines[1:]]
    with pytest.raises(RuntimeError, match="no compiler"):
        chosen(tiny_spec(), Compute("cuda"), CANDIDATES["on"])


@pytest.mark.parametrize(("word", "form"), [("auto", EAGER), ("off", EAGER), ("on", COMPILED)])
def test_without_a_gpu_nothing_is_tried(tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, word: str, form: str) -> None:
    of_times(monkeypatch, {})
    tuned = tune_step(tiny_spec(train={"compile": word}, resources={"gpus": 0}))
    assert (tuned.compute.form, tuned.lines) == (form, ())


@pytest.mark.parametrize(("busy", "gigabytes", "expected"), [
    (0.95, 4, 1), (0.3, 4, 3), (0.11, 4, 9), (0.3, 30, 2), (0.3, 60, 1), (0.01, 0.5, 16), (0.3, 400, 1),
])  # fmt: skip
def test_a_gpu_is_shared_by_as_many_as_it_has_time_and_memory_for(busy: float, gigabytes: float, expected: int) -> None:
    form = TimedForm(GRAPHED, 60, 0.01, busy, int(gigabytes * 1e9))
    assert trials_a_gpu(form, 80_000_000_000) == expected


@pytest.mark.parametrize(("gpus", "has", "trials", "expected"), [
    ("auto", 1.0, 3, 0.3333), ("auto", 1.0, 1, 1.0), ("auto", 0.0, 3, 0.0), (0.5, 0.5, 3, 0.5), (1, 1.0, 3, 1.0),
])  # fmt: skip
def test_what_the_user_gave_is_not_shared(
    tiny_spec: SpecMaker, gpus: float | str, has: float, trials: int, expected: float
) -> None:
    spec = tiny_spec(resources={"gpus": gpus})
    assert Resources(1, has).shared_by(trials, spec).gpus == pytest.approx(expected)


@pytest.mark.parametrize("word", ["on", "auto"])
def test_compilation_for_a_cpu_is_refused_where_there_is_no_compiler(
    tiny_spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    compute = Compute.resolve(tiny_spec(train={"compile": word}), False, False)
    if word == "on":
        with pytest.raises(
            SpecError, match=r"train.compile: needs a C\+\+ compiler, which .*\(got 'on'\); auto, or a compiler"
        ):
            refuse_without_compiler(compute)
    else:
        refuse_without_compiler(compute)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "c++" else None)
    refuse_without_compiler(compute)


def test_forms_are_tried_by_training(tiny_spec: SpecMaker) -> None:
    tuned = chosen(tiny_spec(), Compute("cpu"), (EAGER, CHANNELS_LAST))
    assert tuned.compute.form in (EAGER, CHANNELS_LAST)
    assert [line.split()[1] for line in tuned.lines] == ["eager:", "channels_last:"]


def test_the_lock_keeps_the_form_and_earlier_ones_were_eager() -> None:
    for form in FORMS:
        compute = Compute("cuda", "bf16", 2, form)
        locked = SweepLock(compute.key()).computed
        assert locked is not None and Compute(*locked) == compute
