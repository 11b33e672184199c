"""docs/search.md: its tables and its figure, from what was measured. The words around them are the page's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pages import paragraph, percent, plus_minus, table, with_section
from scipy.stats import spearmanr

from guidance import curves
from guidance.arms import ARMS
from guidance.bends import FIRST
from guidance.surrogate_arms import surrogate_arms

DOCS = Path(__file__).parents[2] / "docs"
FIGURE = "search-hypervolume.png"
Row = Mapping[str, Any]


def write_page(found: Row) -> None:
    """Replace what stands between the markers of docs/search.md, and draw its figure."""
    from guidance.picture import hypervolume_png

    page = DOCS / "search.md"
    (DOCS / "results" / FIGURE).write_bytes(hypervolume_png(found))
    text = page.read_text()
    for section in (arms, placebos, profiles, limits, bends, real, surrogate, times, agreement, savings):
        text = with_section(text, section.__name__, "\n".join(section(found)))
    page.write_text(text)


def arms(found: Row) -> Iterator[str]:
    """What each arm is, in the words of the code, and where it was measured."""
    known = {name: arm.what for name, arm in surrogate_arms().items()} | {name: what for name, (what, _) in ARMS.items()}
    yield from table(["arm", "what it is", "measured"], [[name, known[name], _measured(found["arms"][name])] for name in known])


def _measured(arm: Row) -> str:
    where = [name for name in ("real", "surrogate") if name in arm]
    return where[0] if len(where) == 1 else "both"


def placebos(found: Row) -> Iterator[str]:
    """Steps of similarity and of what it is held against, to the hypervolume that random search ends with."""
    runs, arms = _real_runs(found), found["arms"]
    yield from table(
        ["arm", f"real, {len(runs['random'])} seeds", f"surrogate, {found['surrogate']['seeds']} seeds", "its end"],
        [
            [
                name,
                _share(curves.against_random(runs[name], runs["random"])),
                _share(arms[name]["surrogate"]["against_random"]),
                plus_minus(arms[name]["surrogate"]["hypervolume"]),
            ]
            for name in ("similarity", "gamma0", "shuffled", "size")
        ],
    )


def _real_runs(found: Row) -> dict[str, Sequence[Row]]:
    return {name: arm["real"]["runs"] for name, arm in found["arms"].items() if "real" in arm}


def real(found: Row) -> Iterator[str]:
    arms = _real_runs(found)
    seeds = [run["seed"] for run in arms["random"]]
    yield f"![Hypervolume against training steps](results/{FIGURE})\n"
    yield paragraph(f"Training seeds {', '.join(map(str, seeds))}; mean and 95 % interval over them.")
    body = []
    for name, runs in arms.items():
        ends = [curves.curve(run)[1][-1] for run in runs]
        stopped = sum(trial["state"] == "PRUNED" for run in runs for trial in run["trials"])
        steps = np.mean([curves.curve(run)[0][-1] for run in runs])
        each = [f"{end:.4f}" for end in ends]
        body.append([name, plus_minus(curves.interval(ends)), *each, f"{steps:,.0f}", str(stopped)])
    yield from table(["arm", "hypervolume", *(f"seed {seed}" for seed in seeds), "steps", "stopped"], body)
    yield "The lowest loss that each arm found, against ERK's of the same seed:\n"
    yield from table(
        ["arm", "of all its tickets", "of those no dearer than ERK"],
        [[name, *(_chosen_against_erk(runs, at_its_flops=limit) for limit in (False, True))] for name, runs in arms.items()],
    )
    yield "The rules alone, one ticket each:\n"
    runs = arms["random"]
    rules = {rule: [run["baselines"][rule] for run in runs] for rule in runs[0]["baselines"]}
    yield from table(
        ["rule", "hypervolume", "loss, against ERK", "FLOPs, against ERK", "steps"],
        [
            [
                rule,
                plus_minus(
                    curves.interval(
                        [
                            curves.hypervolume([(t["loss"], t["flops"])], tuple(r["reference"]))
                            for t, r in zip(mine, runs, strict=True)
                        ]
                    )
                ),
                percent(_against(mine, rules["erk"], "loss")),
                percent(_against(mine, rules["erk"], "flops")),
                f"{mine[0]['steps']:,}",
            ]
            for rule, mine in rules.items()
        ],
    )


def profiles(found: Row) -> Iterator[str]:
    """How alike a profile is under two training seeds, and how like the FLOPs of a weight."""
    runs = found["arms"]["similarity"]["real"]["runs"]
    cost = [found["arms"]["cost"]["real"]["runs"][0]["profile"][group] for group in runs[0]["blocks"]]
    body = []
    for name in ("excess", "kappa", "movement"):
        mine = [[numbers[name] for numbers in run["blocks"].values()] for run in runs]
        seeds = [spearmanr(a, b).statistic for a, b in itertools.combinations(mine, 2)]
        body.append([name, _each(seeds), _each([spearmanr(values, cost).statistic for values in mine])])
    yield "Spearman's rank correlation of a profile over the six blocks:\n"
    yield from table(["profile", "between training seeds", "with the FLOPs of a weight, each seed"], body)


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


def _chosen_against_erk(runs: Sequence[Row], *, at_its_flops: bool) -> str:
    """The lowest loss found, by ERK's of the same seed; among tickets that cost no more than it, or all."""
    changes = []
    for run in runs:
        erk = run["baselines"]["erk"]
        best = curves.chosen(run, erk["flops"] if at_its_flops else float("inf"))
        if best is None:
            return "-"
        changes.append(best["loss"] / erk["loss"] - 1)
    return percent(curves.interval(changes))


