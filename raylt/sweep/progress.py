"""What a user sees while a sweep or a ticket search runs: a live line on a terminal, plain lines elsewhere. On stderr."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.status import Status
from rich.text import Text

from raylt.spec import SweepSpec, TrialSpec, plan
from raylt.store import Ledger
from raylt.store.results import COMPLETE, RoundResult, TrialResult


class SweepProgress:
    """One line for every round and every end of a trial; on a terminal also how far the sweep is."""

    def __init__(self, spec: SweepSpec, ledger: Ledger, console: Console) -> None:
        self.spec, self.ledger, self.console = spec, ledger, console
        verb = "resumes" if ledger.submitted else "starts"
        self.say(f"{spec.name} {verb}: {len(ledger.results)} of {self.total} trials finished; store {ledger.store.root}")
        self._status: Status | None = console.status(Text(self._headline())) if console.is_terminal else None
        if self._status is not None:
            self._status.start()

    @property
    def total(self) -> int:
        """Trials planned and to be searched, as far as they are known: what is confirmed is known when the search has ended."""
        return len(plan(self.spec)) + self.spec.search.trials + len(self.ledger.confirmations())

    def _headline(self) -> str:
        running = ", ".join(trial.name for trial in self.ledger.open_trials()) or "nothing"
        return f"{self.spec.name}: {len(self.ledger.results)} of {self.total} trials finished; running {running}"

    def changed(self, trial: TrialSpec, result: TrialResult | None) -> None:
        if result is not None and result.state == COMPLETE:
            self.say(f"{trial.name} complete: {_numbers(result.scores)}{' BROKEN' if result.scores.broken else ''}")
        elif result is not None:
            self.say(f"{trial.name} {result.state}: {result.cause}")
        if self._status is not None:
            self._status.update(Text(self._headline()))

    def round_done(self, trial: TrialSpec, report: RoundResult) -> None:
        last = 0 if trial.training.rule is None else max(trial.training.control_rounds, default=self.spec.ticket.rounds)
        if last and not report.shared:
            self.say(f"{trial.name} round {report.round}/{last}: {_numbers(report)}")

    def say(self, line: str) -> None:
        """A line with the time of day."""
        self.console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()


def _numbers(scored: RoundResult) -> str:
    return f"density {scored.density or 0:.4f}  loss {_short(scored.loss)}  FID {_short(scored.fid)}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def ticket_progress(spec: SweepSpec, console: Console) -> Callable[[int, int, float], None]:
    """A callback that says how far one search's training is."""

    def report(round_index: int, step: int, loss: float) -> None:
        line = f"round {round_index}/{spec.ticket.rounds}  step {step}/{spec.train.steps}  training loss {loss:.4f}"
        console.print(line, markup=False, highlight=False)

    return report
