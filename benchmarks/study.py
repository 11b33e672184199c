"""The tables and figures of docs/results.md, from a confirmed sweep: nothing in them is typed by hand.

    python benchmarks/study.py digits-results [--root STORE]

keeps the sweep's results in docs/results/NAME.json (with --root: taken from that store), draws docs/results/NAME-*.png, and
replaces what stands between the markers of NAME in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
Row = Mapping[str, Any]


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
    kept = ("name", "digest", "state", "protocols", "counts", "steps", "similarity", "confirmation", "objectives")
    resolved = {key: lock.get(key) for key in ("versions", "device")}
    return {**{key: document[key] for key in kept}, **resolved, "trials": []}


def draw(document: Row, folder: Path) -> None:
    from raylt.figures import similarity_heat_png
    from raylt.panels import confirmation_png

    (folder / f"{document['name']}-confirmation.png").write_bytes(confirmation_png(document))
    if _has_similarity(document):
        (folder / f"{document['name']}-similarity.png").write_bytes(similarity_heat_png(document))


def with_section(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"docs/results.md lacks {begin} ... {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def section(document: Row) -> Iterator[str]:
    """The tables of `raylt results` and `raylt report`, as Markdown."""
    from raylt.confirmtable import NOTES, budgets, plus_minus, sheets
    from raylt.report import SIMILARITY_HEADER, similarity_rows

    counts, name = document["counts"], document["name"]
    seeds = sorted({seed for row in document["confirmation"] for seed in row["seeds"]})
    yield f"{counts['complete']} of {counts['asked']} trials are complete, {counts['failed']} failed ({document['state']})."
    yield f"Fresh seeds: {', '.join(map(str, seeds))}.\n"
    yield from (f"- {note}" for note in NOTES)
    for steps in budgets(document):
        yield f"\n### {steps:,} steps\n"
        for sheet in sheets(document, steps, plus_minus):
            yield f"{sheet.title}. {sheet.note}\n"
            yield from table(sheet.header, sheet.body)
    yield f"![Loss and FID against density](results/{name}-confirmation.png)\n"
    if _has_similarity(document):
        yield "### Similarity of the pilots' masks\n"
        yield from table([title.replace("\n", " ") for title in SIMILARITY_HEADER], similarity_rows(document))
        yield f"![Similarity by block](results/{name}-similarity.png)\n"


def table(header: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(cells)} |".replace("|   ", "| &nbsp;&nbsp;") for cells in body)  # controls are indented
    yield ""


def _has_similarity(document: Row) -> bool:
    return any(block["kappa"] is not None for block in document["similarity"].values())


if __name__ == "__main__":
    main()
