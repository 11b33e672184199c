"""`raylt report`: one results document as one HTML page that needs nothing else, on a screen, in the dark, on paper.

Pictures are inside it, no script runs, nothing is fetched. Whatever has a FID says under which protocol it was measured.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from raylt.confirmtable import NOTES, NUMBERS, budgets, interval, sheets
from raylt.document import LOCK_FILE
from raylt.figures import pareto_png, similarity_heat_png, similarity_png
from raylt.grids import Grid, sample_grids
from raylt.ledger import Ledger
from raylt.pagestyle import STYLE
from raylt.panels import allocations_png, confirmation_png
from raylt.report import (
    SIMILARITY_HEADER,
    TRIAL_HEADER,
    failures,
    justify,
    pareto_rows,
    protocol_text,
    similarity_rows,
    trial_row,
    used_protocols,
    weight,
)
from raylt.wording import shown, trial_name

Record = Mapping[str, Any]
Row = list[str]

SIMILARITY_PICTURES: list[tuple[Callable[[Record], bytes], str]] = [
    (similarity_heat_png, "Measures of similarity, block by block."),
    (similarity_png, "Similarity of the pilots' masks, block by block."),
]


def sweep_page(results: Record, ledger: Ledger, spec_yaml: str) -> str:
    """The page of a sweep, with what its store has: samples, versions."""
    return html_page(results, spec_yaml, ledger.read(LOCK_FILE) or {}, sample_grids(ledger, results))


def html_page(results: Record, spec_yaml: str, lock: Record | None = None, grids: Sequence[Sequence[Grid]] = ()) -> str:
    """The whole sweep as one page. `lock`: what was resolved when it began; `grids`: lists of samples to show."""
    name = escape(results["name"])
    sections = [
        f"<h1>{name}</h1>",
        *_summary(results),
        *_meaning(results),
        *_confirmation(results),
        *_front(results),
        *_allocations(results),
        *_samples(results, grids),
        *_similarity(results),
        *_trials(results),
        *_spec(spec_yaml, lock or {}),
    ]
    view = '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
    head = f'<meta charset="utf-8">{view}<title>raylt: {name}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{chr(10).join(sections)}\n</body></html>\n'


# --- sections -------------------------------------------------------------------------------------------------------


def _summary(results: Record) -> list[str]:
    counts, steps = results["counts"], results["steps"]
    trials = ", ".join(f"{counts[key]} {key}" for key in ("complete", "pruned", "failed", "running") if counts[key])
    return [
        _p(
            f"Sweep {results['name']}, digest {results['digest'][:12]}, {results['state']}: {counts['asked']} trials asked "
            f"({trials or 'none ended'}). Training steps: {steps['asked']} asked, {steps['trained']} trained, "
            f"{steps['shared']} shared."
        ),
        *(_p(line, "failed") for line in failures(results["trials"])),
    ]


def _meaning(results: Record) -> list[str]:
    return [
        "<h2>What the numbers mean</h2>",
        _p(
            "Loss: denoising loss of the averaged weights on held-out images under fixed noise. FLOPs: of one forward pass, as "
            "a share of the dense model's. Broken: loss above half of what predicting zero gives; such a ticket is not ranked. "
            "FID and KID are measured under a protocol; no table and no picture has two of them:"
        ),
        *(_protocol(results, name) for name in used_protocols(results)),
    ]


def _protocol(results: Record, name: str) -> str:
    seeds = "fresh seeds, after the search" if name == "final" else "the search's seed"
    return f"<p>FID and KID, protocol <b>{name}</b> ({seeds}): {escape(protocol_text(results, name))}.</p>"


def _confirmation(results: Record) -> list[str]:
    """The verdicts, or how to get some."""
    head = "<h2>Confirmation</h2>"
    if not results["confirmation"]:
        return [head, _p(f"Nothing is confirmed on fresh seeds yet: `raylt confirm {results['name']}` does it.")]
    caption = (
        "Loss and FID (protocol final) against density at each training budget: mean and 95 % interval over fresh seeds, the "
        "dense model as a line with its standard deviation from seed to seed. The interval of few seeds may leave the picture."
    )
    sections = [head, _chart(confirmation_png(results), caption), *map(_p, NOTES)]
    for steps in budgets(results):
        sections.append(f"<h3>After {steps} training steps</h3>")
        for sheet in sheets(results, steps, interval):
            sections.append(_p(f"{sheet.title}. {sheet.note}".strip(), "caption"))
            sections.append(_table(sheet.header, [(row, "") for row in sheet.body]))
    return sections


def _front(results: Record) -> list[str]:
    front = pareto_rows(results)
    objectives = ", ".join(results["objectives"])
    return [
        "<h2>Pareto front</h2>",
        _p(f"Objectives: {objectives}, all minimised, over baselines and search trials. Protocol search."),
        _trial_table(front),
        _chart(pareto_png(results), f"Trials of the search and their Pareto front in {objectives} (protocol search)."),
    ]


def _allocations(results: Record) -> list[str]:
    caption = "Density of each block under the baselines and the tickets of the front, as pruned in the search's last round."
    return ["<h2>Allocations</h2>", _chart(allocations_png(results), caption)]


def _samples(results: Record, grids: Sequence[Sequence[Grid]]) -> list[str]:
    """Grids of one protocol and budget beside each other."""
    intro = _p("All from the same noise, image by image, so that they compare.", "caption")
    sections = ["<h2>Samples</h2>", intro] if grids else []
    for group in grids:
        first = group[0].trial
        budget = f" Seed {first['seed']}, {first['train_steps']} training steps." if first["protocol"] == "final" else ""
        behind = f"Loss and FID of the trial that is shown. Protocol {first['protocol']}: "
        sections.append(_p(f"{behind}{protocol_text(results, first['protocol'])}.{budget}", "caption"))
        sections.append(f'<div class="grids">{"".join(map(_grid, group))}</div>')
    return sections


def _grid(grid: Grid) -> str:
    trial = grid.trial
    rule = " ".join(filter(None, (trial["rule"] or "dense", trial["control"])))
    numbers = ", ".join(f"{title} {shown(trial[key])}" for key, title in NUMBERS.items())
    density = f"density {shown(grid.density, 3)}"
    text = f"<b>{escape(rule)}</b>, {density}<br>{trial_name(trial)}<br>{escape(numbers)}"
    picture = _image(grid.png, f"samples of {trial_name(trial)}") if grid.png else "<em>no longer in the store</em>"
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"


def _similarity(results: Record) -> list[str]:
    return [
        "<h2>Similarity</h2>",
        _p(
            "kappa: overlap of two pilots' masks beyond chance (0: chance, 1: equal), with its 95 % interval over "
            "pilots. kappa start: of a mask with the largest weights of the rewind point. excess: kappa over that. "
            "kappa partial: of two masks, given how much of those weights each keeps. kappa movement: of the masks of "
            "what moved most. z: overlap beyond chance in its standard deviations by chance. movement: how far the "
            "dense training moved the weights."
        ),
        _table(SIMILARITY_HEADER, [(row, "") for row in similarity_rows(results)]),
        *(_chart(draw(results), caption) for draw, caption in SIMILARITY_PICTURES),
    ]


def _trials(results: Record) -> list[str]:
    """The search's; of a confirmation there are too many, and its tables have what they say."""
    search = [trial for trial in results["trials"] if trial["protocol"] == "search"]
    others = len(results["trials"]) - len(search)
    more = f" The {others} confirming trials: `raylt results {results['name']} --protocol final`." if others else ""
    return ["<h2>Trials of the search</h2>", _p(f"Protocol search.{more}"), _trial_table(search)]


