"""Nothing that lies in a store can run code: whoever may write there can spoil results, not take over machines."""

from __future__ import annotations

import ast
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import raylt
from raylt.diffusion.tensors import unpack
from raylt.store import Output, Store
from raylt.ticket.ticket_file import load_ticket

SOURCES = sorted(Path(raylt.__file__).parent.rglob("*.py"))
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


class _Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("dump", [pickle.dumps, lambda bomb: _torch_saved(bomb)], ids=["pickle", "torch.save"])
def test_a_pickle_in_place_of_tensors_is_refused_and_not_run(dump, tmp_path):
    went_off = tmp_path / "went off"
    data = dump(_Bomb(went_off))
    stage = Store(str(tmp_path / "root")).stage({"kind": "planted"})
    stage.make(lambda own: Output(files={"trained.safetensors": data}))  # a manifest that vouches for it
    with pytest.raises(SafetensorError):
        unpack(stage.read("trained.safetensors"))
    ticket = tmp_path / "ticket.safetensors"
    ticket.write_bytes(data)
    with pytest.raises(Exception, match=r"ticket|[Hh]eader"):
        load_ticket(ticket)
    assert not went_off.exists()
    pickle.loads(pickle.dumps(_Bomb(went_off)))  # it is a real one
    assert went_off.exists()


def _torch_saved(bomb: _Bomb) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(bomb, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(SOURCES[0].parent).as_posix())
def test_no_source_unpickles_or_evaluates(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {(getattr(node, "module", None) or "").split(".")[0]}
            assert not names & UNPICKLERS, ast.unparse(node)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "importlib.import_module", "__import__"), ast.unparse(node)
            if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), ast.unparse(node)
            if name in ("numpy.load", "np.load"):
                assert not any(k.arg == "allow_pickle" for k in node.keywords), ast.unparse(node)
