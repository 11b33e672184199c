"""A surrogate of the digits search, fitted to its finished trials: bends of ERK -> losses; FLOPs are counted, not fitted.

Whoever searches on it goes through raylt's own proposer, space, allocation and rungs. Only the training is replaced.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import KFold

from guidance.arms import GROUPS

Floats = npt.NDArray[np.float64]
ROUNDS = (2, 3)  # the rung and the end; round 1 is shared by all


class Surrogate:
    """Loss at the rung and at the end, as a ratio to that of ERK under the same seed: a Gaussian process and its noise."""

    def __init__(self, bends: Floats, ratios: Floats) -> None:
        """`bends`: trials x groups, in logits; `ratios`: trials x rounds."""
        self.bends, self.ratios = bends, ratios
        self.models = [_fit(bends, ratios[:, index]) for index in range(ratios.shape[1])]
        self.noise = np.cov(np.array([self._left_out(index) for index in range(ratios.shape[1])]))

    @staticmethod
    def of_runs(runs: Sequence[Mapping[str, Any]]) -> Surrogate:
        """Of the complete trials over ERK that are alive. A run's first trial is ERK itself."""
        bends, ratios = [], []
        for run in runs:
            base = run["trials"][0]["losses"]
            for trial in run["trials"]:
                if trial["state"] == "COMPLETE" and not trial["broken"]:
                    bends.append([trial["bend"][group] for group in GROUPS])
                    ratios.append([trial["losses"][index] / base[index] for index in ROUNDS])
        return Surrogate(np.array(bends), np.array(ratios))

    def _left_out(self, index: int) -> Floats:
        """Residuals of trials that a fit did not see."""
        residuals = np.zeros(len(self.bends))
        for train, test in KFold(10, shuffle=True, random_state=0).split(self.bends):
            model = _fit(self.bends[train], self.ratios[train, index], self.models[index].kernel_)
            residuals[test] = self.ratios[test, index] - model.predict(self.bends[test])
        return residuals

    def quality(self) -> dict[str, Any]:
        """What the fit is worth, on trials that it did not see."""
        found: dict[str, Any] = {"trials": len(self.bends)}
        for index, number in enumerate(ROUNDS):
            truth, residual = self.ratios[:, index], self._left_out(index)
            found[f"round {number}"] = {
                "r2": 1 - float(residual.var() / truth.var()),
                "spearman": float(spearmanr(truth, truth - residual).statistic),
                "sd": float(truth.std()),
                "noise_sd": float(residual.std()),
            }
        return found

    def expected(self, bend: Floats) -> Floats:
        """Ratios at the rung and at the end, without noise."""
        return np.array([model.predict(bend[None])[0] for model in self.models])

    def draw(self, random: np.random.Generator) -> Floats:
        """The noise of one training, at the rung and at the end."""
        return random.multivariate_normal(np.zeros(len(self.models)), self.noise)


def _fit(bends: Floats, ratios: Floats, kernel: Any = None) -> GaussianProcessRegressor:
    start = ConstantKernel(1.0) * RBF(np.full(bends.shape[1], 2.0), (1.0, 100)) + WhiteKernel(0.1, (1e-3, 1.0))
    model = GaussianProcessRegressor(
        kernel or start,
        optimizer=None if kernel else "fmin_l_bfgs_b",
        normalize_y=True,
        n_restarts_optimizer=0 if kernel else 2,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: the group does not matter
        return model.fit(bends, ratios)
