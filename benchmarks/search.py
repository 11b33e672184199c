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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="one seed, few trials of few steps: shows that it runs, measures nothing"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first training seed")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--trials", type=int, default=16, help="search trials of an arm")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="sweeps at a time, one core each")
    parser.add_argument("--root", type=Path, default=Path("search-benchmark"), help="where stores and specs lie")
    parser.add_argument("--only", default="arms,designs,bends,surrogate", help="parts to run")
    parser.add_argument("--page", action="store_true", help="write docs/search.md from the kept file, and nothing else")
    parser.add_argument("-o", "--output", type=Path, default=KEPT)
    given = parser.parse_args()
    if given.page:
        from guidance.page import write_page

        return write_page(json.loads(given.output.read_text()))
    if given.quick:
        given.seeds, given.trials = 1, 6
    measured = measure(given)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(measured, indent=1, allow_nan=False) + "\n")
    return None


def measure(given: argparse.Namespace) -> dict[str, Any]:
    from guidance import agreement, bends, real, surrogate_arms

    seeds, parts = range(given.seed, given.seed + given.seeds), given.only.split(",")
    arms = arm_specs(seeds, given.trials, quick=given.quick)
    designs = design_specs(seeds, 6 if given.quick else 24, quick=given.quick)
    wanted = {**(arms if "arms" in parts else {}), **(designs if "designs" in parts else {})}
    real.run_all(list(wanted.values()), given.root, given.jobs)
    found: dict[str, Any] = {"schema": 1, "quick": given.quick, "problem": next(iter(arms.values())), "arms": {}}
    if "arms" in parts:
        runs = {arm: [real.read_run(f"{arm}-{seed}", given.root) for seed in seeds] for arm in ARMS}
        found["arms"] = {
            arm: {"what": what, "search": search, "real": {"runs": runs[arm]}} for arm, (what, search) in ARMS.items()
        }
    if "designs" in parts:
        found["agreement"] = agreement.agreement({name: real.read_run(name, given.root) for name in designs}, UNSHARED)
    if "bends" in parts:
        jobs = bends.jobs(given.seed, quick=given.quick)
        found["bends"] = bends.measure_all(jobs, given.root, given.jobs)
    if "surrogate" in parts:
        surrogate_arms.add(found, 2 if given.quick else 50, given.jobs)
    return found


if __name__ == "__main__":
    main()
