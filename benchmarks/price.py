"""What the parts of an answer cost beside a plain form of each: docs/performance.md is made of it.

    python benchmarks/price.py [--quick] [--only NAME]      # writes benchmarks/results/price.json and docs/performance.md

CPU seconds of one thread. The two forms take turns, and each turn the order; a ratio is the median of the paired ratios.
Every row first checks that both forms give the same. `--quick`: smaller models, to see that it runs.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from growth import growth_section
from pages import table
from pairs import Row, compared, sizes
from scoring import feature_rows, fid_rows, kid_rows
from steps import step_rows
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
from raylt.ticket.ticket_file import Ticket, read_ticket

RESULTS = Path(__file__).parent / "results" / "price.json"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PLAIN_FORMS = (
    ("masks", "a stable sort of the scores"),
    ("stages and checkpoints", "every tensor whole"),
    ("batches", "`torch.manual_seed`, `x[i]`, flips of floats"),
    (
        "KID, FID, features",
        "torch-fidelity, or scipy's `sqrtm` where it is named. What raylt keeps of the\n"
        "  reference is at hand, as in a worker after its first score",
    ),
    ("ticket files", "as the row says"),
)
OPEN = (  # part, goal, where it stands
    ("training step on a GPU, batch 128", "≥ 28 % MFU", "not run: `benchmarks/step.py`"),
    ("driver's CPU to a whole record", "≤ 1.0 of Tune's own parts", "2.9, a quick run of `overhead.py`"),
)


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
        coded, dense = pack(**mask.coded()), pack(weights=state.weights, ema=state.ema)
        trained, checkpoint = pack_trained(state, mask), state.to_bytes(mask.of_pruned)
        again = scattered(unpack(trained)["ema"], mask.of_pruned)
        assert all(torch.equal(again[n].view(torch.int32), v.view(torch.int32)) for n, v in state.ema.items())
        at = f"at {density:.0%} of the weights"
        rows += [
            sizes(f"trained stage {at}, with its mask", 0.07, len(trained) + len(coded), len(dense) + len(coded)),
            sizes(f"checkpoint {at}", 0.07, len(checkpoint), len(state.to_bytes())),
        ]
    return rows


def ticket_rows(model: str) -> list[Row]:
    """Ticket files of the initialisation under ERK's counts, as the last round of a search has them."""
    spec = load_spec(model)
    layers, config = layers_of(spec.unet_config), spec.unet_config
    weights, draw, rows = parameters_of(build_unet(config, 0)), torch.Generator().manual_seed(0), []
    dense = len(Ticket(config, Mask.dense(layers), TrainState.fresh(weights)).to_bytes())
    for density, goal in ((0.05, 1 / 100), (0.01, 1 / 350)):
        mask = Mask({la.name: torch.rand(la.shape, generator=draw) < density for la in layers})
        ticket = Ticket(config, mask, TrainState.fresh(mask.apply(weights)))
        code = sum(len(code) for code in mask.coded()["gaps"].values())
        entropy = sum(total * _entropy(kept / total) for kept, total in mask.counts.values() if 0 < kept < total) / 8
        whole, seed = ticket.to_bytes(), ticket.to_seed_bytes(0)
        assert read_ticket(whole).mask.digest == read_ticket(seed).mask.digest == mask.digest
        assert read_ticket(seed).init_sha256 == ticket.init_sha256
        at = f"at {density:.0%}"
        rows += [
            sizes(f"mask of a ticket {at}, beside its entropy", 1.02, code, round(entropy)),
            sizes(f"ticket file of a seed {at}, beside the dense model", goal, len(seed), dense),
        ]
    return rows


def _entropy(p: float) -> float:
    """Bits."""
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


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
    body = [[r.part, f"{r.ours:.3g} {r.unit}", f"{r.plain:.3g} {r.unit}", f"{r.ratio:.3g}", f"{r.goal:.3g}"] for r in rows]
    about = document["circumstances"]
    return "\n".join([
        "# Performance", "",
        "What the parts of an answer cost, beside a plain form of each. `python benchmarks/price.py`",
        "measures it and writes this page. Seconds are CPU seconds of one thread. The two forms take",
        "turns, and a ratio is the median of the paired ratios. Both forms give the same result, to",
        "the bit or as near as `benchmarks/scoring.py` says; the scripts check it.", "",
        *table(["part", "raylt", "plain form", "ratio", "goal, at most"], body),
        f"Measured on {about['date']}, {about['machine']}, {about['cores']} cores, torch {about['torch']}.", "",  # type: ignore[index]
        "The plain forms:", "", *(f"- {part}: {form}." for part, form in PLAIN_FORMS), "",
        *growth_section(), "## Open", "", *table(["part", "goal", "now"], OPEN),
        "Two fifths of that are one picture a trial, which matplotlib draws.", "",
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["masks", "store", "tickets", "batches", "kid", "fid", "features", "steps"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = "digits" if given.quick else "cifar10"
    parts = {
        "masks": lambda: mask_rows(model), "store": lambda: store_rows(model), "tickets": lambda: ticket_rows(model),
        "batches": lambda: batch_rows(128), "kid": lambda: kid_rows(given.quick), "fid": lambda: fid_rows(given.quick),
        "features": feature_rows, "steps": lambda: step_rows(given.quick),
    }  # fmt: skip
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
