"""What a spec means: its defaults, its identity, its densities, its groups, and which keys contradict each other."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylt.spec import SweepSpec, load_spec
from raylt.spec.checks import cross_key_problems
from raylt.spec.presets import PRESETS
from raylt.spec.schema import flatten
from raylt.spec.sections import TicketSpec
from raylt.spec.vocabulary import PresetName

SWEEPS = Path(__file__).parents[2] / "sweeps"

QUICKSTART: dict[str, Any] = {  # as FORMATS has it
    "schema": 1,
    "name": "digits",
    "data.name": "digits",
    "model.preset": "digits",
    "train.steps": 400,
    "train.batch_size": 32,
    "train.learning_rate": 5e-3,
    "train.optimizer": "adam",
    "train.warmup_steps": 50,
    "train.schedule": "cosine",
    "train.gradient_clip": 1.0,
    "train.beta_schedule": "squaredcos_cap_v2",
    "train.ema_decay": 0.99,
    "train.seed": 0,
    "train.precision": "auto",
    "train.checkpoint_every": 100,
    "ticket.rounds": 2,
    "ticket.density": 0.1,
    "ticket.rewind_step": 20,
    "ticket.mode": "rewind",
    "ticket.criterion": "magnitude",
    "ticket.scope": "layer",
    "ticket.keep_dense": ["conv_in", "conv_out"],
    "ticket.min_kept": 1,
    "ticket.shared_rounds": 1,
    "search.sampler": "similarity",
    "search.base": "erk",
    "search.profile": "excess",
    "search.rungs": False,
    "search.trials": 8,
    "search.startup": None,
    "search.concurrency": 2,
    "search.repeatable": True,
    "search.seed": 0,
    "search.objectives": ["loss", "flops"],
    "search.budget": "density",
    "search.pilots": 2,
    "search.baselines": ["uniform", "erk"],
    "search.groups.down": ["down_blocks.*"],
    "search.groups.mid": ["time_embedding", "mid_block"],
    "search.groups.up": ["up_blocks.*"],
    "metrics.search.samples": 1000,
    "metrics.search.sampler": "ddim",
    "metrics.search.steps": 10,
    "metrics.search.features": "digits-cnn",
    "metrics.final.samples": 5000,
    "metrics.final.sampler": "ddim",
    "metrics.final.steps": 50,
    "metrics.final.features": "digits-cnn",
    "metrics.reference": None,
    "metrics.keep_samples": False,
    "resources.cpus": 1,
    "resources.gpus": "auto",
    "storage.root": "./raylt-data",
    "tracking.uri": "sqlite:///mlflow.db",
}
NOT_IN_QUICKSTART: dict[str, Any] = {
    "data.root": None,
    "data.size": None,
    "data.channels": "auto",
    "data.flip": False,
    "model.config": None,
    "train.betas": [0.9, 0.99],
    "train.weight_decay": 0.0,
    "ticket.densities": None,
    "search.constraints.flops": None,
    "search.constraints.ticket_bytes": None,
    "confirm.seeds": 5,
    "confirm.margin.loss": None,
    "confirm.margin.fid": None,
    "train.compile": "auto",
    "metrics.search.spacing": None,
    "metrics.final.spacing": None,
    "confirm.top": 3,
    "confirm.steps": None,
    "confirm.controls": ["reinit", "shuffled", "random", "small-dense"],
    "confirm.control_rounds": None,
}

FREE = {  # key -> another value; a sweep stays the same sweep
    "name": "other",
    "data.root": "/data",
    "train.checkpoint_every": 7,
    "search.trials": 80,
    "search.concurrency": 5,
    "confirm.seeds": 7,
    "confirm.margin.loss": 0.01,
    "confirm.margin.fid": 0.1,
    "confirm.top": 1,
    "confirm.steps": [400, 1200],
    "confirm.controls": ["reinit"],
    "confirm.control_rounds": [1],
    "resources.cpus": 4,
    "resources.gpus": 0.5,
    "storage.root": "s3://bucket/raylt",
    "tracking.uri": "http://localhost:5000",
}
IDENTITY = {  # key -> another value; another sweep
    "data.name": "mnist",
    "data.size": 16,
    "data.channels": 3,
    "data.flip": True,
    "model.preset": "tiny",
    "model.config": {"block_out_channels": [8, 16]},
    "train.steps": 500,
    "train.batch_size": 64,
    "train.learning_rate": 1e-4,
    "train.optimizer": "adamw",
    "train.betas": [0.9, 0.999],
    "train.weight_decay": 0.01,
    "train.warmup_steps": 0,
    "train.schedule": "constant",
    "train.gradient_clip": None,
    "train.beta_schedule": "linear",
    "train.ema_decay": 0.995,
    "train.seed": 1,
    "train.precision": "fp32",
    "train.compile": "off",
    "ticket.rounds": 3,
    "ticket.density": 0.05,
    "ticket.densities": [0.5, 0.1],
    "ticket.rewind_step": 0,
    "ticket.mode": "fine-tune",
    "ticket.criterion": "movement",
    "ticket.scope": "block",
    "ticket.keep_dense": ["conv_in"],
    "ticket.min_kept": 2,
    "ticket.shared_rounds": 0,
    "search.sampler": "tpe",
    "search.base": "lamp",
    "search.profile": "size",
    "search.rungs": True,
    "search.constraints.flops": 0.04,
    "search.constraints.ticket_bytes": 1000,
    "search.startup": 3,
    "search.repeatable": False,
    "search.seed": 1,
    "search.objectives": ["loss"],
    "search.budget": "flops",
    "search.pilots": 3,
    "search.baselines": ["erk", "uniform"],
    "search.groups.down": ["down_blocks.0", "down_blocks.1"],
    "search.groups.mid": ["time_embedding"],
    "search.groups.up": [],
    "metrics.search.samples": 500,
    "metrics.search.sampler": "dpm++",
    "metrics.search.steps": 20,
    "metrics.search.features": "inception",
    "metrics.search.spacing": "leading",
    "metrics.final.spacing": "trailing",
    "metrics.final.samples": 10_000,
    "metrics.final.sampler": "ddpm",
    "metrics.final.steps": 1000,
    "metrics.final.features": "inception",
    "metrics.reference": 1000,
    "metrics.keep_samples": True,
}
ONE_VALUE = {"schema"}
TWO_LEVELS = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}


@pytest.fixture(scope="module")
def digits() -> SweepSpec:
    return load_spec(str(SWEEPS / "digits.yaml"))


def changed(spec: SweepSpec, **values: Any) -> SweepSpec:
    """The spec with keys replaced, double underscores for dots."""
    data = copy.deepcopy(spec.dump())
    for key, value in values.items():
        *sections, last = key.split("__")
        inner = data
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return SweepSpec.model_validate(data)


def keys_of_problems(spec: SweepSpec) -> list[str]:
    return [problem.key for problem in cross_key_problems(spec)]


def test_digits_is_the_quickstart_of_formats(digits: SweepSpec) -> None:
    assert flatten(digits.dump()) == QUICKSTART | NOT_IN_QUICKSTART
    text = (SWEEPS / "digits.yaml").read_text()
    assert all(f"{key.rpartition('.')[2]}:" in text for key in QUICKSTART)


def test_presets_have_the_names_the_spec_knows() -> None:
    assert set(get_args(PresetName)) == set(PRESETS)


class TestIdentity:
    def test_every_key_is_covered(self, digits: SweepSpec) -> None:
        assert set(flatten(digits.dump())) == FREE.keys() | IDENTITY.keys() | ONE_VALUE
        assert not FREE.keys() & IDENTITY.keys()

    @pytest.mark.parametrize("key", FREE)
    def test_a_free_key_keeps_the_digest(self, digits: SweepSpec, key: str) -> None:
        other = changed(digits, **{key.replace(".", "__"): FREE[key]})
        assert other != digits
        assert other.digest == digits.digest
        assert key not in digits.identity()

    @pytest.mark.parametrize("key", IDENTITY)
    def test_any_other_key_changes_it(self, digits: SweepSpec, key: str) -> None:
        other = changed(digits, **{key.replace(".", "__"): IDENTITY[key]})
        assert other.digest != digits.digest
        was, now = digits.identity(), other.identity()
        differing = {k for k in was.keys() | now.keys() if was.get(k) != now.get(k)}
        assert all(k == key or k.startswith(f"{key}.") for k in differing)

    @pytest.mark.parametrize(
        ("data", "digest"),
        [
            ({}, "735f5f0e1b86681afb8d46e4d959846f2b46988e9e6b0734a9044371cf440676"),
            ({"name": "cifar10"}, "bbee108049b68a3e14e55af8068b489e7e4ea3e8813faa5f0a6f793d1ddafd92"),
            ({"name": "mnist", "size": 16}, "82065bd0ed7acb801944e8f1a73ef4c935f20c216a39c0b076100f0e256e4dde"),
            ({"name": "images", "root": "x", "size": 32}, "5bc1602e034f67fb8189e17f773059795ff8e2c7d0282be5b938a4780e0ee13f"),
        ],
    )
    def test_sweeps_begun_before_data_had_channels_are_the_same_sweeps(self, data: dict[str, Any], digest: str) -> None:
        """The digests are those of a raylt that did not know the key."""
        spec = SweepSpec.model_validate({"schema": 1, "name": "a", "data": data})
        written_out = changed(spec, data__channels=spec.image_shape[0])
        assert spec.digest == written_out.digest == digest

    def test_another_number_of_channels_is_another_sweep(self) -> None:
        data = {"name": "images", "root": "x", "size": 32, "channels": 1}
        spec = SweepSpec.model_validate({"schema": 1, "name": "a", "data": data})
        assert spec.image_shape == (1, 32) and spec.unet_config["in_channels"] == spec.unet_config["out_channels"] == 1
        assert spec.digest != changed(spec, data__channels="auto").digest
        assert spec.identity()["data.channels"] == 1

    def test_specs_of_before_there_was_a_spacing_keep_their_digest(self, digits: SweepSpec) -> None:
        assert digits.digest == "8928b43753e8cb1bccbb57a2be8a9a8414369e67d50b88d12ecb3685c0324e3d"
        assert load_spec("digits-results").digest == "b4b4b3c04e6399a827ccef6da63b2a2245b9e7400b3b801ecd6275d729ef229d"
        bare = SweepSpec(schema=1, name="x")
        assert bare.digest == "735f5f0e1b86681afb8d46e4d959846f2b46988e9e6b0734a9044371cf440676"

    def test_a_spacing_that_is_written_out_is_still_the_default(self, digits: SweepSpec) -> None:
        same = changed(digits, metrics__search__spacing="trailing", metrics__final__spacing="leading")
        assert same.digest == digits.digest
        assert [digits.protocol(name).spacing for name in ("search", "final")] == ["trailing", "leading"]  # 10 and 50 steps
        for steps, spacing in ((20, "trailing"), (21, "leading")):
            assert changed(digits, metrics__search__steps=steps).protocol("search").spacing == spacing
        for sampler in ("ddpm", "dpm++"):
            assert changed(digits, metrics__search__sampler=sampler).protocol("search").spacing is None

    def test_it_rests_on_values_not_on_how_they_are_written(self, digits: SweepSpec) -> None:
        data = digits.dump()
        shuffled = {key: dict(reversed(v.items())) if isinstance(v, dict) else v for key, v in reversed(data.items())}
        shuffled["train"]["gradient_clip"] = 1
        assert SweepSpec.model_validate(shuffled).digest == digits.digest


class TestDensities:
    @given(rounds=st.integers(1, 40), density=st.floats(1e-4, 1.0))
    def test_a_geometric_schedule_falls_by_one_ratio_to_the_density(self, rounds: int, density: float) -> None:
        ticket = TicketSpec(rounds=rounds, density=density)
        schedule = [ticket.density_of(r) for r in range(rounds + 1)]
        assert schedule[0] == 1.0
        assert schedule[-1] == ticket.final_density == pytest.approx(density)
        assert all(0 < later <= earlier for earlier, later in pairwise(schedule))
        ratios = [later / earlier for earlier, later in pairwise(schedule)]
        assert ratios == pytest.approx([density ** (1 / rounds)] * rounds)

    @given(st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=9))
    def test_densities_are_taken_as_they_are(self, densities: list[float]) -> None:
        ticket = TicketSpec(rounds=len(densities), densities=densities)
        assert [ticket.density_of(r) for r in range(len(densities) + 1)] == [1.0, *densities]

    def test_a_tenth_is_the_default(self) -> None:
        assert TicketSpec().final_density == pytest.approx(0.1)

    def test_contradictions(self, digits: SweepSpec) -> None:
        one = changed(digits, ticket__density=None, ticket__densities=[0.5, 0.1])
        assert keys_of_problems(one) == []
        for densities, rounds in (([0.1, 0.5], 2), ([0.5], 2), ([0.5, 0.2, 0.1], 2)):
            wrong = changed(one, ticket__densities=densities, ticket__rounds=rounds)
            assert keys_of_problems(wrong) == ["ticket.densities"]
        assert keys_of_problems(changed(digits, ticket__densities=[0.5, 0.1])) == ["ticket.densities"]


class TestGroups:
    def test_defaults(self, digits: SweepSpec) -> None:
        down, mid, up = ["down_blocks.0", "down_blocks.1"], ["time_embedding", "mid_block"], ["up_blocks.0", "up_blocks.1"]
        spec = changed(digits, search__groups=None)
        assert spec.groups == {"down": down, "mid": mid, "up": up} == digits.groups
        ends = changed(spec, ticket__keep_dense=[]).groups
        assert ends == {"down": down, "mid": mid, "up": up, "ends": ["conv_in", "conv_out"]}
        assert "mid" not in changed(spec, ticket__keep_dense=["mid_block", "time_embedding"]).groups

    def test_every_block_not_kept_dense_has_exactly_one(self, digits: SweepSpec) -> None:
        groups = {"down": ["down_blocks.*"], "mid": ["time_embedding", "mid_block"], "up": ["up_blocks.*"]}
        assert keys_of_problems(changed(digits, search__groups=groups)) == []
        assert keys_of_problems(changed(digits, search__groups=groups | {"ends": ["conv_*"]}, ticket__keep_dense=[])) == []

        twice = cross_key_problems(changed(digits, search__groups=groups | {"more": ["mid_block"]}))
        assert [p.key for p in twice] == ["search.groups.more"]
        assert "mid_block has more than one group" in twice[0].what

        missing = cross_key_problems(changed(digits, search__groups={k: v for k, v in groups.items() if k != "up"}))
        assert [p.what for p in missing] == ["block up_blocks.0 has no group", "block up_blocks.1 has no group"]

    def test_a_group_needs_blocks_and_a_pattern_too(self, digits: SweepSpec) -> None:
        groups = {"down": ["down_blocks.*"], "mid": ["time_embedding", "mid_block"], "up": ["up_blocks.*", "up_block.7"]}
        assert keys_of_problems(changed(digits, search__groups=groups)) == ["search.groups.up.1"]
        groups |= {"up": ["up_blocks.*"], "ends": ["conv_in"], "none": []}
        assert keys_of_problems(changed(digits, search__groups=groups)) == ["search.groups.ends", "search.groups.none"]

    def test_auto_names_no_group_by_itself(self, digits: SweepSpec) -> None:
        auto = changed(digits, search__groups="auto")
        assert keys_of_problems(auto) == []
        assert auto.identity()["search.groups"] == "auto" and auto.digest != changed(digits, search__groups=None).digest
        with pytest.raises(LookupError, match="before the profile is measured"):
            _ = auto.groups


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"ticket__rewind_step": 400}, ["ticket.rewind_step"]),
        ({"ticket__rewind_step": 399}, []),
        ({"ticket__shared_rounds": 2}, ["ticket.shared_rounds"]),
        ({"ticket__keep_dense": ["conv_in", "conv_uot"]}, ["ticket.keep_dense.1", "search.groups"]),
        ({"ticket__keep_dense": ["*"]}, ["ticket.keep_dense"]),
        ({"ticket__keep_dense": ["conv_in", "conv_out", "mid_block.resnets.0.conv1"]}, []),
        ({"data__name": "images", "data__size": 8, "model__preset": "tiny"}, ["data.root", *["metrics"] * 2]),
        ({"data__name": "images", "data__root": "x"}, ["data.size", *["metrics"] * 2]),
        ({"data__size": 9}, ["data.size"]),
        ({"data__root": "x"}, ["data.root"]),
        ({"data__channels": 1}, []),
        ({"data__channels": 3}, ["data.channels"]),
        ({"data__name": "cifar10", "data__channels": 1}, ["data.channels", *["metrics"] * 2]),
        ({"model__config": {"in_channels": 3}, "model__preset": None}, ["model.config.in_channels"]),
        ({"model__config": {**TWO_LEVELS, "in_channels": 1, "out_channels": 1}, "model__preset": None}, []),
        ({"model__config": {**TWO_LEVELS, "sample_size": 8}, "model__preset": None}, []),
        ({"model__config": {**TWO_LEVELS, "sample_size": [8, 8]}, "model__preset": None}, []),
        ({"model__config": {**TWO_LEVELS, "sample_size": None}, "model__preset": None}, []),
        ({"model__config": {**TWO_LEVELS, "sample_size": [8, 16]}, "model__preset": None}, ["model.config.sample_size"]),
        ({"model__config": {**TWO_LEVELS, "out_channels": True}, "model__preset": None}, ["model.config.out_channels"]),
        ({"data__name": "cifar10"}, ["metrics"] * 2),
        ({"model__config": {"up_block_types": None}, "model__preset": None}, ["model.config.up_block_types"]),
        ({"search__objectives": ["loss", "loss"]}, ["search.objectives"]),
        ({"search__baselines": ["erk", "erk"]}, ["search.baselines"]),
        ({"search__pilots": 1}, ["search.pilots"]),
        ({"ticket__criterion": "snip"}, []),
        ({"ticket__criterion": "snip", "ticket__mode": "fine-tune"}, ["ticket.mode"]),
        ({"ticket__criterion": "movement", "ticket__mode": "fine-tune", "search__budget": "flops"}, []),
        ({"ticket__criterion": "synflow"}, ["search.profile"]),
        ({"ticket__criterion": "synflow", "search__profile": "movement"}, []),
        ({"search__pilots": 0, "search__profile": "movement"}, []),
        ({"search__pilots": 0, "search__sampler": "tpe"}, []),
        ({"search__pilots": 0, "search__trials": 0}, []),
        ({"search__groups": "auto", "search__pilots": 1}, ["search.pilots"]),
        ({"search__groups": "auto", "search__pilots": 1, "search__sampler": "random"}, ["search.pilots"]),
        ({"search__groups": "auto", "search__pilots": 0, "search__profile": "movement", "search__sampler": "tpe"}, []),
        ({"search__groups": "auto", "search__pilots": 0, "search__profile": "size"}, []),
        ({"search__groups": "auto", "search__pilots": 0, "search__trials": 0}, []),
        ({"search__groups": "auto", "ticket__criterion": "synflow", "search__sampler": "gp"}, ["search.profile"]),
        ({"search__groups": "auto", "ticket__criterion": "synflow", "search__profile": "movement"}, []),
        ({"ticket__criterion": "synflow", "search__sampler": "gp"}, []),
        ({"metrics__search__sampler": "dpm++", "metrics__search__steps": 1}, ["metrics"]),
        ({"metrics__final__features": "mnist-cnn"}, ["metrics"]),
        ({"metrics__search__spacing": "leading", "metrics__final__spacing": "trailing"}, []),
        ({"metrics__search__spacing": "leading", "metrics__search__sampler": "dpm++"}, ["metrics"]),
        ({"metrics__final__spacing": "trailing", "metrics__final__sampler": "ddpm"}, ["metrics"]),
    ],
)  # fmt: skip
def test_contradictions(digits: SweepSpec, values: dict[str, Any], keys: list[str]) -> None:
    found = keys_of_problems(changed(digits, **values))
    assert [key.partition(".")[0] if key.startswith("metrics") else key for key in found] == keys


def test_features_by_default(digits: SweepSpec) -> None:
    assert SweepSpec(schema=1, name="x").protocol("search").features == "digits-cnn"
    assert changed(digits, data__name="mnist", metrics__search__features=None).protocol("search").features == "inception"
    assert digits.protocol("final").samples == 5000
