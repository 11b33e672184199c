"""The ticket file: exact, small, of values or of a seed; read as earlier versions wrote it; of strangers, refused or read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylt.diffusion.tensors import NamedTensors, gathered, metadata_of, pack, unpack
from raylt.diffusion.train import TrainState
from raylt.diffusion.unet import build_unet, layers_of, parameters_of
from raylt.spec import SweepSpec
from raylt.ticket import ticket_file
from raylt.ticket.mask import Mask
from raylt.ticket.ticket_file import EARLIER, Ticket, load_ticket, read_ticket
from tests.conftest import TINY

CONFIG = SweepSpec.model_validate(TINY).unet_config


def a_ticket(density: float = 0.1, step: int = 0, seed: int = 3) -> Ticket:
    """Kept weights at random; at a later step, moments that are no zeros."""
    draw = torch.Generator().manual_seed(0)
    mask = Mask({layer.name: torch.rand(layer.shape, generator=draw) < density for layer in layers_of(CONFIG)})
    weights = mask.apply(parameters_of(build_unet(CONFIG, seed)))
    if step == 0:
        return Ticket(CONFIG, mask, TrainState.fresh(weights))
    first, second = ({name: factor * value for name, value in weights.items()} for factor in (0.5, 2.0))
    return Ticket(CONFIG, mask, TrainState(step, weights, first, second, weights, 0))


def same(ours: NamedTensors, theirs: NamedTensors) -> bool:
    """To the bit."""
    bits = lambda value: value.view(torch.int32)  # noqa: E731
    return ours.keys() == theirs.keys() and all(torch.equal(bits(ours[n]), bits(theirs[n])) for n in ours)


def is_same(ours: Ticket, theirs: Ticket) -> bool:
    groups = ("weights", "first_moments", "second_moments")
    return (
        ours.mask.digest == theirs.mask.digest
        and ours.start.step == theirs.start.step
        and ours.unet_config == json.loads(json.dumps(dict(theirs.unet_config)))
        and all(same(getattr(ours.start, group), getattr(theirs.start, group)) for group in groups)
    )


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_the_file_is_exact_and_small(tmp_path: Path, step: int, density: float) -> None:
    ticket = a_ticket(density, step)
    path = tmp_path / "ticket.safetensors"
    path.write_bytes(ticket.to_bytes())
    assert is_same(load_ticket(path), ticket)
    dense = len(a_ticket(1.0, step).to_bytes())
    assert density == 1.0 or path.stat().st_size < (0.35 + density) * dense  # names, biases and norms stay


def test_weights_that_are_not_masked_yet_are_written_as_if_they_were() -> None:
    ticket = a_ticket()
    unmasked = TrainState.fresh(parameters_of(build_unet(CONFIG, 3)))
    assert Ticket(CONFIG, ticket.mask, unmasked).to_bytes() == ticket.to_bytes()
    assert Ticket(CONFIG, ticket.mask, unmasked).to_seed_bytes(3) == ticket.to_seed_bytes(3)


@pytest.mark.parametrize("step", [0, 2])
def test_a_file_of_an_earlier_version_is_read(step: int) -> None:
    ticket = a_ticket(step=step)
    start, masks = ticket.start, ticket.mask.of_weights
    groups = {"w": start.weights, **({"m": start.first_moments, "v": start.second_moments} if step else {})}
    bits = {name: torch.from_numpy(np.packbits(keep.numpy().reshape(-1))) for name, keep in ticket.mask.layers.items()}
    metadata = {"format": EARLIER, "unet_config": json.dumps(dict(CONFIG)), "rewind_step": str(step)}
    data = pack(metadata, mask=bits, **{group: gathered(values, masks) for group, values in groups.items()})
    assert is_same(read_ticket(data), ticket)


# --- a seed in place of values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_a_seed_ticket_is_the_ticket(density: float) -> None:
    ticket = a_ticket(density)
    data = ticket.to_seed_bytes(3)
    assert is_same(read_ticket(data), ticket)
    assert len(data) < len(ticket.to_bytes())
    assert set(unpack(data)) == {"gaps"}


def test_only_what_begins_from_the_seed_has_a_seed_ticket() -> None:
    with pytest.raises(ValueError, match="at step 0, is not the initialisation of seed 4"):
        a_ticket().to_seed_bytes(4)
    with pytest.raises(ValueError, match="at step 2, is not the initialisation of seed 3"):
        a_ticket(step=2).to_seed_bytes(3)


def test_another_initialisation_of_the_same_seed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version of torch may have."""
    data = a_ticket().to_seed_bytes(3)
    monkeypatch.setattr("raylt.ticket.ticket_file.build_unet", lambda config, seed=None: build_unet(config, 5))
    with pytest.raises(ValueError, match=r"torch .* initialises it otherwise than torch .*, which it was written with"):
        read_ticket(data)


# --- of strangers -----------------------------------------------------------------------------------------------------


def changed(groups: dict[str, NamedTensors], metadata: dict[str, str]) -> bytes:
    return pack(metadata, **groups)


def _first(group: NamedTensors) -> str:
    return next(iter(group))


@pytest.mark.parametrize("change", [
    lambda groups, about: about.update(format="raylt-ticket-9"),
    lambda groups, about: about.pop("unet_config"),
    lambda groups, about: about.update(unet_config="[1"),
    lambda groups, about: about.update(unet_config='{"block_out_channels": [7], "norm_num_groups": 4}'),
    lambda groups, about: about.update(unet_config='{"nonsense": 1}'),
    lambda groups, about: about.update(rewind_step="soon"),
    lambda groups, about: groups.pop("w"),
    lambda groups, about: groups.pop("gaps"),
    lambda groups, about: groups["gaps"].pop(_first(groups["gaps"])),
    lambda groups, about: groups["w"].pop(_first(groups["w"])),
    lambda groups, about: groups["w"].update(other=torch.zeros(3)),
    lambda groups, about: groups["w"].update({_first(groups["w"]): torch.zeros(3)}),
    lambda groups, about: groups["w"].update({n: v.double() for n, v in groups["w"].items()}),
])  # fmt: skip
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, change: object) -> None:
    data = a_ticket().to_bytes()
    groups, metadata = unpack(data), metadata_of(data)
    change(groups, metadata)  # type: ignore[operator]
    metadata["sha256"] = ticket_file._digest(metadata, groups)  # a stranger can make that too
    path = tmp_path / "other.safetensors"
    path.write_bytes(changed(groups, metadata))
    with pytest.raises(ValueError, match=r"other\.safetensors is no ticket file of raylt: "):
        load_ticket(path)


def test_a_file_of_other_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match="no ticket file of raylt: its format is unknown"):
        read_ticket(pack(images={"first": torch.zeros(2)}))


@given(st.integers(0, 100_000), st.integers(0, 7), st.sampled_from(["values", "seed"]))
@settings(max_examples=100)
def test_a_flipped_bit_is_refused(place: int, bit: int, kind: str) -> None:
    """Whether it is in the header, a mask or a value."""
    ticket = a_ticket()
    data = bytearray(ticket.to_bytes() if kind == "values" else ticket.to_seed_bytes(3))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(ValueError, match="no ticket file of raylt"):
        read_ticket(bytes(data))
