"""What the parts of an answer cost beside a plain form of each: docs/performance.md is made of it.

    python benchmarks/price.py [--quick] [--only NAME]      # writes benchmarks/results/price.json and docs/performance.md

CPU seconds of one thread. The two forms take turns, and each turn the order; a ratio is the median of the paired ratios.
Every row first checks that both forms give the same. `--quick`: smaller models, to see that it runs.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from pages import table
from torch import Tensor

from raylt.diffusion.data import flipped_where, to_float
from raylt.diffusion.rng import Draw, batch_indices, generator, seed_dropout, seed_of
from raylt.diffusion.tensors import pack, scattered, unpack
from raylt.diffusion.train import TrainState
from raylt.diffusion.unet import build_unet, layers_of, parameters_of
from raylt.spec import load_spec
from raylt.ticket.find import pack_trained
from raylt.ticket.mask import Mask
from raylt.ticket.prune import pooled_counts, top_k

RESULTS = Path(__file__).parent / "results" / "price.json"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
TURNS = 7
PLAIN_FORMS = (
    ("masks", "a stable sort of the scores"),
    ("stages and checkpoints", "every tensor whole"),
    ("batches", "`torch.manual_seed`, `x[i]`, flips of floats"),
)
NOT_BEGUN = (  # of the plan, with their goals: nothing is measured until they are built
    ("KID of a scored round", "≤ 0.03 digits, ≤ 0.2 at 2048-d"),
    ("Fréchet distance", "≥ 8x scipy, ≥ 2x torch-fidelity"),
    ("Inception features on a CPU", "≥ 1.5x torch-fidelity"),
    ("mask of a ticket file", "≤ 1.02x its entropy"),
    ("training step on a GPU", "≥ 28 % MFU at batch 128"),
)


@dataclass(frozen=True)
class Row:
    """A ratio of ours to the plain form, in seconds or bytes."""

    part: str
    unit: str
    ours: float
    plain: float
    ratio: float
    goal: float  # at most


def compared(part: str, goal: float, ours: Callable[[], object], plain: Callable[[], object]) -> Row:
    """CPU seconds of two forms in turn."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    forms = [("ours", ours), ("plain", plain)]
    for turn in range(TURNS):
        for name, form in forms if turn % 2 else reversed(forms):
            before = time.process_time()
            form()
            seconds[name].append(time.process_time() - before)
    ratios = [one / other for one, other in zip(seconds["ours"], seconds["plain"], strict=True)]
    medians = [statistics.median(seconds[name]) for name in ("ours", "plain")]
    return Row(part, "s", *medians, statistics.median(ratios), goal)


# --- masks ------------------------------------------------------------------------------------------------------------


