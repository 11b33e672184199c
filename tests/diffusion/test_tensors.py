"""Tensors as bytes: the same tensors and metadata are the same bytes, in whatever process."""

from __future__ import annotations

import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from raylt.diffusion.tensors import pack, unpack

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