def _against(mine: Sequence[Row], base: Sequence[Row], key: str) -> dict[str, float | None]:
    return curves.interval([m[key] / b[key] - 1 for m, b in zip(mine, base, strict=True)])


def surrogate(found: Row) -> Iterator[str]:
    quality = found["surrogate"]
    yield f"Fitted to {quality['trials']} trials. How well it does on trials that a fit did not see (ten folds):\n"
    yield from table(
        ["loss", "R²", "rank correlation", "spread", "noise"],
        [
            [name, f"{q['r2']:.2f}", f"{q['spearman']:.2f}", f"{100 * q['sd']:.2f} %", f"{100 * q['noise_sd']:.2f} %"]
            for name, q in quality["rounds"].items()
        ],
    )
    yield "By how much a fit without the trials of one arm misses theirs, in the last round:\n"
    yield from table(
        ["arm", "bias ± standard deviation"],
        [[name, f"{100 * m['bias']:+.1f} ± {100 * m['sd']:.1f} %"] for name, m in quality["arms"].items()],
    )
    yield f"The searches on it, {quality['seeds']} seeds an arm, the highest hypervolume first:\n"
    arms = {name: arm for name, arm in found["arms"].items() if "surrogate" in arm}
    in_order = sorted(arms, key=lambda name: -arms[name]["surrogate"]["hypervolume"]["mean"])
    yield from table(
        ["arm", "hypervolume", "to random's", "steps in all", "chosen, %", "at ERK's FLOPs, %"],
        [
            [
                name,
                plus_minus(s["hypervolume"]),
                _share(s["against_random"]),
                f"{s['steps']:,.0f}",
                percent(s["chosen"], 2).removesuffix(" %"),
                percent(s["chosen_at_base_flops"], 2).removesuffix(" %"),
            ]
            for name in in_order
            for s in (arms[name]["surrogate"],)
        ],
    )


def limits(found: Row) -> Iterator[str]:
    known = found["limits"]
    yield f"The best of {known['bends']:,} random bends by the surrogate's mean, and how it bends each block:\n"
    header = ["among", "loss by ERK's", "FLOPs by ERK's", *known["any"]["bend"]]
    rows = [("all", known["any"]), ("no dearer than ERK", known["at_base_flops"])]
    yield from table(
        header,
        [
            [
                name,
                f"{100 * best['loss']:+.2f} %",
                f"{100 * best['flops']:+.0f} %",
                *(f"{b:+.2f}" for b in best["bend"].values()),
            ]
            for name, best in rows
        ],
    )


