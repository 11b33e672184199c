"""Damage to a store, put in words: which file, what is lost with it, and what mends it.

The words follow from where a file lies, so this is the one place that says what each kind of file is worth.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from raylt.errors import StoreFailure


class Loss(NamedTuple):
    what: str  # is lost
    mend: str  # what `raylt store verify --repair` does about it


_STAGE = r"stages/[^/]+/[^/]+/"
_SWEEP = r"sweeps/[^/]+/"
_REMADE = "deletes the stage; `raylt sweep` makes what it needs, `raylt retry NAME TRIAL` runs a complete trial again"
_RESTORED = "restores it from its copy; where that is no better, start beside it with `raylt sweep --new`, on the same stages"
_LOSSES = (  # of the first pattern that a path matches
    (_STAGE + r"checkpoint-", Loss("the steps since the stage started", "deletes it; the stage starts over")),
    (_STAGE + r"failed\.json$", Loss("a remembered divergence", "deletes it; the stage is trained again")),
    (_STAGE + r"claim\.json$", Loss("nothing", "deletes it")),
    (_STAGE, Loss("one stage, which can be made again", _REMADE)),
    (_SWEEP + r"trials/\d+/result\.json$", Loss("the trial's result", "deletes it; the trial runs again on its stages")),
    (_SWEEP + r"trials/\d+/", Loss("what the trial was", "sets the trial aside; another is submitted in its place")),
    (_SWEEP + r"index/", Loss("nothing: it is a cache of trials/", "deletes it; the next driver makes it again")),
    (_SWEEP + r"spec\.lock\.json$", Loss("what the sweep was started with", _RESTORED)),
    (_SWEEP + r"spec\.lock\.copy\.json$", Loss("the copy of spec.lock.json", "makes it again")),
    (_SWEEP + r"spec\.yaml$", Loss("the spec that the sweep was last run with", "restores it as the sweep was started")),
    (_SWEEP + r"similarity\.json$", Loss("the measured similarity", "deletes it; it is measured again")),
    (_SWEEP + r"confirm(-\d+)?\.json$", Loss("the plan of the confirmation", "deletes it; `raylt confirm` plans again")),
    (_SWEEP + r"mlflow\.json$", Loss("which runs of MLflow are the sweep's", "deletes it; MLflow gets new runs")),
    (_SWEEP + r"lease/", Loss("who drove the sweep", "writes that nobody knows; `raylt sweep` then waits for signs of life")),
    (_SWEEP + r"(lease|stop)", Loss("who drives the sweep", "deletes it")),
)  # fmt: skip


def loss_of(path: str) -> Loss:
    """What is lost with a file of a store, and how it is mended. `path`: under the root."""
    return next((loss for pattern, loss in _LOSSES if re.match(pattern, path)), Loss("what it held", "deletes it"))


class Damaged(StoreFailure):
    """A file of the store is not what was written: no trial's fault, so no trial's result. Exit 3, until it is mended.

    `path`: under the store's root.
    """

    def __init__(self, where: str, path: str, why: str) -> None:
        self.path, self.why = path, why
        loss = loss_of(path)
        super().__init__(
            f"{where} is damaged: {why}; lost: {loss.what}. `raylt store verify` looks for more, and with --repair {loss.mend}"
        )
