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
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.model_selection import KFold

from guidance.arms import GROUPS

Floats = npt.NDArray[np.float64]
ROUNDS = (2, 3)  # the rung and the end; round 1 is shared by all
NEAR = 1.5  # logits: the noise is that of trials bent no further, which further ones have more of


class Surrogate:
    """Loss at the rung and at the end, by that of ERK under the same seed: a Gaussian process on the log, and its noise."""

    def __init__(self, bends: Floats, ratios: Floats, arms: Sequence[str]) -> None:
        """`bends`: trials x groups, in logits; `ratios`: trials x rounds; `arms`: which search each trial is of."""
        self.bends, self.logs, self.arms = bends, np.log(ratios), np.array(arms)
        rounds = range(self.logs.shape[1])
        self.models = [_fit(bends, self.logs[:, index]) for index in rounds]
        self.residuals = np.array([self._left_out(index) for index in rounds])
        is_near = np.abs(bends).max(axis=1) <= NEAR
        self.noise = np.cov(self.residuals[:, is_near])

    @staticmethod
    def of_runs(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Surrogate:
        """Of the complete trials over ERK that are alive; `runs`: arm -> its runs. A run's first trial is ERK itself."""
        rows = [
            (
                [trial["bend"][group] for group in GROUPS],
                [trial["losses"][i] / run["trials"][0]["losses"][i] for i in ROUNDS],
                arm,
            )
            for arm, mine in runs.items()
            for run in mine
            for trial in run["trials"]
            if trial["state"] == "COMPLETE" and not trial["broken"]
        ]
        bends, ratios, arms = zip(*rows, strict=True)
        return Surrogate(np.array(bends), np.array(ratios), arms)

    def _left_out(self, index: int) -> Floats:
        """Residuals of trials that a fit did not see, ten folds."""
        residuals = np.zeros(len(self.bends))
        for train, test in KFold(10, shuffle=True, random_state=0).split(self.bends):
            residuals[test] = self._missed_by(index, train, test)
        return residuals

    def _missed_by(self, index: int, train: Any, test: Any) -> Floats:
        model = _fit(self.bends[train], self.logs[train, index], self.models[index].kernel_)
        missed: Floats = self.logs[test, index] - model.predict(self.bends[test])
        return missed

    def quality(self) -> dict[str, Any]:
        """What the fit is worth, on trials that it did not see: ten folds; and the trials of a whole arm."""
        rounds = {}
        for index, number in enumerate(ROUNDS):
            truth, residual = self.logs[:, index], self.residuals[index]
            rounds[f"round {number}"] = {
                "r2": 1 - float(residual.var() / truth.var()),
                "spearman": float(spearmanr(truth, truth - residual).statistic),
                "sd": float(truth.std()),
                "noise_sd": float(self.noise[index, index] ** 0.5),
            }
        last, arms = len(ROUNDS) - 1, {}
        for arm in dict.fromkeys(self.arms.tolist()):
            missed = self._missed_by(last, self.arms != arm, self.arms == arm)
            arms[arm] = {"bias": float(missed.mean()), "sd": float(missed.std())}
        return {"trials": len(self.bends), "rounds": rounds, "arms": arms}

    def expected(self, bend: Floats) -> Floats:
        """Ratios at the rung and at the end, without noise."""
        return np.exp([model.predict(bend[None])[0] for model in self.models])

    def draw(self, random: np.random.Generator) -> Floats:
        """The noise of one training, on the log, at the rung and at the end."""
        return random.multivariate_normal(np.zeros(len(self.models)), self.noise)


def _fit(bends: Floats, logs: Floats, kernel: Any = None) -> GaussianProcessRegressor:
    """A quadratic, so that far bends go on to be worse, and a smooth rest; the kernel's numbers by maximum likelihood once."""
    quadratic = ConstantKernel(1.0, (1e-4, 1e3)) * DotProduct(1.0) ** 2
    rest = ConstantKernel(0.5, (1e-4, 1e3)) * RBF(np.full(bends.shape[1], 2.0), (1.0, 100))
    model = GaussianProcessRegressor(
        kernel or quadratic + rest + WhiteKernel(0.1, (1e-3, 1.0)),
        optimizer=None if kernel else "fmin_l_bfgs_b",
        normalize_y=True,
        n_restarts_optimizer=0 if kernel else 2,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: the group does not matter
        return model.fit(bends, logs)