def _share(against: Row) -> str:
    def word(value: float | None) -> str:
        return "never" if value is None else f"{value:.2f}"

    return f"{word(against['ratio'])} ({word(against['low'])} to {word(against['high'])})"


def times(found: Row) -> Iterator[str]:
    known = found["proposal_times"]
    yield f"Time of one proposal once a study has {known['trials']:,} trials (median of four, on one core):\n"
    yield from table(["sampler", "seconds"], [[name, f"{seconds:.2g}"] for name, seconds in known["seconds"].items()])


def savings(found: Row) -> Iterator[str]:
    """Each saving as one arm's steps by another's, to one and the same hypervolume."""
    yield from table(["what", "measured", "with", "without", "ratio of steps"], list(_saving_rows(found)))


def _saving_rows(found: Row) -> Iterator[list[str]]:
    pairs = [
        ("similarity, against no profile", "similarity", "gamma0"),
        ("similarity, against a shuffled profile", "similarity", "shuffled"),
        ("similarity, against block sizes", "similarity", "size"),
        ("movement, against no profile", "movement", "gamma0"),
        ("movement, against the FLOPs of a weight", "movement", "cost"),
        ("Gaussian process for TPE, no profile", "gp-gamma0", "gamma0"),
        ("rungs, loss and FLOPs", "rungs", "similarity"),
        ("rungs, loss alone", "loss-rungs", "loss"),
    ]
    for what, mine, other in pairs:
        a, b = found["arms"][mine]["surrogate"]["against_random"], found["arms"][other]["surrogate"]["against_random"]
        ratio = "-" if a["ratio"] is None or b["ratio"] is None else f"{a['ratio'] / b['ratio']:.2f}"
        yield [what, "surrogate", mine, other, ratio]
    bases = [found["arms"][name]["real"]["runs"] for name in ("random", "random-uniform")]
    yield ["base", f"real, {len(bases[0])} seeds", "random", "random-uniform", _share(curves.against_random(*bases))]
    runs = found["arms"]["gamma0"]["real"]["runs"]
    own = sum(run["start_steps"] + sum(t["steps"] for t in run["trials"]) for run in runs)
    rounds = len(runs[0]["trials"][0]["losses"])
    apart = sum(len(run["trials"]) for run in runs) * rounds * found["problem"]["train"]["steps"]
    yield ["stages trained once", "counted, gamma0", "sharing", "each trial alone", f"{own / apart:.2f}"]


def agreement(found: Row) -> Iterator[str]:
    known = found["agreement"]
    yield f"Spearman's rank correlation over {known['allocations']} random allocations over ERK, none of them broken:\n"
    yield from table(
        ["between", "mean", "lowest", "highest", "pairs"],
        [
            [name, f"{value['mean']:.2f}", f"{value['low']:.2f}", f"{value['high']:.2f}", str(value["pairs"])]
            for name, value in known.items()
            if isinstance(value, dict) and "pairs" in value
        ],
    )
    spread, sharing = known["spread"], known["sharing"]
    yield "Their spread:\n"
    yield from table(
        ["number", "standard deviation by mean"], [[name, f"{100 * spread[name]:.1f} %"] for name in ("loss", "FID")]
    )
    yield "A shared first round, against searches that share none:\n"
    yield from table(
        ["what", "number"],
        [
            ["rank correlation of the losses", f"{sharing['rank']:.2f}"],
            ["mean change of the losses", f"{100 * sharing['mean change']:+.2f} %"],
            ["what choosing by shared losses costs of the best loss", f"{100 * sharing['regret']:.2f} %"],
            ["training steps with sharing", f"{sharing['steps with']:,}"],
            ["training steps without", f"{sharing['steps without']:,}"],
        ],
    )


