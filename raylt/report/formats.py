"""docs/formats.md: the files of a store, and the document of `records`, key by key.

python -m raylt.report.formats > docs/formats.md
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ConfigDict, TypeAdapter

from raylt.report.records import SweepDocument
from raylt.spec.reference import entry, wrapped

STORE = """\
# Formats

What raylt keeps and prints, for programs that read it. The second part of this page is made from
the code by `python -m raylt.report.formats`. [History](formats-history.md) says what was added
when.

## Files of a store

A store is a folder or a bucket, here `ROOT`. Every JSON file that is believed has a member
`sha256` over its content and its place.

```text
ROOT/sweeps/NAME/
  spec.yaml                      the spec, with every default written out
  spec.lock.json                 what was resolved when the sweep started, and its copy,
  spec.lock.copy.json            from which `raylt store verify --repair` restores it
  trials/00017/asked.json        a trial as it was submitted
  trials/00017/result.json       its result, written once
  similarity.json                similarity of the pilots, profile, groups
  confirm.json, confirm-2.json   the plan of a confirmation, and what extends it
  mlflow.json                    trial -> its run in MLflow
  lease.json, lease/00003.json   the driver's sign of life; one file a driver, in turn
  stop.json                      a request to stop
  index/                         a cache of finished trials; may be deleted
  logs/00017/                    what workers said, for people
  study.db                       Optuna's study, made from the trials; may be deleted
ROOT/stages/AB/SHA256/
  key.json                       what the stage is computed from; its hash is the address
  manifest.json                  its values and files; a stage without it is unfinished
  failed.json                    in place of a manifest: it diverged twice
  *.safetensors, samples.npz     its files
```

`spec.lock.json` has the code schema, the spec's digest and the spec at the start, device,
precision, threads, form of a step, `startup`, the hashes of the images and of Inception's
weights, and the versions of the libraries.

A stage is of one of these kinds: `start` (the rewind point), `train` (weights, their average and
the mask of a round), `mask` (of a costly criterion), `loss`, `sample` (FID and KID), `ticket`,
and the inputs: images, weights of Inception, statistics, a classifier.

`trained.safetensors` has the groups `weights` and `ema`, and `mask.safetensors` beside it the
group `gaps`: the mask of each layer. Of a layer that the mask prunes, `trained.safetensors` has
the kept values alone, in C order. Every other value is +0.0.

`ticket.safetensors` has `gaps` too, and `w`, and after a rewind to a later step than 0 also `m`
and `v`, Adam's moments. A seed ticket (`raylt export --seed-ticket`) has `gaps` alone. Its
metadata have `init_seed`, and `init_sha256` of the weights that the seed leads to. `sha256` is of
all metadata and tensors of the file. A stage has a ticket file for the dense model and for a
trial's last round.

The code of a mask is a byte with the width of a remainder, and 128 added where pruned weights
are the rarer ones and are coded; four bytes, the number of gaps, the least significant first;
the quotients of the gaps in unary (so many zeros, and a one); the remainders, the least
significant bit first. Each of the two is filled up to a byte.

Stages and ticket files of earlier versions have whole tensors, and masks as plain bits in the
group `mask`. They are read as they are.

## `raylt results NAME --json`
"""

TITLES = {  # in the order of the page
    "SweepDocument": "The document", "TrialRecord": "A trial", "RoundRecord": "A round of a trial",
    "ConfirmationRow": "A row of `confirmation`", "Summary": "A number over seeds", "Difference": "A paired difference",
    "Similarity": "Similarity of a block or layer", "ProtocolRecord": "A protocol", "Counts": "`counts`", "Steps": "`steps`",
    "Timing": "`timing`",
}  # fmt: skip


def page() -> str:
    """docs/formats.md."""
    return STORE + "\n" + "\n".join(_records()) + "\n"


def _records() -> Iterator[str]:
    yield from (*wrapped("`null` stands where a number is not there. `raylt ticket --json` prints one trial of it."), "")
    schema = TypeAdapter(list[SweepDocument], config=ConfigDict(use_attribute_docstrings=True)).json_schema()
    for name, title in TITLES.items():
        record = schema["$defs"][name]
        yield from (f"### {title}", "", *wrapped(record["description"]), "")
        described = {key: about for key, about in record["properties"].items() if "description" in about}  # not the inherited
        yield from (line for key, about in described.items() for line in entry(key, about["description"]))
        yield ""


if __name__ == "__main__":
    print(page().rstrip("\n"))
