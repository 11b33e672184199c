"""Tensors as bytes: the same tensors and metadata are the same bytes, in whatever process."""

from __future__ import annotations

import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from raylt.diffusion.tensors import losslessly_gathered, pack, scattered, unpack

CODE = """
import hashlib, torch
from raylt.diffusion.tensors import pack
data = pack({name: name * 3 for name in "abcdefgh"}, w={"x": torch.arange(7.0), "y": torch.ones(2, 3, dtype=torch.uint8)})
print(hashlib.sha256(data).hexdigest())
"""


def test_a_file_is_the_same_in_every_process():
    said = {subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(said) == 1 and len(said.pop().strip()) == 64


@given(st.dictionaries(st.text(max_size=6), st.text(max_size=40), max_size=8), st.integers(0, 9))
def test_metadata_and_tensors_come_back(tmp_path_factory, metadata, size):
    tensors = {"x": torch.arange(float(size)), "y": torch.ones(2, size, dtype=torch.bool)}
    data = pack(metadata, w=tensors)
    path = tmp_path_factory.mktemp("pack") / "file"
    path.write_bytes(data)
    with safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == metadata
    (group,) = unpack(data).values()
    assert all(torch.equal(group[name], tensors[name]) and group[name].dtype == tensors[name].dtype for name in tensors)
    assert data == pack(dict(reversed(metadata.items())), w=tensors)


SPECIAL = [0.0, -0.0, 1.0, -2.5, float("inf"), float("nan"), 1e-45]


@given(st.lists(st.tuples(st.sampled_from(SPECIAL), st.booleans()), min_size=6, max_size=6), st.booleans())
def test_what_is_gathered_comes_back_to_the_bit(cells, is_masked):
    """Whatever lies under the mask: only +0.0 is left out, else the tensor stays whole."""
    mask = torch.tensor([keep for _, keep in cells]).reshape(2, 3)
    value = torch.tensor([number for number, _ in cells]).reshape(2, 3)
    value = torch.where(mask, value, 0.0) if is_masked else value
    values, masks = {"a": value, "bias": torch.ones(2)}, {"a": mask}
    kept = losslessly_gathered(values, masks)
    assert kept["a"].numel() <= int(mask.sum()) or not is_masked
    again = scattered(unpack(pack(w=kept))["w"], masks)
    assert all(torch.equal(again[name].view(torch.int32), values[name].view(torch.int32)) for name in values)
    assert all(torch.equal(scattered(values, masks)[name].view(torch.int32), values[name].view(torch.int32)) for name in values)
