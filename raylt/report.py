"""`raylt results` and `raylt report`: one results document as tables, CSV, and one HTML page that needs nothing else.

Wherever a FID stands, the features, samples and sampler behind it stand too: without them it is no number.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from raylt.figures import allocation_png, in_forward_order, pareto_png, shown, similarity_png, trial_name

Record = Mapping[str, Any]
Row = list[str]

CSV_COLUMNS = (
    "id", "kind", "rule", "control", "seed", "state", "protocol", "density", "loss", "fid", "kid", "flops", "flops_dense",
    "ticket_bytes", "pareto", "broken", "error", "ticket", "mlflow_run_id",
)  # fmt: skip
_FEATURE_KEYS = ("features", "samples", "sampler", "steps", "reference")
_HEADER = ["id", "kind", "rule", "state", "density", "loss", "FLOPs", "ticket", "Pareto"]  # FIDs stand before FLOPs
_UNITS = ("B", "kB", "MB", "GB")


def pareto_rows(results: Record) -> list[Record]:
    """The trials on the Pareto front, best in the first objective first."""
    first = results["objectives"][0]
    return sorted((t for t in results["trials"] if t["pareto"]), key=lambda trial: (trial[first], trial["id"]))


def protocol_text(results: Record, protocol: str) -> str:
    """What stands behind the FIDs of a protocol, in one line."""
    known = results["protocols"][protocol]
    reference = "all" if known["reference"] is None else known["reference"]
    return (
        f"{known['features']} features, {known['samples']} samples, {known['sampler']} in {known['steps']} steps, "
        f"against {reference} training images"
    )


def used_protocols(results: Record) -> list[str]:
    """The protocols that trials were scored under; `search` where there are none yet."""
    return sorted({trial["protocol"] for trial in results["trials"]}, reverse=True) or ["search"]


# --- rows: what a trial shows, as text ------------------------------------------------------------------------------


def trial_header(results: Record) -> Row:
    """Column names of `trial_row`. Each protocol has a FID column of its own: its numbers compare with no other's."""
    fids = [f"FID {results['protocols'][p]['features']}, {results['protocols'][p]['samples']}" for p in used_protocols(results)]
    return _HEADER[:6] + fids + _HEADER[6:]


def trial_row(results: Record, trial: Record) -> Row:
    fids = [shown(trial["fid"]) if trial["protocol"] == protocol else "-" for protocol in used_protocols(results)]
    return [
        str(trial["id"]),
        trial["kind"],
        trial["rule"] or "-",
        state_text(trial),
        shown(trial["density"]),
        shown(trial["loss"]),
        *fids,
        flops_text(trial),
        bytes_text(trial["ticket_bytes"]),
        "*" if trial["pareto"] else "",
    ]


def state_text(trial: Record) -> str:
    """A trial's state in a word; a complete trial with a dead network is `broken`, whatever its numbers."""
    return "broken" if trial["broken"] else "failed" if trial["state"] == "FAIL" else str(trial["state"]).lower()


def _weight(trial: Record) -> str:
    """How a trial's row stands out: on the front, or as one that is not ranked."""
    return "dim" if trial["broken"] or trial["state"] != "COMPLETE" else "front" if trial["pareto"] else ""


def flops_text(trial: Record) -> str:
    """FLOPs as a share of the dense model's."""
    flops, dense = trial["flops"], trial["flops_dense"]
    return "-" if flops is None or not dense else f"{100 * flops / dense:.1f} %"


def bytes_text(value: float | None) -> str:
    """A size with a decimal unit."""
    if value is None:
        return "-"
    power = 0
    while value >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_UNITS[power]}"


def similarity_rows(results: Record) -> list[Row]:
    """The cells of `SIMILARITY_HEADER`, of every block, those kept dense with dashes."""
    similarity = results.get("similarity") or {}
    return [_similarity_row(block, similarity[block]) for block in in_forward_order(similarity)]


SIMILARITY_HEADER = [
    "block", "kappa", "±95 %", "kappa\nstart", "excess", "kappa\npartial", "kappa\nmovement", "z", "movement", "pairs",
]  # fmt: skip