def _trial_table(trials: Sequence[Record]) -> str:
    return _table(TRIAL_HEADER, [(trial_row(trial), weight(trial)) for trial in trials])


def _spec(spec_yaml: str, lock: Record) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in (lock.get("versions") or {}).items())
    keys = ("precision", "device", "threads")
    resolved = ", ".join(f"{key} {lock[key]}" for key in keys if lock.get(key) is not None)
    lines = [_p(f"{what}: {text}.") for what, text in (("Versions", versions), ("Resolved", resolved)) if text]
    return ["<h2>Spec and versions</h2>", *lines, f"<pre>{escape(spec_yaml)}</pre>"]


# --- parts ----------------------------------------------------------------------------------------------------------


def _p(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _table(header: Row, rows: Iterable[tuple[Row, str]]) -> str:
    """A table; each row with the class it stands out by."""

    def line(tag: str, row: Row) -> str:
        kinds = [_kind(name, cell) for name, cell in zip(header, row, strict=True)]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "\n".join(f'<tr class="{style}">{line("td", row)}</tr>' for row, style in rows)
    head = f"<thead><tr>{line('th', header)}</tr></thead>"
    return f'<div class="scroll"><table>{head}\n<tbody>{body}</tbody></table></div>'


def _kind(name: str, cell: str) -> str:
    if name == "verdict":
        return ' class="undecided"' if cell in ("undecided", "-") else ' class="decided"'
    return ' class="number"' if justify(name) == "right" else ""


def _chart(png: bytes, caption: str) -> str:
    return f'<figure class="chart">{_image(png, caption)}<figcaption>{escape(caption)}</figcaption></figure>'


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
