"""A results document as flat rows: CSV, and the DataFrames of `raylt.results` and `raylt.confirmation`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raylt.report.records import ProtocolRecord, SweepDocument, TrialRecord, value_of
from raylt.report.text import in_forward_order

if TYPE_CHECKING:
    from pandas import DataFrame


# Of a trial, as in the document. `train_steps`, `start_seed` and `confirms` are a confirmation's.
TRIAL_COLUMNS = (
    "id", "kind", "rule", "control", "seed", "state", "protocol", "density", "loss", "fid", "kid", "flops", "flops_dense",
    "ticket_bytes", "pareto", "broken", "error", "ticket", "mlflow_run_id", "kid_sd", "train_steps", "start_seed", "confirms",
    "retry_of", "feasible",
)  # fmt: skip
_BEHIND_FID = ("features", "samples", "sampler", "steps", "spacing", "reference")
_STEPS = ("asked", "trained", "shared")

# What is no float in a DataFrame.
_TEXT = {
    "kind", "rule", "control", "state", "protocol", "error", "ticket", "mlflow_run_id",
    "fid_features", "fid_sampler", "fid_spacing", "fid_reference",
}  # fmt: skip
_WHOLE = {"id", "seed", "train_steps", "confirms", "round", "seeds", "broken_seeds"}
_TRUTHS = {"pareto": "bool", "broken": "boolean", "feasible": "boolean"}  # without a loss a trial is neither broken nor not


def trial_rows(results: SweepDocument) -> list[dict[str, object]]:
    """One row a trial, all with the same columns; `fid_*` say what the FID of that row was measured with."""
    trials = results["trials"]
    params = sorted({name for trial in trials for name in trial["params"]})
    blocks = in_forward_order({block for trial in trials for block in trial["densities"] or {}})
    return [_trial_row(trial, results["protocols"][trial["protocol"]], params, blocks) for trial in trials]


def _trial_row(trial: TrialRecord, behind: ProtocolRecord, params: Sequence[str], blocks: Sequence[str]) -> dict[str, object]:
    steps: Mapping[str, object] = trial["steps"] or {}
    densities = trial["densities"] or {}
    reference = "all" if behind["reference"] is None else str(behind["reference"])
    return {
        **{name: value_of(trial, name) for name in TRIAL_COLUMNS},
        **{f"fid_{key}": reference if key == "reference" else behind.get(key) for key in _BEHIND_FID},
        **{f"steps_{key}": steps.get(key) for key in _STEPS},
        "wall_s": trial["timing"]["wall_s"] if trial["timing"] else None,
        "hours": trial["timing"]["hours"] if trial["timing"] else None,
        **{name: trial["params"].get(name) for name in params},
        **{f"density/{block}": densities.get(block) for block in blocks},
    }


def confirmation_rows(results: SweepDocument) -> list[dict[str, object]]:
    """The rows of a confirmation with nested numbers under joined names: `loss_mean`, `vs_dense_fid_verdict`."""
    rows = [{**row, "seeds": len(row["seeds"])} for row in results["confirmation"]]
    return [{("broken_seeds" if name == "broken" else name): value for name, value in _joined(row)} for row in rows]


def _joined(record: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _joined(value, f"{prefix}{name}_")
        else:
            yield prefix + name, value


def csv_text(results: SweepDocument) -> str:
    """One row a trial; nothing where there is no number."""
    rows = trial_rows(results)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else TRIAL_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def trials_frame(results: SweepDocument) -> DataFrame:
    """The columns of the CSV, one row a trial, by id. `attrs` has name, digest, state, objectives, protocols."""
    return _frame(results, trial_rows(results), TRIAL_COLUMNS).set_index("id")


def confirmation_frame(results: SweepDocument) -> DataFrame:
    """`confirmation_rows` as they are; no row and no more than their keys as columns before anything was confirmed."""
    return _frame(results, confirmation_rows(results), ("train_steps", "confirms", "rule", "control", "round"))


def _frame(results: SweepDocument, rows: Sequence[Mapping[str, object]], first: Sequence[str]) -> DataFrame:
    import pandas

    columns = list(dict.fromkeys([*first, *(name for row in rows for name in row)]))
    frame = pandas.DataFrame({name: _series([row.get(name) for row in rows], name) for name in columns})
    frame.attrs = {key: value_of(results, key) for key in ("name", "digest", "state", "objectives", "protocols")}
    return frame


def _series(values: list[Any], name: str) -> Any:
    """A column: numbers as floats, where a missing one is NaN; text as pandas holds it."""
    import pandas

    is_text = name in _TEXT or name.endswith(("_verdict", "_margin_of"))
    is_whole = name in _WHOLE and None not in values  # of trials that confirm nothing, train_steps and confirms are missing
    kind = None if is_text else "int64" if is_whole else _TRUTHS.get(name, "float64")
    return pandas.Series(values, dtype=kind)
