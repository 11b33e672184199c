"""Options in groups: Typer sees each of them, the command one record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from raylt.cli.groups import with_groups


@dataclass(frozen=True)
class Place:
    city: Annotated[str, typer.Option("--city", help="Where.")] = "Bern"
    floor: Annotated[int, typer.Option(min=0)] = 0


def app_that_notes(calls: list[tuple[str, Place, bool]]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @with_groups
    def visit(name: str, place: Place = Place(), late: bool = False) -> None:
        """Visit somebody."""
        calls.append((name, place, late))

    return app


def test_a_command_gets_the_record_and_its_user_the_options():
    calls: list[tuple[str, Place, bool]] = []
    app, runner = app_that_notes(calls), CliRunner()
    assert runner.invoke(app, ["Ada"]).exit_code == 0
    assert runner.invoke(app, ["Ada", "--city", "Rome", "--floor", "2", "--late"]).exit_code == 0
    assert calls == [("Ada", Place(), False), ("Ada", Place("Rome", 2), True)]
    said = runner.invoke(app, ["--help"]).output
    assert "Visit somebody." in said and "--city" in said and "--floor" in said and "--place" not in said


def test_what_an_option_refuses_stays_refused():
    calls: list[tuple[str, Place, bool]] = []
    assert CliRunner().invoke(app_that_notes(calls), ["Ada", "--floor", "-1"]).exit_code == 2
    assert not calls