def bends(found: Row) -> Iterator[str]:
    rows: dict[str, list[Row]] = {}
    known = [*_second_proposals(found), *found["bends"]]
    for row in known:
        rows.setdefault(row["problem"], []).append(row)
    profiles = _profiles(known)
    first, others = rows[FIRST], {problem: mine for problem, mine in rows.items() if problem != FIRST}
    for what, key in (("loss", "loss"), ("FLOPs", "flops")):
        yield f"Change of {what}, mean over seeds:\n"
        counts = ["seeds", *(str(len(mine)) for mine in rows.values())]
        means = [[profile, *(_mean(mine, profile, key) for mine in rows.values())] for profile in profiles]
        yield from table(["profile", *map(_short, rows)], [counts, *means] if key == "loss" else means)
    yield f"The excess against its placebos ({FIRST}), paired by seed, with 95 % intervals:\n"
    against = [[placebo, percent(_between(first, "excess", placebo), 2)] for placebo in ("size", "shuffled")]
    yield from table(["placebo", "change of loss"], against)
    for what, key in (("loss", "loss"), ("FLOPs", "flops")):
        yield f"Change of {what} of each seed, in % ({FIRST}):\n"
        yield from table(
            ["profile", *(f"seed {row['seed']}" for row in first)],
            [[profile, *(_each_change([row], profile, key) for row in first)] for profile in profiles],
        )
    for what, key in (("loss", "loss"), ("FLOPs", "flops")):
        yield f"Change of {what} of each seed, in % (the other problems):\n"
        body = [[profile, *(_each_change(mine, profile, key) for mine in others.values())] for profile in profiles]
        yield from table(["profile", *map(_short, others)], [cells for cells in body if set(cells[1:]) != {"-"}])


def _short(problem: str) -> str:
    return problem.removeprefix("digits, ").replace(" 16x16", "")


def _second_proposals(found: Row) -> Iterator[Row]:
    """The searches began with just this: their first trial is the base, their second the bend along the profile alone."""
    arms = {"similarity": "excess", "shuffled": "shuffled", "size": "size", "movement": "movement", "cost": "cost"}
    for index, run in enumerate(found["arms"]["similarity"]["real"]["runs"]):
        mine = {name: found["arms"][arm]["real"]["runs"][index]["trials"][1] for arm, name in arms.items()}
        yield {"problem": FIRST, "seed": run["seed"], "bends": {"base": run["trials"][0], **mine}}


def _profiles(rows: Iterable[Row]) -> list[str]:
    return [name for name in dict.fromkeys(_family(name) for row in rows for name in row["bends"]) if name != "base"]


def _family(name: str) -> str:
    """`shuffled 0` and `shuffled 1` are two draws of one placebo."""
    return name.rstrip(" 0123456789")


def _between(rows: Sequence[Row], profile: str, other: str) -> dict[str, float | None]:
    """The loss of one bend by that of another, of the seeds that have both."""
    pairs = ((_changes([row], profile, "loss"), _changes([row], other, "loss")) for row in rows)
    return curves.interval([(1 + mine[0]) / (1 + theirs[0]) - 1 for mine, theirs in pairs if mine and theirs])


def _changes(rows: Sequence[Row], profile: str, key: str) -> list[float]:
    """Against the base, of each seed that has the profile; placebos of one seed are averaged first."""
    found = []
    for row in rows:
        mine = [bend[key] for name, bend in row["bends"].items() if _family(name) == profile]
        if mine:
            found.append(float(np.mean(mine)) / row["bends"]["base"][key] - 1)
    return found


def _mean(rows: Sequence[Row], profile: str, key: str) -> str:
    """Mean over seeds of the change against the base."""
    changes = _changes(rows, profile, key)
    return f"{100 * float(np.mean(changes)):+.1f} %" if changes else "-"


def _each_change(rows: Sequence[Row], profile: str, key: str) -> str:
    """The change against the base, of each seed that has the profile."""
    return ", ".join(f"{100 * change:+.1f}" for change in _changes(rows, profile, key)) or "-"
