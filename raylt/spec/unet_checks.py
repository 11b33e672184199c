"""What of `model.config` can be told from the file alone: keys with values that diffusers' `UNet2DModel` can never use here.

Only what never made a U-Net that trains is refused, so that sweeps started before can still be read. All else is for the
preflight, which builds the U-Net and tries it (`diffusion/unet_rehearsal.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raylt.errors import Problem
from raylt.spec.presets import UnetConfig

MAX_LEVELS = 10  # of a U-Net: 2 ** 9 pixels at least
TIMESTEPS = 1000  # of the noise schedule

_CONDITIONAL = ("CrossAttn", "SimpleCrossAttn", "KCrossAttn")  # these want a text beside the image
_OF_OTHERS = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")  # of autoencoders
_ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")
_UNCONDITIONAL = "null: raylt trains U-Nets that are told nothing but the timestep"


@dataclass(frozen=True)
class _Right:
    """Whether a value is right, and what would be, in words."""

    holds: Callable[[Any], bool]
    words: str


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(*choices: Any) -> _Right:
    return _Right(lambda value: value in choices, " or ".join(map(str, choices)))


_COUNT = _Right(lambda value: _is_int(value, 1), "a whole number, 1 or more")
_COUNT_OR_NULL = _Right(lambda value: value is None or _is_int(value, 1), "a whole number, 1 or more, or null")
_SWITCH = _Right(lambda value: isinstance(value, bool), "true or false")
_NUMBER = _Right(_is_number, "a number")
_NULL = _Right(lambda value: value is None, _UNCONDITIONAL)

_KEYS = {
    "act_fn": _one_of(*_ACTIVATIONS),
    "add_attention": _SWITCH,
    "attention_head_dim": _COUNT_OR_NULL,
    "attn_norm_num_groups": _COUNT_OR_NULL,
    "block_out_channels": _Right(
        lambda value: isinstance(value, list) and all(_is_int(one, 1) and one <= 65_536 for one in value),
        "a list of whole numbers up to 65,536, one a level",
    ),
    "center_input_sample": _SWITCH,
    "class_embed_type": _NULL,
    "downsample_padding": _Right(lambda value: _is_int(value, 0), "a whole number, 0 or more"),
    "downsample_type": _one_of("conv", "resnet"),
    "dropout": _Right(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "flip_sin_to_cos": _SWITCH,
    "freq_shift": _NUMBER,
    "layers_per_block": _Right(lambda value: _is_int(value, 1) and value <= 64, "a whole number, 1 or more, at most 64"),
    "mid_block_scale_factor": _Right(lambda value: _is_number(value) and value != 0, "a number other than 0"),
    "mid_block_type": _Right(lambda value: value is None or isinstance(value, str), "UNetMidBlock2D or null"),
    "norm_eps": _NUMBER,
    "norm_num_groups": _COUNT,
    "num_class_embeds": _NULL,
    "num_train_timesteps": _COUNT_OR_NULL,
    "resnet_time_scale_shift": _one_of("default", "scale_shift"),
    "time_embedding_dim": _COUNT_OR_NULL,
    "time_embedding_type": _Right(
        lambda value: value in ("positional", "learned"),
        "positional or learned (fourier divides by the timestep, and one is 0)",
    ),
    "upsample_type": _one_of("conv", "resnet"),
}


_OF_IMAGES = ("sample_size", "in_channels", "out_channels")  # held against the images
_OF_BLOCKS = ("down_block_types", "up_block_types")
KNOWN_KEYS = {*_KEYS, *_OF_IMAGES, *_OF_BLOCKS}


def config_problems(config: UnetConfig) -> Iterator[Problem]:
    """Of a `model.config`, what it says that can never be; first key by key, then keys that contradict each other."""
    wrong = set()
    for key, value in config.items():
        problems = list((_type_problems if key in _OF_BLOCKS else _value_problems)(key, value))
        wrong |= {key} if problems else set()
        yield from problems
    if not wrong:
        yield from _contradictions(config)


def _value_problems(key: str, value: Any) -> Iterator[Problem]:
    right = _KEYS.get(key)
    if right is None and key not in _OF_IMAGES:
        yield Problem(f"model.config.{key}", "unknown key", f"known here: {', '.join(sorted(KNOWN_KEYS))}")
    if right is not None and not right.holds(value):
        yield _problem(key, "is nothing to build a U-Net of", right.words, value)


def _problem(key: str, what: str, expected: str, given: object) -> Problem:
    return Problem(f"model.config.{key}", what, expected, given, has_given=True)


def _type_problems(key: str, types: Any) -> Iterator[Problem]:
    expected = f"a list of 1 to {MAX_LEVELS} block types, such as DownBlock2D or AttnUpBlock2D"
    if not isinstance(types, list) or not 1 <= len(types) <= MAX_LEVELS or not all(isinstance(kind, str) for kind in types):
        yield _problem(key, "is not a list of block types", expected, types)
        return
    for index, kind in enumerate(types):
        if kind.startswith(_CONDITIONAL):
            yield _problem(f"{key}.{index}", "attends to a condition, and here is none", "a block without CrossAttn", kind)
        elif kind in _OF_OTHERS:
            yield _problem(
                f"{key}.{index}", "is no block of UNet2DModel's", "a block such as AttnDownBlock2D or UpBlock2D", kind
            )


def _contradictions(config: UnetConfig) -> Iterator[Problem]:
    channels, downs, ups = (config.get(key) for key in ("block_out_channels", "down_block_types", "up_block_types"))
    for key, types in (("up_block_types", ups), ("block_out_channels", channels)):
        if types is not None and downs is not None and len(types) != len(downs):
            yield _problem(key, "has another length than down_block_types", f"{len(downs)} entries", types)
    groups = config.get("norm_num_groups", 32)
    if channels and any(number % groups for number in channels):
        yield _problem("norm_num_groups", f"does not divide all of {channels}", "a divisor of every block_out_channels", groups)
    if channels and channels[0] // 2 == config.get("freq_shift", 0) and config.get("time_embedding_type") != "learned":
        yield _problem("freq_shift", "divides by 0: it is half of the first channels", "0 or 1", config.get("freq_shift", 0))
    if config.get("time_embedding_type") == "learned" and (config.get("num_train_timesteps") or 0) < TIMESTEPS:
        what = "is too small for a learned embedding of the timesteps"
        yield _problem("num_train_timesteps", what, f"{TIMESTEPS} or more", config.get("num_train_timesteps"))
