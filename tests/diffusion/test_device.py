"""What is particular to a GPU, as far as it can be seen without one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raylt.diffusion.compute import Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.device import exact, is_lost, use_tf32
from raylt.errors import DeviceLost, EnvironmentFailure, cause_of
from raylt.store import Store
from raylt.sweep.actor import TrialActor
from raylt.sweep.messages import message_of
from raylt.ticket.find import TicketRunner
from raylt.trial import features
from raylt.trial.inputs import Inputs
from raylt.trial.run import TrialContext, TrialRun
from raylt.trial.score import Scorer
from tests.support.trials import a_trial

MULTIPLIERS = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]


@pytest.fixture(autouse=True)
def _as_it_was():
    before = [multiplier.fp32_precision for multiplier in MULTIPLIERS]
    yield
    for multiplier, precision in zip(MULTIPLIERS, before, strict=True):
        multiplier.fp32_precision = precision


def precisions():
    return {multiplier.fp32_precision for multiplier in MULTIPLIERS}


# --- fp32 and TF32 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_fp32_is_ieee_everywhere_and_tf32_is_asked_for(tiny_spec, precision, expected):
    use_tf32(precision == "fp32")  # whatever the process computed with before
    spec = tiny_spec()
    TrialContext.open(spec, Compute("cpu", precision), Inputs(load_images(spec.data)))
    assert precisions() == {expected}


@pytest.mark.parametrize(
    ("wanted", "cuda", "bf16", "precision"),
    [
        ("auto", False, False, "fp32"),
        ("auto", True, False, "fp32"),
        ("auto", True, True, "bf16"),
        ("fp32", True, True, "fp32"),
        ("tf32", True, True, "tf32"),
        ("tf32", False, False, "fp32"),  # it is computed so, and is called so
        ("bf16", False, False, "bf16"),
    ],
)
def test_a_precision_is_called_what_it_is(tiny_spec, monkeypatch, wanted, cuda, bf16, precision):
    from raylt.diffusion.compute import Compute

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    compute = Compute.local(tiny_spec(train={"precision": wanted}))
    assert compute == Compute("cuda" if cuda else "cpu", precision, 1)
    assert compute.key()["precision"] == precision and precision in str(compute)


@pytest.mark.parametrize("allowed", [True, False])
def test_features_are_exact_whatever_trains(allowed, monkeypatch):
    """Also after torch's new words were used, which its `cudnn.flags` refuses to read."""
    use_tf32(allowed)
    seen = []

    def network(x_NCHW):
        seen.append((precisions(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
        return x_NCHW.float().flatten(1)[:, :4]

    features._in_batches(network, torch.zeros(60, 1, 4, 4, dtype=torch.uint8), torch.device("cpu"), 4)
    assert seen == [({"ieee"}, True, False)] * -(-60 // features._CPU_BATCH)
    assert precisions() == {"tf32" if allowed else "ieee"} and not torch.backends.cudnn.deterministic
    with pytest.raises(ZeroDivisionError), exact():
        _ = 1 / 0
    assert precisions() == {"tf32" if allowed else "ieee"}


# --- a GPU that is lost -------------------------------------------------------------------------------------------------

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"
NO_MEMORY = (
    "CUDA out of memory. Tried to allocate {} MiB. GPU 0 has a total capacity of 79.1 GiB of which {} MiB is free. "
    "Process {} has 70.2 GiB memory in use. Including non-PyTorch memory, this process has 8 GiB memory in use."
)
LOST = [
    torch.AcceleratorError(ILLEGAL),
    torch.AcceleratorError("HIP error: unspecified launch failure"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]
NOT_LOST = [
    torch.OutOfMemoryError(NO_MEMORY.format(2, 1, 77)),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("CUDA error: an illegal memory access was encountered"),
]


def actor_that_meets(tmp_path, error):
    """A `TrialActor` as its process has it, at work on a trial that meets an error."""
    actor = object.__new__(TrialActor)
    trial = a_trial(3, "search", "searched", 0)
    actor._config = {"root": str(tmp_path), "name": "s", "trial": trial.dump()}
    actor._run, actor._log, actor._rounds = None, None, None

    def begin(log):
        raise error

    actor._start = begin
    return actor


@pytest.mark.parametrize("error", LOST, ids=lambda e: str(e)[:60])
def test_a_worker_whose_gpu_is_lost_leaves_its_trial_open(tmp_path, error):
    actor = actor_that_meets(tmp_path, error)
    with pytest.raises(DeviceLost, match=r"^the GPU was lost: ") as raised:
        actor.step()
    assert "\n" not in str(raised.value)
    (log,) = tmp_path.rglob("*.txt")
    assert str(error).splitlines()[-1] in log.read_text()


@pytest.mark.parametrize("error", NOT_LOST, ids=lambda e: str(e)[:60])
def test_any_other_error_is_the_trials_result(tmp_path, error):
    (log,) = (actor_that_meets(tmp_path, error).step(),)
    assert message_of(log).result.state == "FAIL" and log["done"]


def test_a_loss_is_seen_through_what_it_was_wrapped_in():
    try:
        try:
            raise LOST[0]
        except RuntimeError as error:
            raise KeyError("x") from error
    except KeyError as wrapped:
        assert is_lost(wrapped)


# --- memory -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "cause"),
    [
        (
            torch.OutOfMemoryError(NO_MEMORY.format(20, 3, 1234)),
            torch.OutOfMemoryError(NO_MEMORY.format(512, 17, 98765)),
            "OutOfMemoryError: CUDA out of memory",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 8"
            ),
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9"
            ),
            "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
        ),
    ],
)
def test_a_want_of_memory_is_one_cause_whatever_its_sizes(one, other, cause):
    assert str(one) != str(other)
    assert cause_of(one) == cause_of(other) == cause
    with pytest.raises(MemoryError) as raised:
        np.empty(10**15)
    assert "PiB" not in cause_of(raised.value) and "TiB" not in cause_of(raised.value)
    ours = EnvironmentFailure("its process ended (killed, out of memory, or a crash)")
    assert cause_of(ours) == str(ours)


def test_five_equal_wants_of_memory_end_the_sweep(tiny_spec, tmp_path):
    from raylt.store import Ledger
    from raylt.sweep.dispatch import MAX_EQUAL_FAILURES, Dispatcher
    from raylt.trial.run import failure

    spec = tiny_spec()
    dispatcher = Dispatcher(spec, Ledger(Store(str(tmp_path)), "tiny", lambda: None), 1, lambda trial, result: None)
    for number in range(MAX_EQUAL_FAILURES):
        assert dispatcher.stopped_by is None
        dispatcher.ledger.submit(a_trial(number, "search", "searched", 0))
        dispatcher.finish(number, failure(torch.OutOfMemoryError(NO_MEMORY.format(number, 2 * number, 77 + number))))
    assert dispatcher.stopped_by == "OutOfMemoryError: CUDA out of memory"


def test_training_and_scoring_leave_nothing_in_the_allocators_cache(tiny_spec, warm_root, monkeypatch):
    """Trials that share a GPU have what the others do not hold."""
    happened = []
    monkeypatch.setattr(Compute, "release_memory", lambda self: happened.append("release"))
    monkeypatch.setattr(Scorer, "score", lambda *a, real=Scorer.score: (happened.append("score"), real(*a))[1])
    rounds = TicketRunner.rounds

    def spied(self):
        for trained in rounds(self):
            happened.append("train")
            yield trained

    monkeypatch.setattr(TicketRunner, "rounds", spied)
    spec = tiny_spec()
    run = TrialRun(
        a_trial(0, "dense", None, 0), TrialContext(spec, Compute(), Inputs(load_images(spec.data))), Store(str(warm_root))
    )
    assert len(list(run)) == 1
    assert happened == ["train", "release", "score", "release"]


def test_only_a_gpu_is_given_memory_back(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(empty_cache=lambda: emptied.append(1)))
    Compute("cpu").release_memory()
    assert not emptied
    Compute("cuda").release_memory()
    assert emptied == [1]
