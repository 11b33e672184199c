"""The names of a store's files: where each lies, of a sweep and of a stage."""

from __future__ import annotations

# Of a sweep, in sweeps/NAME.
SPEC_FILE, SIMILARITY_FILE, RUNS_FILE = "spec.yaml", "similarity.json", "mlflow.json"
LOCK_FILE, LOCK_COPY = "spec.lock.json", "spec.lock.copy.json"
FOLDERS = ("trials", "index", "lease")
SET_ASIDE = ".damaged"  # ends the name of a trial's folder of which nobody knows what the trial was

# Of a stage, by its kind.
START = "start.safetensors"  # groups: w, m, v, n
TRAINED = "trained.safetensors"  # groups: weights, ema; of pruned layers the kept values alone
MASK = "mask.safetensors"  # group: mask
TICKET = "ticket.safetensors"
GRID, SAMPLES = "grid.safetensors", "samples.npz"
STATISTICS, CLASSIFIER = "statistics.safetensors", "weights.safetensors"


def asked_path(name: str, number: int) -> str:
    return f"sweeps/{name}/trials/{number:05d}/asked.json"


def result_path(name: str, number: int) -> str:
    return f"sweeps/{name}/trials/{number:05d}/result.json"


def lease_path(name: str) -> str:
    return f"sweeps/{name}/lease.json"


def stop_path(name: str) -> str:
    return f"sweeps/{name}/stop.json"


def epoch_path(name: str, epoch: int) -> str:
    return f"sweeps/{name}/lease/{epoch:05d}.json"
