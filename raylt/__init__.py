"""raylt: how far can a diffusion model be pruned, and where?

    import raylt

    trials = raylt.results("digits")         # a DataFrame, one row a trial
    verdicts = raylt.confirmation("digits")  # a DataFrame, one row a budget, ticket, control and round

There is no module `raylt.results`, nor may there be: importing it would put it in this function's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

__version__ = "0.1.0"
__all__ = ["__version__", "confirmation", "results"]


def results(name: str, root: str | None = None) -> DataFrame:
    """The trials of a sweep, one row each, with the columns of `raylt results NAME --csv`; the index is the trial's id.

    `name`: a sweep's name, or its spec file. `root`: the store; else `$RAYLT_ROOT`, else `./raylt-data`. Rows of protocols
    `search` and `final` do not compare, nor do those of two `train_steps`. `df.attrs["protocols"]` says what is behind a FID.
    """
    from raylt.report.dataframes import trials_frame  # here: `import raylt` costs nothing
    from raylt.report.lookup import find_results

    return trials_frame(find_results(str(name), root)[2])


def confirmation(name: str, root: str | None = None) -> DataFrame:
    """What `raylt confirm` found in a sweep: means over seeds, their 95 % intervals, paired differences and verdicts.

    One row a training budget, ticket, control and round; columns such as `loss_mean`, `loss_low`, `vs_dense_fid_verdict` and
    `vs_ticket_loss_mean`. Empty before anything was confirmed. `name` and `root` as in `results`.
    """
    from raylt.report.dataframes import confirmation_frame
    from raylt.report.lookup import find_results

    return confirmation_frame(find_results(str(name), root)[2])
