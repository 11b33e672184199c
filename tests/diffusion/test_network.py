"""The forms of a training step: what each computes, and that one graph serves every mask and every trainer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from raylt.diffusion import network
from raylt.diffusion.compute import CHANNELS_LAST, COMPILED, EAGER, FORMS, GRAPHED, Compute
from raylt.diffusion.data import load_images
from raylt.diffusion.sample import Sampling, held_out_loss, sample_chunk
from raylt.diffusion.train import Recipe, Trainer, TrainState
from raylt.diffusion.unet import build_unet, layers_of, parameters_of
from raylt.spec import SweepSpec
from raylt.ticket.mask import Mask

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
# Of a U-Net of two blocks, a compilation takes ten seconds; `aot_eager` traces alike and compiles nothing.
TRACED = "aot_eager"


@pytest.fixture
def spec(tiny_spec: Callable[..., SweepSpec]) -> SweepSpec:
    return tiny_spec()


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Graphs as they are traced, run as they are; the list of them."""
    graphs: list[Any] = []
    plain = torch.compile

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(TRACED)(graph, inputs)

    def compiling(function: Any, *, mode: str | None = None, **how: Any) -> Any:
        return plain(function, backend=backend, **how)

    network.loss_function.cache_clear()
    network.prediction_function.cache_clear()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compiling)
    yield graphs
    network.loss_function.cache_clear()
    network.prediction_function.cache_clear()
    torch._dynamo.reset()


def trained(
    spec: SweepSpec, form: str, density: float = 1.0, steps: int = 4, precision: str = "fp32", cut: int = 0
) -> TrainState:
    """After some steps under a mask; cut: as bytes, and gone on with by a new trainer, after so many of them."""
    model, draw = build_unet(spec.unet_config, 0), torch.Generator().manual_seed(0)
    mask = Mask({layer.name: torch.rand(layer.shape, generator=draw) < density for layer in layers_of(spec.unet_config)})
    state = TrainState.fresh(mask.apply(parameters_of(model)))
    recipe = Recipe(spec.train, Compute("cpu", precision, 1, form), 0, True, mask.of_pruned)
    for part in (cut, steps - cut):
        trainer = Trainer(build_unet(spec.unet_config, 1), load_images(spec.data).train_NCHW, recipe, state)
        for _ in range(part):
            trainer.run_step()
        state = TrainState.from_bytes(trainer.state().to_bytes(recipe.masks), recipe.masks)
    return state


def differ(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_channels_last_computes_the_same_but_for_rounding(spec: SweepSpec, precision: str) -> None:
    eager, last = trained(spec, EAGER, 0.3, precision=precision), trained(spec, CHANNELS_LAST, 0.3, precision=precision)
    assert differ(last.ema, eager.ema) < (1e-5 if precision == "fp32" else 2e-2)  # Adam magnifies what is near 0
    assert all(value.is_contiguous() for value in last.weights.values())
    assert all(torch.equal(last.weights[n] == 0, value == 0) for n, value in eager.weights.items() if value.dim() > 1)


@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.parametrize("form", [EAGER, CHANNELS_LAST, COMPILED])
def test_a_training_that_was_cut_ends_bit_for_bit_alike(tracing: list[Any], spec: SweepSpec, form: str, cut: int) -> None:
    whole, resumed = trained(spec, form, 0.3), trained(spec, form, 0.3, cut=cut)
    for group in ("weights", "first_moments", "second_moments", "ema"):
        assert all(torch.equal(getattr(resumed, group)[n], v) for n, v in getattr(whole, group).items())


@pytest.mark.parametrize("form", [COMPILED, GRAPHED])
def test_one_graph_serves_every_density_and_every_trainer(tracing: list[Any], spec: SweepSpec, form: str) -> None:
    for density in (1.0, 0.5, 0.1):
        eager, compiled = trained(spec, CHANNELS_LAST, density), trained(spec, form, density)
        assert differ(compiled.ema, eager.ema) < 1e-5
    assert len(tracing) == 1


def test_scores_are_alike_in_every_form(tracing: list[Any], spec: SweepSpec) -> None:
    model, images = build_unet(spec.unet_config, 0), load_images(spec.data).test_NCHW
    losses, samples = [], []
    for form in FORMS:
        compute = Compute("cpu", "fp32", 1, form)
        shaped = model.to(memory_format=compute.layout).eval()
        losses.append(held_out_loss(shaped, images, "linear", compute)[0])
        samples.append(sample_chunk(shaped, (1, 8, 8), 0, 6, Sampling("ddim", 3, "linear", compute)).float())
    assert losses == pytest.approx([losses[0]] * len(FORMS), rel=1e-5)
    assert all((other - samples[0]).abs().max() <= 1 for other in samples)  # of 255


def test_any_number_of_batch_sizes_is_compiled(tracing: list[Any], spec: SweepSpec) -> None:
    """Torch's own limit is 8, and then it raises: a worker meets more, of protocols and of controls of other widths."""
    model, compute = build_unet(spec.unet_config, 0).eval(), Compute("cpu", "fp32", 1, COMPILED)
    with torch.no_grad():
        for size in range(1, 12):
            x_NCHW = torch.zeros(size, 1, 8, 8)
            assert network.prediction_function(compute)(model, x_NCHW, torch.tensor(5)).shape == x_NCHW.shape
    assert len(tracing) == 11


def test_the_form_is_in_the_key_where_it_is_not_what_there_was_before_forms() -> None:
    assert "form" not in Compute("cpu").key()
    keys = [Compute("cuda", "bf16", 1, form).key() for form in FORMS[1:]]
    assert [key["form"] for key in keys] == list(FORMS[1:])


@pytest.mark.integration  # a minute
@NEEDS_COMPILER
def test_what_torch_compiles_is_the_same_but_for_rounding_and_repeats(spec: SweepSpec) -> None:
    eager, first, second = trained(spec, EAGER, 0.3), trained(spec, COMPILED, 0.3), trained(spec, COMPILED, 0.3, cut=2)
    assert differ(first.ema, eager.ema) < 1e-5
    assert differ(second.ema, first.ema) == 0.0
