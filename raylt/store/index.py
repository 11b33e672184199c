"""An index of a sweep's ended trials, so that a reader of thousands need not open two files for each.

    ROOT/sweeps/NAME/index/<first>.part    trials first, first + 1 ... of `PART`, once all of them have ended

It is a cache. The driver writes a part from what it has committed; readers need no part. What is believed of one, and when:

- A part counts only if its checksum is right, so what it says is what a driver wrote. One that is damaged counts as away.
- A trial in it counts only if its files are listed with the sizes that the part has noted: where one is gone, cut or
  replaced, the files are read. So a result that was deleted is gone, part or no part.
- A byte that changes in a `result.json` behind a part moves no number, as the part has what was written. `raylt store verify`
  reads both, and says which is damaged.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raylt.spec import TrialSpec
from raylt.spec.canonical import canonical
from raylt.store.filesystem import dump_json
from raylt.store.ledger_files import Sizes
from raylt.store.results import TrialResult
from raylt.store.seals import BadSeal, place_of, seal, seal_bytes, unseal_bytes
from raylt.store.stages import Store
from raylt.store.sweep_lock import Origin

PART = 200  # trials: few enough that an open tail is soon read, many enough that a long sweep has few parts


class Head(NamedTuple):
    """What a part says of a trial at once."""

    number: int
    asked_bytes: int
    result_bytes: int
    state: str
    cause: str | None


def first_of(number: int) -> int:
    """The first trial of the part that a trial belongs to."""
    return number - number % PART


def part_path(name: str, first: int) -> str:
    return f"sweeps/{name}/index/{first:05d}.part"


@dataclass(frozen=True)
class Part:
    """Some ended trials. Their results, which are most of it, stay packed until one is wanted."""

    heads: dict[int, Head]  # trial -> its head
    asked: tuple[TrialSpec, ...]  # in the order of heads
    packed: bytes

    @staticmethod
    def of(trials: Sequence[tuple[TrialSpec, TrialResult]]) -> Part:
        """A part of trials as the ledger has them."""
        heads = {trial.id: _head(trial, result) for trial, result in trials}
        packed = zlib.compress(canonical([result.to_json() for _, result in trials]), 6)
        return Part(heads, tuple(trial for trial, _ in trials), packed)

    def results(self) -> dict[int, TrialResult]:
        records = json.loads(zlib.decompress(self.packed))
        return dict(zip(self.heads, map(TrialResult.from_json, records), strict=True))

    def trials_of(self, sizes: Mapping[int, Sizes]) -> Iterator[TrialSpec]:
        """The trials whose files are as long as they were."""
        for trial, head in zip(self.asked, self.heads.values(), strict=True):
            if sizes.get(trial.id) == (head.asked_bytes, head.result_bytes):
                yield trial

    def dump(self, place: str) -> bytes:
        heads = canonical({"heads": [*self.heads.values()], "asked": [trial.dump() for trial in self.asked]})
        return seal_bytes(heads + b"\n" + self.packed, place)

    @staticmethod
    def load(data: bytes, place: str) -> Part:
        """What `dump` gave. Raises `ValueError` where it is something else, or of a newer raylt."""
        heads, _, packed = unseal_bytes(data, place).partition(b"\n")
        try:
            content = json.loads(heads)
            heads_of = {head[0]: Head(*head) for head in content["heads"]}
            return Part(heads_of, tuple(TrialSpec.load(asked) for asked in content["asked"]), packed)
        except (ValueError, TypeError, KeyError) as error:
            raise BadSeal(f"it is no part of an index: {error}") from error


def _head(trial: TrialSpec, result: TrialResult) -> Head:
    asked, ended = (
        len(dump_json(seal(record, ""))) for record in (trial.dump(), result.to_json())
    )  # as `Files.create_record` wrote them
    return Head(trial.id, asked, ended, result.state, result.cause)


def read_parts(store: Store, name: str, firsts: Collection[int], origin: Origin) -> list[Part]:
    """Those of the parts that begin with trials `firsts` that are there and whole."""
    there = set(store.names(f"sweeps/{name}/index"))
    paths = (part_path(name, first) for first in sorted(firsts))
    parts = store.each(
        lambda path: _read_part(store, path, origin), [path for path in paths if path.rpartition("/")[2] in there]
    )
    return [part for part in parts if part is not None]


def _read_part(store: Store, path: str, origin: Origin) -> Part | None:
    data = store.read(path)
    try:
        return None if data is None else Part.load(data, place_of(path, origin.sweep))
    except BadSeal:
        return None  # `raylt store verify` says so


def write_part(store: Store, name: str, part: Part, origin: Origin) -> None:
    """Put a part into the index, in place of one that is damaged or tells of files that are gone."""
    path = part_path(name, min(part.heads))
    store.write(path, part.dump(place_of(path, origin.sweep)))


class Results(MutableMapping[int, TrialResult]):
    """Trial -> how it ended. Those of an index are unpacked when they are first looked at."""

    def __init__(self) -> None:
        self._held: dict[int, TrialResult | Part] = {}

    def hold(self, number: int, part: Part) -> None:
        """Have a trial as a part has it."""
        self._held[number] = part

    def packed(self) -> list[int]:
        """The trials of which an index was believed."""
        return [number for number, held in self._held.items() if isinstance(held, Part)]

    def outcome(self, number: int) -> tuple[str, str | None]:
        """(state, cause) of a trial that has ended; unpacks nothing."""
        held = self._held[number]
        if isinstance(held, Part):
            return held.heads[number].state, held.heads[number].cause
        return held.state, held.cause

    def copy(self) -> Results:
        """Another that later results do not enter."""
        other = Results()
        other._held = self._held.copy()
        return other

    def __getitem__(self, number: int) -> TrialResult:
        held = self._held[number]
        if not isinstance(held, Part):
            return held
        for other, result in held.results().items():
            if self._held.get(other) is held:  # or another thread was faster
                self._held[other] = result
        return self[number]

    def __setitem__(self, number: int, result: TrialResult) -> None:
        self._held[number] = result

    def __delitem__(self, number: int) -> None:
        del self._held[number]

    def __contains__(self, number: object) -> bool:
        return number in self._held

    def __iter__(self) -> Iterator[int]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
