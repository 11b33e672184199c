"""What commands cost as a sweep grows: CPU and memory of each, at 100, 1 000 and 10 000 finished trials.

    python benchmarks/growth.py [--quick] [--trials 100,1000] [--only status,report]   # writes benchmarks/results/growth.json

Every command is a process of its own, from its start to its end, on a local store that `longsweep.py` has written.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longsweep import write_stages, write_sweep
from matplotlib.figure import Figure
from pages import table

RESULTS = Path(__file__).parent / "results" / "growth.json"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "growth.png"
PROPOSAL = """
import sys, time
from raylt.store.sweep_state import stored_spec
from raylt.store.ledger import Ledger
from raylt.search.proposal import Proposer
from raylt.store.stages import Store
store = Store(sys.argv[1]); spec = stored_spec(store, "long"); ledger = Ledger(store, "long")
spec = spec.model_copy(update={"search": spec.search.model_copy(update={"sampler": sys.argv[2]})})
history = [(trial, ledger.results[n]) for n, trial in sorted(ledger.submitted.items()) if trial.is_search]
proposer, times = Proposer(spec, 10), []
for back in (4, 3, 2, 1):  # the first reads all of the history, as a driver does once
    began = time.process_time()
    proposer.propose(len(history) - back, history[:len(history) - back])
    times.append(time.process_time() - began)
print(sorted(times[1:])[1])
"""
STUDY = """
import sys, tempfile
from pathlib import Path
from raylt.store.sweep_state import stored_spec
from raylt.store.ledger import Ledger
from raylt.search.study import StudyFile
from raylt.store.stages import Store
store = Store(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    StudyFile(stored_spec(store, "long"), Path(folder) / "study.db").sync(Ledger(store, "long"))
"""
INDEX = """
import sys
from raylt.store.ledger import Ledger
from raylt.store.stages import Store
ledger = Ledger(Store(sys.argv[1]), "long", lambda: None)
ledger._write_index()  # as the driver does after a trial
"""
SAMPLERS = ("random", "tpe", "similarity", "nsga2")
RAYLT = ["-m", "raylt.cli"]
COMMANDS = {
    "status": [*RAYLT, "status", "long", "--local", "--root"],
    "results --json": [*RAYLT, "results", "long", "--json", "--local", "--root"],
    "report": [*RAYLT, "report", "long", "--local", "-o", os.devnull, "--root"],
    "study.db": ["-c", STUDY],
    "store verify": [*RAYLT, "store", "verify", "--local", "--root"],
}


def cost_of(arguments: list[str]) -> dict[str, float]:
    """CPU seconds and peak memory of a Python process."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments[-3:]}: {said[-2000:]}")
    return {"cpu_s": round(usage.ru_utime + usage.ru_stime, 2), "mb": round(usage.ru_maxrss / 1024)}


def measured(root: Path, trials: int, wanted: list[str]) -> dict[str, object]:
    write_sweep(root, trials)
    costs: dict[str, object] = {"index, once": cost_of(["-c", INDEX, str(root)])}
    for name, command in COMMANDS.items():
        if not wanted or name in wanted:
            costs[name] = cost_of([*command, str(root)])
    for sampler in SAMPLERS:
        if not wanted or "proposal" in wanted:
            said = subprocess.run([sys.executable, "-c", PROPOSAL, str(root), sampler], capture_output=True, check=True).stdout
            costs[f"a proposal, {sampler}"] = {"cpu_s": round(float(said), 4)}
    if not wanted or "record" in wanted:  # MLflow, from nothing
        with tempfile.TemporaryDirectory(prefix="raylt-mlflow-") as folder:
            uri = f"sqlite:///{folder}/mlflow.db"
            costs["record"] = cost_of([*RAYLT, "record", "long", "--local", "--uri", uri, "--root", str(root)])
            costs["record, again"] = cost_of([*RAYLT, "record", "long", "--local", "--uri", uri, "--root", str(root)])
    if not wanted or "store du" in wanted:
        write_stages(root, 2 * trials)
        costs["store du"] = cost_of([*RAYLT, "store", "du", "--local", "--root", str(root)])
    return costs


def growth_section() -> Iterator[str]:
    """Of docs/performance.md: a table and a plot, of what is kept in `RESULTS`."""
    document = json.loads(RESULTS.read_text())
    sizes = sorted(document, key=int)
    names = list(dict.fromkeys(name for size in sizes for name in document[size]))
    yield from ("## As a sweep grows", "")
    yield "CPU seconds and memory of a command, by the number of finished trials: `benchmarks/growth.py`."
    yield from ("", "![CPU seconds by the number of trials](figures/growth.png)", "")
    yield from table(
        ["command", *(f"{int(size):,}" for size in sizes)],
        ([name, *(_cell(document[size].get(name)) for size in sizes)] for name in names),
    )
    FIGURE.write_bytes(_plot(document, sizes, names))


def _cell(cost: dict[str, float] | None) -> str:
    if cost is None:
        return "not run"
    return f"{cost['cpu_s']:g} s" + (f", {cost['mb']:.0f} MB" if "mb" in cost else "")


def _plot(document: dict[str, Any], sizes: list[str], names: list[str]) -> bytes:
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(names):
        points = [(int(size), document[size][name]["cpu_s"]) for size in sizes if name in document[size]]
        axes.loglog(*zip(*points, strict=True), marker="os^DvPX<>ph*d"[index % 13], label=name, color=f"C{index % 10}")
    axes.set(xlabel="finished trials", ylabel="CPU seconds")
    figure.legend(loc="outside right upper", fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 and 300 trials, to see that it works")
    parser.add_argument("--trials", default="100,1000,10000", help="how many, with commas")
    parser.add_argument("--only", default="", help="commands to measure, with commas; left out: all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    document = json.loads(args.out.read_text()) if args.out.exists() else {}
    for trials in [100, 300] if args.quick else map(int, args.trials.split(",")):
        with tempfile.TemporaryDirectory(prefix="raylt-growth-") as folder:
            found = measured(Path(folder), trials, [name for name in args.only.split(",") if name])
        document[str(trials)] = {**document.get(str(trials), {}), **found}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n")
        print(trials, json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