def sorted_top_k(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Mask:
    """A stable sort of every layer."""
    layers = {}
    for name, score in scores.items():
        keep = torch.zeros(score.numel(), dtype=torch.bool)
        keep[torch.sort(score.reshape(-1), descending=True, stable=True).indices[: counts[name]]] = True
        layers[name] = keep.reshape(score.shape)
    return Mask(layers)


def sorted_counts(scores: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """A stable sort of all layers together."""
    owner = torch.repeat_interleave(torch.tensor([score.numel() for score in scores.values()]))
    order = torch.sort(torch.cat([score.reshape(-1) for score in scores.values()]), descending=True, stable=True).indices
    won = torch.bincount(owner[order[:budget]], minlength=len(scores)).tolist()
    return dict(zip(scores, won, strict=True))


def mask_rows(model: str) -> list[Row]:
    spec = load_spec(model)
    weights = parameters_of(build_unet(spec.unet_config, 0))
    scores = {layer.name: weights[f"{layer.name}.weight"].double().abs() for layer in layers_of(spec.unet_config)}
    counts = {name: score.numel() // 20 for name, score in scores.items()}
    budget, floors = sum(counts.values()), dict.fromkeys(scores, 0)
    assert top_k(scores, counts).digest == sorted_top_k(scores, counts).digest
    assert pooled_counts(scores, budget, floors) == sorted_counts(scores, budget)
    size = f"{sum(score.numel() for score in scores.values()) / 1e6:.1f} M weights"
    ours, plain = lambda: top_k(scores, counts), lambda: sorted_top_k(scores, counts)
    of_all, by_sort = lambda: pooled_counts(scores, budget, floors), lambda: sorted_counts(scores, budget)
    return [
        compared(f"mask of {size}, layer by layer", 0.2, ours, plain),
        compared(f"mask of {size}, all layers together", 0.25, of_all, by_sort),
    ]


# --- what is kept -----------------------------------------------------------------------------------------------------


def store_rows(model: str) -> list[Row]:
    spec = load_spec(model)
    weights, draw = parameters_of(build_unet(spec.unet_config, 0)), torch.Generator().manual_seed(0)
    rows = []
    for density in (0.05, 0.01):
        mask = Mask({la.name: torch.rand(la.shape, generator=draw) < density for la in layers_of(spec.unet_config)})
        kept = mask.apply(weights)
        state = TrainState(9, kept, *({n: f * v for n, v in kept.items()} for f in (0.1, 0.2, 0.9)), 3, 9)
        bits, dense = pack(mask=mask.pack()), pack(weights=state.weights, ema=state.ema)
        trained, checkpoint = pack_trained(state, mask), state.to_bytes(mask.of_pruned)
        again = scattered(unpack(trained)["ema"], mask.of_pruned)
        assert all(torch.equal(again[n].view(torch.int32), v.view(torch.int32)) for n, v in state.ema.items())
        at = f"at {density:.0%} of the weights"
        rows += [
            sizes(f"trained stage {at}, with its mask", len(trained) + len(bits), len(dense) + len(bits)),
            sizes(f"checkpoint {at}", len(checkpoint), len(state.to_bytes())),
        ]
    return rows


def sizes(part: str, ours: int, plain: int) -> Row:
    return Row(part, "MB", ours / 1e6, plain / 1e6, ours / plain, 0.07)


# --- batches ----------------------------------------------------------------------------------------------------------


def batch_rows(batch_size: int) -> list[Row]:
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cpu = torch.device("cpu")

    def ours(step: int = 3) -> Tensor:
        draw = generator(0, Draw.STEP, step)
        seed_dropout(0, step, cpu)
        x = images.index_select(0, batch_indices(0, step, batch_size, len(images)))
        return to_float(flipped_where(torch.rand(batch_size, generator=draw) < 0.5, x))

    def plain(step: int = 3) -> Tensor:
        draw = generator(0, Draw.STEP, step)
        torch.manual_seed(seed_of(0, Draw.DROPOUT, step))
        x = images[batch_indices(0, step, batch_size, len(images))].float() / 127.5 - 1
        flip_B = torch.rand(batch_size, generator=draw) < 0.5
        return torch.where(flip_B[:, None, None, None], x.flip(-1), x)

    assert torch.equal(ours(), plain())
    many = [lambda form=form: [form(step) for step in range(200)] for form in (ours, plain)]
    return [compared(f"200 batches of {batch_size} CIFAR-10 images", 0.45, *many)]


# --- the page ---------------------------------------------------------------------------------------------------------


def page(document: Mapping[str, object]) -> str:
    rows = [Row(**row) for part in document["parts"].values() for row in part]  # type: ignore[attr-defined]
    body = [[r.part, f"{r.ours:.3g} {r.unit}", f"{r.plain:.3g} {r.unit}", f"{r.ratio:.3f}", f"{r.goal:g}"] for r in rows]
    about = document["circumstances"]
    return "\n".join([
        "# Performance", "",
        "What the parts of an answer cost, beside a plain form of each. `python benchmarks/price.py`",
        "measures it and writes this page. Seconds are CPU seconds of one thread. The two forms take",
        "turns, and a ratio is the median of the paired ratios. Both forms give the same result, to",
        "the bit; the script checks it.", "",
        *table(["part", "raylt", "plain form", "ratio", "goal, at most"], body),
        f"Measured on {about['date']}, {about['machine']}, {about['cores']} cores, torch {about['torch']}.", "",  # type: ignore[index]
        "The plain forms:", "", *(f"- {part}: {form}." for part, form in PLAIN_FORMS), "", "## Planned, and not built yet", "",
        *table(["part", "goal"], NOT_BEGUN),
        "No step of the 35.7 M U-Net has been timed on a GPU since these parts were built.", "",
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["masks", "store", "batches"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = "digits" if given.quick else "cifar10"
    parts = {"masks": lambda: mask_rows(model), "store": lambda: store_rows(model), "batches": lambda: batch_rows(128)}
    document = json.loads(given.out.read_text()) if given.out.exists() else {"parts": {}}
    for name, measure in parts.items():
        if given.only in (None, name):
            document["parts"][name] = [asdict(row) for row in measure()]
    document["circumstances"] = {
        "date": dt.date.today().isoformat(), "machine": platform.machine(), "cores": len(os.sched_getaffinity(0)),
        "torch": version("torch"), "python": platform.python_version(), "quick": given.quick,
    }  # fmt: skip
    given.out.write_text(json.dumps(document, indent=1) + "\n")
    if given.out == RESULTS and not given.quick:
        PAGE.write_text(page(document))
    print(
        "\n".join(f"{r['part']}: {r['ratio']:.3f} (at most {r['goal']})" for rows in document["parts"].values() for r in rows)
    )


if __name__ == "__main__":
    main()
