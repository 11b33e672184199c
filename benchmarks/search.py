"""Does similarity guide the search? Real searches of digits and many on a surrogate of them; see docs/search.md.

    python benchmarks/search.py [--quick] [--seed S] -o FILE      # everything: hours; run again, it goes on
    python benchmarks/search.py --page                            # docs/search.md and its figure from the kept FILE

Real searches are `raylt sweep`s in one store (--root). The surrogate is fitted to their trials.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from guidance.arms import ARMS, UNSHARED, arm_specs, design_specs

KEPT = Path(__file__).parent / "results" / "search.json"
PARTS = ("arms", "designs", "bends", "surrogate", "limits", "times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="one seed, few trials of few steps: shows that it runs, measures nothing"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first training seed")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--trials", type=int, default=16, help="search trials of an arm")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="sweeps at a time, one core each")
    parser.add_argument("--root", type=Path, help="where stores and specs lie; left out: ./search-benchmark")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run; the others stay as FILE has them")
    parser.add_argument("--page", action="store_true", help="write docs/search.md from the kept file, and nothing else")
    parser.add_argument("-o", "--output", type=Path, help="where the figures go; of --page: where they are")
    given = parser.parse_args()
    if given.page:
        from guidance.page import write_page

        return write_page(json.loads((given.output or KEPT).read_text()))
    if given.output is None:
        parser.error("-o FILE: where the figures go (the published ones are in benchmarks/results/search.json)")
    if given.quick:
        given.seeds, given.trials = 1, 6
    measured = measure(given)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(measured, indent=1, allow_nan=False) + "\n")
    return None


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Every part that is asked for; the others are taken from the file, where it has them."""
    from guidance import agreement, bends, real, surrogate_arms, times

    parts = given.only.split(",")
    seeds = range(given.seed, given.seed + given.seeds)
    root = given.root or Path("search-benchmark-quick" if given.quick else "search-benchmark")
    arms = arm_specs(seeds, given.trials, quick=given.quick)
    designs = design_specs(seeds, 6 if given.quick else 24, quick=given.quick)
    found: dict[str, Any] = {"schema": 1, "quick": given.quick, "problem": next(iter(arms.values())), "arms": {}}
    if set(parts) != set(PARTS) and given.output.exists():
        found = json.loads(given.output.read_text())
    wanted = [*(arms.values() if "arms" in parts else ()), *(designs.values() if "designs" in parts else ())]
    real.run_all(wanted, root, given.jobs)
    if "arms" in parts:
        runs = {arm: [real.read_run(f"{arm}-{seed}", root) for seed in seeds] for arm in ARMS}
        found["arms"] = {arm: {"what": what, "search": keys, "real": {"runs": runs[arm]}} for arm, (what, keys) in ARMS.items()}
    if "designs" in parts:
        found["agreement"] = agreement.agreement({name: real.read_run(name, root) for name in designs}, UNSHARED)
    if "bends" in parts:
        found["bends"] = bends.measure_all(bends.jobs(given.seed, quick=given.quick), root, given.jobs)
    if "surrogate" in parts:
        surrogate_arms.add(found, 2 if given.quick else 50, given.jobs)
    if "limits" in parts:
        found["limits"] = surrogate_arms.limits(found, 100 if given.quick else 4000)
    if "times" in parts:
        found["proposal_times"] = times.proposal_times(50 if given.quick else 1000)
    return found


if __name__ == "__main__":
    main()