def _similarity_row(block: str, numbers: Record) -> Row:
    def fixed(value: float | None, decimals: int = 3) -> str:
        return "-" if value is None else f"{value:.{decimals}f}"

    low, high = numbers.get("kappa_low"), numbers.get("kappa_high")
    kappas = [fixed(numbers.get(name)) for name in ("kappa_start", "excess", "kappa_partial", "kappa_movement")]
    reach = None if low is None or high is None else (high - low) / 2
    tail = [fixed(numbers.get("z"), 1), shown(numbers.get("movement"), 3), str(numbers.get("pairs") or 0)]
    return [block, fixed(numbers.get("kappa")), fixed(reach), *kappas, *tail]


def failures(results: Record) -> list[str]:
    """One line a cause: which trials it ended."""
    causes: dict[str, list[str]] = {}
    for trial in results["trials"]:
        if trial["state"] == "FAIL":
            causes.setdefault(trial["error"] or "unknown cause", []).append(str(trial["id"]))
    return [f"trial{'s' if len(ids) > 1 else ''} {', '.join(ids)} failed: {cause}" for cause, ids in causes.items()]


# --- tables for a terminal ------------------------------------------------------------------------------------------


def trials_table(results: Record, pareto_only: bool = False) -> Table:
    """Trials as a table of at most 80 columns: all, by id, or the Pareto front, best first, under the dense model."""
    dense = [trial for trial in results["trials"] if trial["kind"] == "dense"]
    trials = [*dense, *pareto_rows(results)] if pareto_only else results["trials"]
    protocols = used_protocols(results)
    fids = "\n".join(f"FID ({protocol}): {protocol_text(results, protocol)}" for protocol in protocols)
    what = f"Pareto front in {', '.join(results['objectives'])}" if pareto_only else f"{len(trials)} trials"
    notes = [*failures(results), *(["* on the Pareto front"] if any(t["pareto"] for t in trials) else [])]
    notes = ["under the dense model (not ranked)"] if pareto_only and dense else notes
    table = _table(f"{results['name']} ({results['state']}): {what}\n{fids}", "\n".join(notes))
    # the title has what stands behind each FID in full: features and 80 columns hold for one of them only
    short = [f"FID\n{results['protocols'][p]['features'] if len(protocols) == 1 else p}" for p in protocols]
    for name in _HEADER[:6] + short + _HEADER[6:]:
        table.add_column(Text("" if name == "Pareto" else name), justify=_justify(name), no_wrap=True)
    for trial in trials:
        table.add_row(*map(Text, trial_row(results, trial)), style={"front": "bold"}.get(_weight(trial), _weight(trial)))
    return table


_SIMILARITY_NOTE = (
    "kappa 0: chance, 1: equal; start: with the largest weights of the start; excess: over that; partial: given it"
)


def similarity_table(results: Record) -> Table:
    """Similarity of the pilots' masks, block by block."""
    table = _table(f"{results['name']}: similarity of the pilots' masks", _SIMILARITY_NOTE)
    for name in SIMILARITY_HEADER:
        table.add_column(Text(name), justify=_justify(name), overflow="fold")
    for row in similarity_rows(results):
        table.add_row(*map(Text, row))
    return table


def _table(title: str, caption: str) -> Table:
    look: Any = {"title_justify": "left", "caption_justify": "left", "box": box.SIMPLE_HEAD, "padding": 0, "show_edge": False}
    return Table(title=Text(title), caption=Text(caption) if caption else None, **look)


def _justify(name: str) -> Any:
    return "left" if name in ("kind", "rule", "state", "block", "Pareto") else "right"


# --- CSV ------------------------------------------------------------------------------------------------------------


