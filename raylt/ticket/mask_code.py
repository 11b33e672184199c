"""The bits of a mask in about as many bytes as they have entropy: Rice codes of the gaps between the rarer ones.

Rice and Plaut 1971; of positions, Moffat and Zobel 1996. At density p a gap is geometric. Its code takes 1 % more than its
entropy where p or 1 - p is at most .1, at most 2.5 % up to .33, and at most 4.5 % in between.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
HEADER = 5  # bytes: width of the remainders and which bits are coded, number of gaps
PRUNED_ARE_RARER = 0x80


def encode(kept_N: Bools) -> Bytes:
    """(N) -> bytes, from which `decode` makes it again: a header, the quotients in unary, the remainders in `width` bits."""
    of_pruned = 2 * int(kept_N.sum()) > len(kept_N)
    gaps = np.diff(np.flatnonzero(kept_N ^ of_pruned), prepend=-1) - 1
    width = _best_width(gaps)
    header = np.array([width | of_pruned * PRUNED_ARE_RARER, *len(gaps).to_bytes(4, "little")], np.uint8)
    quotients = gaps >> width
    unary = np.zeros(int(quotients.sum()) + len(gaps), np.bool_)
    unary[np.cumsum(quotients + 1) - 1] = True
    remainders = (gaps[:, None] >> np.arange(width)) & 1
    return np.concatenate([header, np.packbits(unary), np.packbits(remainders.astype(np.bool_))])


def decode(code: Bytes, size: int) -> Bools:
    """(size) bits. Raises `ValueError` for bytes that `encode` does not make of that many."""
    if len(code) < HEADER:
        raise ValueError("its code is cut off")
    width, of_pruned = int(code[0]) & ~PRUNED_ARE_RARER, bool(code[0] & PRUNED_ARE_RARER)
    count = int.from_bytes(code[1:HEADER].tobytes(), "little")
    if 2 * count > size or width > size.bit_length():
        raise ValueError(f"its code is of another size than {size}")
    end = len(code) - -(-count * width // 8)
    ends = np.flatnonzero(np.unpackbits(code[HEADER : max(end, HEADER)]))
    if len(ends) != count or end < HEADER:
        raise ValueError("its code is cut off or damaged")
    remainders = np.unpackbits(code[end:], count=count * width).reshape(count, width) @ (1 << np.arange(width))
    positions = np.cumsum(((np.diff(ends, prepend=-1) - 1) << width) + remainders + 1) - 1
    if count and not positions[-1] < size:
        raise ValueError(f"its code is of more than {size} bits")
    kept_N = np.full(size, of_pruned)
    kept_N[positions] ^= True
    if not np.array_equal(encode(kept_N), code):  # one code for one mask: no byte of it is idle
        raise ValueError("its code is not the shortest")
    return kept_N


def _best_width(gaps: npt.NDArray[np.int64]) -> int:
    """The width that makes the code shortest: near the logarithm of the mean gap."""
    if not len(gaps):
        return 0
    near = int(gaps.mean()).bit_length()
    return min(range(max(0, near - 2), near + 1), key=lambda width: int((gaps >> width).sum()) + len(gaps) * width)
