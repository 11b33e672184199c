"""Search parameters <-> allocation: gamma bends the base along the similarity profile, deltas bend it group by group."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.distributions import BaseDistribution, FloatDistribution

from raylt.spec import SweepSpec

GAMMA, DELTA = "gamma", "delta/"
GAMMA_RANGE = 1.5  # logits per standard deviation of the profile: beyond, small groups are full or empty
DELTA_RANGE = 1.0


def parameter_names(spec: SweepSpec) -> list[str]:
    return [GAMMA, *(f"{DELTA}{group}" for group in spec.groups)]


def distributions(spec: SweepSpec) -> dict[str, BaseDistribution]:
    """The space of the study, fixed for its life."""
    space: dict[str, BaseDistribution] = {
        f"{DELTA}{group}": FloatDistribution(-DELTA_RANGE, DELTA_RANGE) for group in spec.groups
    }
    return {GAMMA: FloatDistribution(-GAMMA_RANGE, GAMMA_RANGE), **space} if _has_gamma(spec) else space


def _has_gamma(spec: SweepSpec) -> bool:
    """Sampler `tpe` knows no similarity: its gamma is 0. So is that of `gp` and `nsga2` where there is nothing to bend by."""
    search = spec.search
    if search.sampler in ("gp", "nsga2"):
        return search.has_profile
    return search.sampler != "tpe"


def at_base(spec: SweepSpec) -> dict[str, float]:
    """All zeros: the base itself."""
    return dict.fromkeys(parameter_names(spec), 0.0)


def offsets(spec: SweepSpec, params: Mapping[str, float], profile: Mapping[str, float]) -> dict[str, float]:
    """Block -> what is added to its layers' logits: gamma s_g + delta_g, the deltas centred across groups.

    (A constant added to every delta would change nothing: c takes it back.)
    """
    deltas = {group: params.get(f"{DELTA}{group}", 0.0) for group in spec.groups}
    centre = sum(deltas.values()) / len(deltas)
    gamma = params.get(GAMMA, 0.0)
    bend = {group: gamma * profile.get(group, 0.0) + deltas[group] - centre for group in deltas}
    return {block: bend[group] for group, blocks in spec.groups.items() for block in blocks}