def csv_text(results: Record) -> str:
    """One row a trial; nothing where there is no number. `fid_*` say what the FID of that row was measured with."""
    trials = results["trials"]
    blocks = in_forward_order({block for trial in trials for block in trial["densities"] or {}})
    params = sorted({name for trial in trials for name in trial["params"]})
    fid_columns = [f"fid_{key}" for key in _FEATURE_KEYS]
    steps = ["asked", "trained", "shared"]
    header = [
        *CSV_COLUMNS,
        *fid_columns,
        *(f"steps_{key}" for key in steps),
        "wall_s",
        *params,
        *(f"density/{b}" for b in blocks),
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for trial in trials:
        behind = results["protocols"][trial["protocol"]]
        values = [trial[name] for name in CSV_COLUMNS]
        values += ["all" if key == "reference" and behind[key] is None else behind[key] for key in _FEATURE_KEYS]
        values += [(trial["steps"] or {}).get(key) for key in steps]
        values += [(trial["timing"] or {}).get("wall_s"), *(trial["params"].get(name) for name in params)]
        writer.writerow([_cell(value) for value in [*values, *((trial["densities"] or {}).get(block) for block in blocks)]])
    return buffer.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


# --- one HTML page --------------------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.front { font-weight: 600; } tr.dim { color: #888; }
img { max-width: 100%; height: auto; } pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; }
p.failed { color: #a00; }
"""


def html_page(results: Record, spec_yaml: str) -> str:
    """The whole sweep as one page: pictures inline, no script, nothing fetched from anywhere."""
    name = escape(results["name"])
    pictures = [_image(pareto_png(results), "Trials and Pareto front"), _image(similarity_png(results), "Similarity by block")]
    front = pareto_rows(results)
    sections = [
        f"<h1>{name}</h1>",
        _summary(results),
        "<h2>What the numbers mean</h2>",
        *(f"<p>FID and KID, protocol <b>{p}</b>: {escape(protocol_text(results, p))}.</p>" for p in used_protocols(results)),
        "<p>Loss: denoising loss of the averaged weights on held-out images under fixed noise. FLOPs: of one forward pass, as "
        "a share of the dense model's. Broken: loss above half of what predicting zero gives; such a ticket is not ranked.</p>",
        "<h2>Pareto front</h2>",
        f"<p>Objectives: {escape(', '.join(results['objectives']))}, all minimised, over baselines and search trials.</p>",
        _trials(results, front),
        pictures[0],
        *(_image(allocation_png(trial), f"Allocation of {trial_name(trial)}") for trial in front[:1]),
        "<h2>All trials</h2>",
        *(f'<p class="failed">{escape(line)}</p>' for line in failures(results)),
        _trials(results, results["trials"]),
        "<h2>Similarity</h2>",
        "<p>kappa: overlap of two pilots' masks beyond chance (0: chance, 1: equal), with its 95 % interval over pilots. kappa "
        "start: of a mask with the largest weights of the rewind point. excess: kappa over that. kappa partial: of two masks, "
        "given how much of those weights each keeps. kappa movement: of the masks of what moved most. z: overlap beyond chance "
        "in its standard deviations by chance. movement: how far the dense training moved the weights.</p>",
        _html_table(SIMILARITY_HEADER, ((row, "") for row in similarity_rows(results))),
        pictures[1],
        "<h2>Spec</h2>",
        f"<pre>{escape(spec_yaml)}</pre>",
    ]
    head = f'<meta charset="utf-8"><title>raylt: {name}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{chr(10).join(sections)}\n</body></html>\n'


def _summary(results: Record) -> str:
    counts, steps = results["counts"], results["steps"]
    trials = ", ".join(f"{counts[key]} {key}" for key in ("complete", "pruned", "failed", "running") if counts[key])
    return (
        f"<p>Sweep {escape(results['name'])}, digest {escape(results['digest'][:12])}, {escape(results['state'])}: "
        f"{counts['asked']} trials asked ({trials or 'none ended'}). Training steps: {steps['asked']} asked, "
        f"{steps['trained']} trained, {steps['shared']} shared.</p>"
    )


def _trials(results: Record, trials: Sequence[Record]) -> str:
    return _html_table(trial_header(results), ((trial_row(results, trial), _weight(trial)) for trial in trials))


def _html_table(header: Row, rows: Iterable[tuple[Row, str]]) -> str:
    def cells(tag: str, row: Row) -> str:
        kinds = (' class="number"' if _justify(name) == "right" else "" for name in header)
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "\n".join(f'<tr class="{style}">{cells("td", row)}</tr>' for row, style in rows)
    return f"<table><thead><tr>{cells('th', header)}</tr></thead>\n<tbody>{body}</tbody></table>"


def _image(png: bytes, caption: str) -> str:
    return f'<p><img alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
