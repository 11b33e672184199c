"""From a YAML file to a spec: every error at once, with its line and its key, and never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raylt.errors import Problem, SpecError
from raylt.spec import dump_yaml, load_spec, parse_spec
from raylt.spec.load import builtin_sweeps
from raylt.spec.yaml_text import read_yaml
from raylt.store import Store
from raylt.store.damage import Damaged
from raylt.store.sweep_state import stored_spec

SWEEPS = Path(__file__).parents[2] / "sweeps"
HEAD = "schema: 1\nname: x\n"


def problems(text: str, *overrides: str) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "f.yaml", overrides)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return caught.value.problems


def problem(text: str, *overrides: str) -> str:
    found = problems(text, *overrides)
    assert len(found) == 1, found
    return str(found[0])


TEN_ERRORS = """\
schema: 1
name: my sweep
data: {name: minst}
train:
  steps: 400
  learning_rate: 0
  batch_size: 32
  batch_size: 64
ticket:
  densty: 0.1
  rewind_step: 400
  keep_dense: [conv_in, 5]
search:
  sampler: gpp
metrics:
  search: {samples: true}
learning_rate: 1e-4
"""

TEN_MESSAGES = [
    "2: name: has characters that a name cannot have (got 'my sweep');"
    " letters, digits, - and _, at most 100, a letter or a digit first",
    "3: data.name: is not known (got 'minst'); did you mean 'mnist'?"
    " one of digits, mnist, fashion-mnist, cifar10, cifar100, images",
    "6: train.learning_rate: is too small (got 0); a number, more than 0",
    "8: train.batch_size: is given twice; one of them (the first is in line 7)",
    "10: ticket.densty: unknown key; did you mean 'density'?",
    "11: ticket.rewind_step: lies at or after the end of training (got 400); less than train.steps, which is 400",
    "12: ticket.keep_dense.1: is not text (got 5); text, in quotes",
    "14: search.sampler: is not known (got 'gpp'); did you mean 'gp'? one of similarity, tpe, gp, nsga2, random",
    "16: metrics.search.samples: is not a whole number (got true); a whole number, at least 2 and at most 1e+09",
    "17: learning_rate: unknown key; did you mean 'train.learning_rate'?",
]


def test_planted_errors_are_all_reported_at_once() -> None:
    assert [str(p) for p in problems(TEN_ERRORS)] == [f"f.yaml:{message}" for message in TEN_MESSAGES]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("data: {flip: no}\n", "3: data.flip: is not true or false (got 'no'); true or false"),
        ("train: 5\n", "3: train: is not a section (got 5); a section: steps, batch_size"),
        ("train: {steps: 1e3}\n", "3: train.steps: is not a whole number (got 1000.0); a whole number, at least 1 and"),
        ("train: {steps: }\n", "3: train.steps: is not a whole number (got null)"),
        ("train:\n  learning_rate: .nan\n", "4: train.learning_rate: is not a number (got '.nan'); a number, more than 0"),
        ("train: {learning_rate: 1e999}\n", "3: train.learning_rate: is not a number (got '1e999')"),
        ("train: {betas: [0.9]}\n", "3: train.betas: has too few entries (got [0.9]); a list of 2, each a number, at"),
        ("train: {ema_decay: 1}\n", "3: train.ema_decay: is too large (got 1); a number, at least 0 and less than 1"),
        ("data: {channels: 2}\n", "3: data.channels: is not known (got 2); one of 1, 3, auto"),
        ("data: {channels: true}\n", "3: data.channels: is not known (got true); one of 1, 3, auto"),
        ("data: {channels: 1.0}\n", "3: data.channels: is not known (got 1.0); one of 1, 3, auto"),
        ("data:\n  channels: 3\n", "4: data.channels: is not what digits has (got 3); 1, or auto"),
        ("data: {root: ./mine, size: 8}\n", "3: data.root: is never looked at: the digits come with scikit-learn (got"),
        (
            "data: {name: images, root: x, size: 32}\nmodel:\n  config:\n    in_channels: 1\n",
            "6: model.config.in_channels: contradicts the images (got 1); 3, or no such key: the images say it",
        ),
        (
            "data: {name: cifar10}\nmodel:\n  config:\n    sample_size: 64\n",
            "6: model.config.sample_size: contradicts the images (got 64); 32, or no such key",
        ),
        ("model: {preset: smal}\n", "3: model.preset: is not known (got 'smal'); did you mean 'small'? one of digits, tiny"),
        ("model: {preset: tiny, config: {}}\n", "3: model: has both preset and config; one of them"),
        ("model: {config: {down_block_types: 3}}\n", "3: model.config.down_block_types: is not a list of block types"),
        ("search: {rungs: median}\n", "3: search.rungs: is not true or false (got 'median'); true or false"),
        ("search: {budget: flop}\n", "3: search.budget: is not known (got 'flop'); did you mean 'flops'? one of density"),
        ("ticket: {criterion: snpi}\n", "3: ticket.criterion: is not known (got 'snpi'); did you mean 'snip'? one of "),
        ("search:\n  sampler: nsga3\n", "4: search.sampler: is not known (got 'nsga3'); did you mean 'nsga2'? one of"),
        ("search: {base: ERK}\n", "3: search.base: is not known (got 'ERK'); did you mean 'erk'? one of uniform, erk"),
        ("search: {baselines: uniform}\n", "3: search.baselines: is not a list (got 'uniform'); a list, each one of"),
        ("search: {groups: {a b: [x]}}\n", "3: search.groups.a b: is no name; letters, digits, - and _, at most 200"),
        ("search: {groups: atuo}\n", "3: search.groups: is not known (got 'atuo'); auto, or a section: names of your choice"),
        ("search: {groups: [a]}\n", "3: search.groups: is not a section (got ['a']); auto, or a section: names of your"),
        ("search: {groups: {down: 5}}\n", "3: search.groups.down: is not a list (got 5); a list, each text"),
        ("search: {groups: {down: [5]}}\n", "3: search.groups.down.0: is not text (got 5); text, in quotes"),
        (
            "search: {groups: auto, pilots: 1, sampler: random}\n",
            "3: search.pilots: are too few for profile: excess (groups: auto) (got 1); 2 or more: similarity is measured",
        ),
        ("resources: {gpus: many}\n", "3: resources.gpus: is not known (got 'many'); auto, or a number, at least 0"),
        ("resources: {gpus: -1}\n", "3: resources.gpus: is too small (got -1); auto, or a number, at least 0"),
        ("resources: {gpus: true}\n", "3: resources.gpus: is not a number (got true); auto, or a number, at least 0"),
        ("zzz: 1\n", "3: zzz: unknown key; known here: schema, name, data, model, train"),
        ("1: 2\n", "3: 1: unknown key; known here: "),
        ("train.steps: 5\n", "3: 'train.steps': unknown key; steps indented below train"),
        ("? [a, b]\n: 1\n", "3: YAML: has a key that is a list or a section; a word"),
        ("name: y\n", "3: name: is given twice; one of them (the first is in line 2)"),
        ("data: !secret {}\n", "3: data: has the tag !secret; a value without a tag"),
        ("train: [\n", "4: YAML: while parsing a flow node expected the node content"),
        ("train:\n\tsteps: 1\n", "4: YAML: while scanning for the next token found character '\\t' that cannot start any"),
        ("a: b: c\n", "3: YAML: mapping values are not allowed here; one KEY: VALUE a line"),
        ("---\na: 1\n", "3: YAML: expected a single document in the stream but found another document; one document"),
        ("a: *b\n", "3: YAML: found undefined alias 'b'; quotes around text that begins with *"),
        ("a: \x07\n", "3: YAML: special characters are not allowed (got '\\x07'); plain text"),
        ("a: &b [*b]\n", "3: a.0.0: is too large or nested too deeply"),
        ("a: " + "[" * 5000, "1: YAML: is nested too deeply"),
    ],
)  # fmt: skip
def test_one_error(body: str, message: str) -> None:
    assert problem(HEAD + body).startswith(f"f.yaml:{message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "1: schema: is missing; a line `schema: VALUE`, where VALUE is 1"),
        ("schema: 2\nname: x\n", "1: schema: is not known (got 2); 1"),
        ("schema: 1\nname: 2024\n", "2: name: is not text (got 2024); letters, digits, - and _, at most 100"),
        ("", "1: YAML: is empty; KEY: VALUE lines, of which schema: 1 and name: NAME are required"),
        ("# nothing\n", "1: YAML: is empty"),
        ("- 1\n", "1: YAML: is not a section (got [1]); KEY: VALUE lines"),
        ("digits\n", "1: YAML: is not a section (got 'digits')"),
    ],
)
def test_one_error_of_the_whole(text: str, message: str) -> None:
    assert problem(text).startswith(f"f.yaml:{message}")


def test_messages_are_plain_words_on_one_line() -> None:
    for found in problems(TEN_ERRORS + 'storage: {root: 5}\n"a\\nb": 1\n'):
        assert "\n" not in str(found)
        assert "input should" not in str(found).lower()
        assert found.expected


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = "[1e-4, 5.0e-3, 1E5, no, on, yes, 012, 1_000, 0x10, 0o17, ~, true, '1', !!str 1, 2024-01-01, 1:30, .5, -.inf]"
    expected = [1e-4, 5e-3, 1e5, "no", "on", "yes", 12, 1000, 16, 15, None, True, "1", "1", "2024-01-01", "1:30", 0.5, "-.inf"]
    for prefix in ("", "%YAML 1.1\n---\n"):
        got = read_yaml(prefix + text, "f").data
        assert got == expected
        assert [type(value) for value in got] == [type(value) for value in expected]


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "1E-4", "+1e-4"])
def test_exponents_are_numbers(number: str) -> None:
    assert parse_spec(f"{HEAD}train: {{learning_rate: {number}}}\n", "f").train.learning_rate == 1e-4


def test_empty_sections_are_all_defaults() -> None:
    sections = ("data", "model", "train", "ticket", "search", "metrics", "resources", "storage", "tracking")
    empty = parse_spec(HEAD + "".join(f"{section}:\n" for section in sections), "f")
    assert empty == parse_spec(HEAD, "f") == parse_spec(HEAD + "metrics: {search: , final: }\n", "f")
    assert (empty.metrics.final.samples, empty.metrics.final.steps) == (50_000, 50)


def test_a_section_given_in_part_keeps_its_own_defaults() -> None:
    spec = parse_spec(HEAD + "metrics: {final: {features: inception}}\n", "f")
    assert (spec.metrics.final.samples, spec.metrics.final.steps) == (50_000, 50)


def test_anchors_and_merges_count() -> None:
    text = HEAD + "metrics:\n  search: &p {samples: 10, sampler: dpm++}\n  final: {<<: *p, samples: 20}\n"
    final = parse_spec(text, "f").metrics.final
    assert (final.samples, final.sampler) == (20, "dpm++")
    assert problem(HEAD + "train: &t {stepps: 1}\n").startswith("f.yaml:3: train.stepps: unknown key")


def test_contradictions_that_rest_on_a_wrong_key_wait() -> None:
    assert len(problems(HEAD + "train: {steps: 5x}\nticket: {rewind_step: 3000}\n")) == 1
    assert len(problems(HEAD + "train: {stepps: 9000}\nticket: {rewind_step: 3000}\n")) == 1
    assert len(problems(HEAD + "train: {steps: 9000, steps: 1}\nticket: {rewind_step: 3000}\n")) == 1
    assert len(problems(HEAD + "train: {seed: x}\nticket: {rewind_step: 3000}\n")) == 2
    assert len(problems("name: x\nticket: {rewind_step: 3000}\n")) == 2


class TestOverrides:
    def test_count_as_if_they_stood_in_the_file(self) -> None:
        given_in_file = parse_spec(HEAD + "train: {learning_rate: 1e-4}\nticket: {densities: [0.5, 0.1]}\n", "f")
        overrides = ["train.learning_rate=1e-4", "ticket.densities=[0.5, 0.2]", "ticket.densities.1=0.1"]
        assert parse_spec(HEAD, "f", overrides) == given_in_file
        assert parse_spec(HEAD + "train:\n", "f", overrides) == given_in_file

    def test_the_last_one_wins_and_a_section_is_replaced_whole(self) -> None:
        spec = parse_spec(
            HEAD + "train: {steps: 7, seed: 3}\n", "f", ["train.steps=8", "train={steps: 9}", "train.batch_size=2"]
        )
        assert (spec.train.steps, spec.train.seed, spec.train.batch_size) == (9, 0, 2)

    def test_may_give_what_the_file_lacks_or_has_wrong(self) -> None:
        assert parse_spec("schema: 1\ntrain: {steps: x}\n", "f", ["name=y", "train.steps=3"]).name == "y"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            (
                "train.steps=x",
                "--set: train.steps: is not a whole number (got 'x'); a whole number, at least 1 and at most 1e+09",
            ),
            ("train.stepps=5", "--set: train.stepps: unknown key; did you mean 'steps'?"),
            ("tran.steps=5", "--set: tran: unknown key; did you mean 'train'?"),
            ("train.steps.x=5", "--set: train.steps: is not a whole number (got {x: 5})"),
            ("train={steps: 1, steps: 2}", "--set: train.steps: is given twice; one of them"),
            ("train.seed=[", "--set: train.seed: while parsing a flow node"),
            ("train.seed=", "--set: train.seed: is not a whole number (got null)"),
            ("ticket.rewind_step=400", "--set: ticket.rewind_step: lies at or after the end of training (got 400)"),
            ("train.steps", "--set: 'train.steps': is no override; KEY=VALUE, for example search.trials=20"),
            ("=5", "--set: '=5': is no override"),
            ("train..steps=5", "--set: 'train..steps=5': is no override"),
        ],
    )
    def test_errors_name_it(self, override: str, message: str) -> None:
        assert problem(HEAD + "train: {seed: 1}\n", override).startswith(message)

    def test_errors_of_the_file_come_first(self) -> None:
        found = problems("schema: 1\nname: x\nzzz: 1\n", "train.steps=0", "nonsense")
        assert [(p.file, p.line, p.key) for p in found] == [
            ("f.yaml", 3, "zzz"), ("--set", None, "train.steps"), ("--set", None, "'nonsense'"),
        ]  # fmt: skip


def test_every_sweep_that_comes_with_raylt_is_valid() -> None:
    found = builtin_sweeps()
    studies = ["digits-results", "mnist-results", "mnist-rewind", "mnist-similarity"]
    assert list(found) == sorted(["cifar10", "cifar10-uniform", "cifar100", "digits", "mnist", *studies])
    for name, path in found.items():
        spec = load_spec(name)
        assert spec.name == name == path.stem
        again = parse_spec(dump_yaml(spec.dump()), "again")
        assert again == spec
        assert again.digest == spec.digest


def test_the_papers_schedule() -> None:
    ticket = load_spec("cifar10-uniform").ticket
    assert [ticket.density_of(r) for r in range(22)] == pytest.approx([0.8**r for r in range(22)], rel=1e-12)


def test_a_sweep_that_was_begun_is_read_although_its_keys_would_contradict_each_other_today(tmp_path: Path) -> None:
    text = HEAD + "model: {config: {in_channels: 7}}\ndata: {root: ./mine, size: 9}\n"
    assert len(problems(text)) == 3
    store = Store(str(tmp_path))
    store.write("sweeps/x/spec.yaml", text.encode())
    assert stored_spec(store, "x").unet_config["in_channels"] == 1  # what it was run with
    store.write("sweeps/x/spec.yaml", text.encode() + b"zzz: 1\n")
    with pytest.raises(Damaged, match="zzz: unknown key"):
        stored_spec(store, "x")


def test_reading_needs_no_torch_and_little_time() -> None:
    code = (
        "import sys, time; start = time.process_time()\n"
        "import raylt.spec\n"
        "raylt.spec.load_spec('digits')\n"
        "assert not {'torch', 'ray', 'optuna', 'mlflow', 'diffusers', 'numpy'} & set(sys.modules)\n"
        "print(time.process_time() - start)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SWEEPS.parent)
    assert float(out.stdout) < 0.6  # CPU seconds; a third of it on a quiet machine
