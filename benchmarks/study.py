"""The tables and figures of docs/results.md, from a confirmed sweep: nothing in them is typed by hand.

    python benchmarks/study.py digits-results                                   # from docs/results/digits-results.json
    python benchmarks/study.py digits-results --root STORE [--beside OTHER]     # from a store, which makes that file anew

draws docs/results/NAME-*.png, and replaces what stands between the markers of NAME in docs/results.md. With --beside, the
tickets of another sweep are put beside those of this one, seed by seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import paragraph, table, with_section

DOCS = Path(__file__).parents[1] / "docs"
Row = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--root", help="the store to take the results from; left out: what is kept is drawn again")
    parser.add_argument("--beside", help="another confirmed sweep of that store, with the same rules, rounds and seeds")
    given = parser.parse_args()
    kept = DOCS / "results" / f"{given.name}.json"
    if given.root:
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(results_of(given.name, given.root, given.beside), indent=1, allow_nan=False) + "\n")
    document = json.loads(kept.read_text())
    draw(document, kept.parent)
    page = DOCS / "results.md"
    page.write_text(with_section(page.read_text(), given.name, "\n".join(section(document))))


def results_of(name: str, root: str, other: str | None) -> dict[str, Any]:
    """What the page rests on. Trials are left out: they are in the store."""
    from raylt.report.lookup import find_results

    _, ledger, document = find_results(name, root)
    lock = ledger.read("spec.lock.json") or {}
    kept = ("name", "digest", "state", "protocols", "counts", "steps", "similarity", "confirmation", "objectives")
    resolved = {key: lock.get(key) for key in ("versions", "device")}
    found = {**{key: document[key] for key in kept}, **resolved, "trials": []}
    if other is not None:
        rows = beside(document["trials"], find_results(other, root)[2]["trials"])
        found["beside"] = {"name": other, "rows": rows}
    return found


def beside(mine: Sequence[Row], others: Sequence[Row]) -> list[dict[str, Any]]:
    """Mine - other's, paired by seed: of every rule and round that both have; of the dense model, round 0."""
    from raylt.report.verdicts import JUDGED, paired

    here, there = of_one_budget(mine), of_one_budget(others)
    both = sorted(here.keys() & there.keys(), key=lambda row: (row[1], row[0] or ""))
    return [
        {"rule": rule, "density": next(iter(here[rule, index].values()))["density"]}
        | {name: paired(name, here[rule, index], there[rule, index]) for name in JUDGED}
        for rule, index in both
    ]


def of_one_budget(trials: Sequence[Row]) -> dict[tuple[str | None, int], dict[int, Row]]:
    """(rule, round) -> seed -> its numbers, without controls."""
    from raylt.report.verdicts import rows_of

    rows = rows_of(trials)
    if len({steps for steps, *_ in rows}) > 1:
        raise SystemExit("--beside is for sweeps that were confirmed at one training budget")
    return {(rule, index): seeds for (_, _, rule, control, index), seeds in rows.items() if control is None}


def draw(document: Row, folder: Path) -> None:
    from raylt.report.comparison_figures import confirmation_png
    from raylt.report.figures import similarity_heat_png

    if document["confirmation"]:
        (folder / f"{document['name']}-confirmation.png").write_bytes(confirmation_png(document))
    if _has_similarity(document):
        (folder / f"{document['name']}-similarity.png").write_bytes(similarity_heat_png(document))


def section(document: Row) -> Iterator[str]:
    """The tables of `raylt results` and `raylt report`, as Markdown."""
    counts = document["counts"]
    ended = f"{counts['complete']} of {counts['asked']} trials are complete, {counts['failed']} failed"
    yield paragraph(f"The sweep is {document['state']}: {ended}.")
    if document["confirmation"]:
        yield from confirmation_section(document)
    if _has_similarity(document):
        yield from similarity_section(document)


def confirmation_section(document: Row) -> Iterator[str]:
    from raylt.report.confirmation_tables import budgets, plus_minus, sheets
    from raylt.report.tables import protocol_text

    seeds = sorted({seed for row in document["confirmation"] for seed in row["seeds"]})
    yield paragraph(f"Fresh seeds: {', '.join(map(str, seeds))}.")
    protocol = protocol_text(document, "final")
    yield paragraph(f"FID of every table is measured with {protocol}.")
    yield paragraph("[How to read the tables](#how-to-read-the-tables) says what the columns and verdicts are.")
    for steps in budgets(document):
        yield f"### {steps:,} steps\n"
        for sheet in sheets(document, steps, plus_minus):
            yield f"#### {heading(sheet.title, protocol)}\n"
            if sheet.note:
                yield paragraph(sheet.note)
            yield from table(sheet.header, sheet.body)
    if "beside" in document:
        yield from beside_table(document["beside"])
    yield f"![Loss and FID against density](results/{document['name']}-confirmation.png)\n"


def heading(title: str, protocol: str) -> str:
    """A table's title without the protocol of its FID, which a study says once."""
    kept, _, _ = title.partition(f"FID (final): {protocol}")
    return kept.removesuffix(". ") or "FID"


def similarity_section(document: Row) -> Iterator[str]:
    from raylt.report.tables import SIMILARITY_HEADER, similarity_rows

    yield "### Similarity of the pilots' masks\n"
    yield from table([title.replace("\n", " ") for title in SIMILARITY_HEADER], similarity_rows(document))
    yield f"![Similarity by block](results/{document['name']}-similarity.png)\n"


def beside_table(found: Row) -> Iterator[str]:
    from raylt.report.confirmation_tables import plus_minus
    from raylt.report.text import shown

    yield f"### Beside {found['name']}\n"
    yield paragraph(f"Difference to the same rule and density of {found['name']}, paired by seed.")
    numbers = {"loss": "loss", "fid": "FID"}
    body = [
        [row["rule"] or "dense", shown(row["density"], 3), *(plus_minus(row[name], "+") for name in numbers)]
        for row in found["rows"]
    ]
    yield from table(["rule", "density", *(f"{title} - {found['name']}" for title in numbers.values())], body)


def _has_similarity(document: Row) -> bool:
    return any(block["kappa"] is not None for block in document["similarity"].values())


if __name__ == "__main__":
    main()
