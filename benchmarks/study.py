"""The tables and figures of docs/results.md, from a confirmed sweep: nothing in them is typed by hand.

    python benchmarks/study.py digits-results [--root STORE]

keeps the sweep's results in docs/results/NAME.json (with --root: taken from that store), draws docs/results/NAME-*.png, and
replaces what stands between the markers of NAME in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
Row = Mapping[str, Any]
CONTROLS = ("reinit", "shuffled", "random", "small-dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--root", help="the store to take the results from; left out: what is kept is drawn again")
    given = parser.parse_args()
    kept = DOCS / "results" / f"{given.name}.json"
    if given.root:
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(results_of(given.name, given.root), indent=1, allow_nan=False) + "\n")
    document = json.loads(kept.read_text())
    draw(document, kept.parent)
    page = DOCS / "results.md"
    page.write_text(with_section(page.read_text(), given.name, "\n".join(section(document))))


def results_of(name: str, root: str) -> dict[str, Any]:
    """What the page rests on. Trials are left out: they are in the store."""
    from raylt.document import results, stored_spec
    from raylt.ledger import existing
    from raylt.store import Store

    store = Store(root)
    ledger = existing(store, name)
    document = results(stored_spec(store, name), ledger)
    lock = ledger.read("spec.lock.json") or {}
    numbers = ("name", "digest", "state", "protocols", "counts", "steps", "similarity", "confirmation", "objectives")
    slim = {key: document[key] for key in numbers}
    spec, order = stored_spec(store, name), list(document["similarity"])
    dense = next(trial["flops_dense"] for trial in document["trials"] if trial["kind"] == "dense")
    slim["similarity"] = {block: document["similarity"][block] for block in sorted(order, key=spec.blocks.index)}
    return {
        **slim,
        "flops_dense": dense,
        "final_density": spec.ticket.final_density,
        "versions": lock.get("versions"),
        "device": lock.get("device"),
        "trials": [],
    }


def draw(document: Row, folder: Path) -> None:
    from raylt.figures import similarity_heat_png
    from raylt.panels import confirmation_png

    (folder / f"{document['name']}-confirmation.png").write_bytes(confirmation_png(document))
    if any(block["kappa"] is not None for block in document["similarity"].values()):
        (folder / f"{document['name']}-similarity.png").write_bytes(similarity_heat_png(document))


def with_section(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"docs/results.md lacks {begin} ... {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def section(document: Row) -> Iterable[str]:
    rows, final = document["confirmation"], document["protocols"]["final"]
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    counts = document["counts"]
    yield f"{counts['complete']} of {counts['asked']} trials are complete, {counts['failed']} failed ({document['state']})."
    yield f"Fresh seeds: {', '.join(map(str, seeds))}. FID: {final['samples']} samples by {final['sampler']} in"
    yield f"{final['steps']} steps, {final['features']} features, all training images. ± is half of a 95 % interval."
    yield ""
    for steps in sorted({row["train_steps"] for row in rows}, reverse=True):
        mine = [row for row in rows if row["train_steps"] == steps]
        yield f"### {steps:,} steps"
        yield ""
        yield from tickets_table(mine, document["flops_dense"])
        yield from controls_table(mine)
        yield from uniform_table(mine)
    yield f"![Loss and FID against density](results/{document['name']}-confirmation.png)"
    yield ""
    yield from similarity_table(document)


def tickets_table(rows: Sequence[Row], flops_dense: float) -> Iterable[str]:
    dense = next(row for row in rows if row["rule"] is None)
    loss, fid = dense["loss"], dense["fid"]
    yield f"Dense: loss {interval(loss)} (sd {loss['sd']:.4f}), FID {interval(fid, 0)} (sd {fid['sd']:.0f})."
    yield ""
    yield "| density | rule | FLOPs | loss | - dense | verdict | FID | - dense | verdict |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        if row["rule"] is not None and row["control"] is None:
            loss, fid = row["vs_dense"]["loss"], row["vs_dense"]["fid"]
            broken = f" ({row['broken']} broken)" if row["broken"] else ""
            cells = [
                *(share(row["density"]), row["rule"], share(row["flops"] / flops_dense)),
                *(interval(row["loss"]) + broken, interval(loss, 4, sign=True), loss["verdict"]),
                *(interval(row["fid"], 0), interval(fid, 0, sign=True), fid["verdict"]),
            ]
            yield f"| {' | '.join(cells)} |"
    yield ""


def controls_table(rows: Sequence[Row]) -> Iterable[str]:
    of = sorted({(row["round"], row["rule"]) for row in rows if row["control"] is not None})
    if not of:
        return
    yield "Controls, loss and FID minus their ticket's (paired by seed):"
    yield ""
    yield "| ticket | number | " + " | ".join(CONTROLS) + " |"
    yield "|---|---|---|---|---|---|"
    for index, rule in of:
        ticket = next(row for row in rows if (row["round"], row["rule"], row["control"]) == (index, rule, None))
        found = {row["control"]: row for row in rows if (row["round"], row["rule"]) == (index, rule) and row["control"]}
        for name, digits in (("loss", 4), ("fid", 0)):
            cells = [
                f"{interval(found[c]['vs_ticket'][name], digits, sign=True)} {found[c]['vs_ticket'][name]['verdict']}"
                for c in CONTROLS
                if c in found
            ]
            yield f"| {rule}, {share(ticket['density'])} | {name} | {' | '.join(cells)} |"
    yield ""


def uniform_table(rows: Sequence[Row]) -> Iterable[str]:
    others = [row for row in rows if "vs_uniform" in row]
    if not others:
        return
    yield "Loss minus the uniform rule's (paired by seed), at equal density and at equal FLOPs:"
    yield ""
    yield "| density | rule | at equal density | verdict | at equal FLOPs | verdict |"
    yield "|---|---|---|---|---|---|"
    for row in others:
        same, flops = row["vs_uniform"]["loss"], row["vs_uniform_at_flops"]["loss"]
        at_flops = [interval(flops, 4, sign=True), flops["verdict"]] if flops["n"] else ["outside", "-"]
        cells = [share(row["density"]), row["rule"], interval(same, 4, sign=True), same["verdict"], *at_flops]
        yield f"| {' | '.join(cells)} |"
    yield ""


def similarity_table(document: Row) -> Iterable[str]:
    blocks = {block: found for block, found in document["similarity"].items() if found["kappa"] is not None}
    if not blocks:
        return
    pairs = max(found["pairs"] for found in blocks.values())
    yield f"### Similarity of tickets at {share(document['final_density'])}, {pairs} pairs of pilots from one start"
    yield ""
    yield "| block | kappa | with the start | excess | given the start | of movement masks | z |"
    yield "|---|---|---|---|---|---|---|"
    for block, found in blocks.items():
        low = f" ({found['kappa_low']:.2f} to {found['kappa_high']:.2f})" if found["kappa_low"] is not None else ""
        rest = (found[key] for key in ("kappa_start", "excess", "kappa_partial", "kappa_movement"))
        yield f"| {block} | {found['kappa']:.2f}{low} | {' | '.join(f'{x:.2f}' for x in rest)} | {found['z']:.0f} |"
    yield ""
    yield f"![Similarity by block](results/{document['name']}-similarity.png)"
    yield ""


def interval(found: Row, digits: int = 4, sign: bool = False) -> str:
    """mean +- half the width of its interval."""
    if found["mean"] is None:
        return "-"
    mean = f"{found['mean']:{'+' if sign else ''}.{digits}f}"
    return f"{mean} (1 seed)" if found["low"] is None else f"{mean} ± {found['high'] - found['mean']:.{digits}f}"


def share(value: float) -> str:
    return f"{100 * value:.3g} %"


if __name__ == "__main__":
    main()
