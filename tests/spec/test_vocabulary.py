"""Every word that a spec may use is known to the code that it is for, and the other way round."""

from __future__ import annotations

from typing import get_args

from raylt.diffusion.data import _TORCHVISION
from raylt.spec import vocabulary
from raylt.spec.presets import PRESETS
from raylt.ticket.criteria import AT_REWIND_POINT, CRITERIA
from raylt.ticket.density_rules import BASES, SCORES


def test_rules():
    assert set(get_args(vocabulary.Rule)) == {*BASES, *SCORES}
    assert set(get_args(vocabulary.Base)) <= set(BASES)


def test_criteria():
    assert set(get_args(vocabulary.Criterion)) == set(CRITERIA)
    assert set(AT_REWIND_POINT) <= set(CRITERIA)


def test_presets_and_data_sets():
    assert set(get_args(vocabulary.PresetName)) == set(PRESETS)
    assert set(get_args(vocabulary.DataName)) == set(vocabulary.IMAGE_SHAPES) == {"digits", "images", *_TORCHVISION}
