"""Names and numbers as people read them, in tables, pictures and pages alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from raylt.report.records import SweepDocument

SortKey = Literal["id", "loss", "fid", "kid", "flops", "density", "ticket_bytes"]

_LABELS = {
    "loss": "held-out loss",
    "flops": "FLOPs of one forward pass",
    "ticket_bytes": "ticket size in bytes",
    "density": "overall density",
}


def trial_name(record: Mapping[str, object]) -> str:
    """The name a trial has everywhere: `0017-search`."""
    return f"{record['id']:04d}-{record['kind']}"


def axis_label(name: str, results: SweepDocument, protocol: str = "search") -> str:
    """An objective in words. FID and KID mean nothing without the features and samples behind them."""
    if name in ("fid", "kid"):
        behind = results["protocols"][protocol]
        return f"{name.upper()} ({behind['features']} features, {behind['samples']} samples)"
    return _LABELS.get(name, "trial" if name == "id" else name)


def in_forward_order(blocks: Iterable[str]) -> list[str]:
    """Block names in the order of the forward pass; JSON keeps them in the order of the alphabet."""
    order = ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_out")

    def place(block: str) -> tuple[int, int, str]:
        part, _, index = block.partition(".")
        return order.index(part) if part in order else len(order), int(index) if index.isdigit() else 0, block

    return sorted(blocks, key=place)


def shown(value: float | None, digits: int = 4) -> str:
    """A number for people; `-` where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def hours_text(seconds: float) -> str:
    """Seconds as hours for people, without the unit: `0.012`, `3.4`, `1,200`."""
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}" if hours >= 0.001 or not hours else "under 0.001"


def counted(number: int, noun: str) -> str:
    """`1 trial`, `1,200 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def spanned(numbers: Iterable[int]) -> str:
    """The ids that a sweep has, in words."""
    ordered = sorted(numbers)
    return f"{ordered[0]} to {ordered[-1]}" if ordered else "none yet"
