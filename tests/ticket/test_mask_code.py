"""The code of a mask: exact, near its entropy, and one for each mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylt.ticket.mask_code import HEADER, decode, encode


def _bits(seed: int, size: int, density: float) -> np.ndarray:
    return np.random.default_rng(seed).random(size) < density


def assert_refused_or_its_only_code(code: np.ndarray, size: int) -> None:
    try:
        bits = decode(code, size)
    except ValueError as error:
        assert "its code is" in str(error)
    else:
        assert np.array_equal(encode(bits), code)


@given(st.lists(st.booleans(), max_size=300))
@settings(max_examples=300)
def test_any_bits_come_back(kept: list[bool]) -> None:
    kept_N = np.array(kept, np.bool_)
    code = encode(kept_N)
    assert code.dtype == np.uint8
    assert np.array_equal(decode(code, len(kept)), kept_N)


@given(st.integers(0, 99), st.integers(1, 5_000), st.sampled_from([0.0, 0.001, 0.02, 0.3, 0.5, 0.8, 0.999, 1.0]))
def test_bits_of_every_density_come_back(seed: int, size: int, density: float) -> None:
    kept_N = _bits(seed, size, density)
    assert np.array_equal(decode(encode(kept_N), size), kept_N)


@pytest.mark.parametrize(("density", "most"), [
    (0.001, 1.02), (0.01, 1.01), (0.05, 1.012), (0.1, 1.02), (0.2, 1.025), (0.33, 1.025), (0.38, 1.045), (0.5, 1.001),
    (0.62, 1.045), (0.9, 1.02), (0.99, 1.01),
])  # fmt: skip
def test_its_bytes_are_near_the_entropy(density: float, most: float) -> None:
    kept_N = _bits(0, 1_000_000, density)
    p = kept_N.mean()
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)) * len(kept_N) / 8
    assert len(encode(kept_N)) < most * entropy


@given(st.integers(0, 99), st.integers(1, 400), st.floats(0, 1), st.data())
@settings(max_examples=500)
def test_other_bytes_are_refused_or_are_the_code_of_other_bits(
    seed: int, size: int, density: float, data: st.DataObject
) -> None:
    """Whatever is flipped, cut off or added: what is read is what was written so, or nothing."""
    code = encode(_bits(seed, size, density)).copy()
    place = data.draw(st.integers(0, len(code) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "add"]))
    if kind == "flip":
        code[place] ^= 1 << data.draw(st.integers(0, 7))
    code = (
        code[:place] if kind == "cut" else np.append(code, np.uint8(data.draw(st.integers(0, 255)))) if kind == "add" else code
    )
    assert_refused_or_its_only_code(code, size)


@given(st.binary(max_size=40), st.integers(0, 100))
@settings(max_examples=500)
def test_bytes_of_no_mask_are_refused(data: bytes, size: int) -> None:
    code = np.frombuffer(data, np.uint8)
    assert_refused_or_its_only_code(code, size)


def test_a_code_of_another_size_is_refused() -> None:
    code = encode(_bits(0, 200, 0.2))
    with pytest.raises(ValueError, match="its code is of more than 100 bits"):
        decode(code, 100)
    with pytest.raises(ValueError, match="its code is cut off"):
        decode(code[: HEADER - 1], 200)
