"""How commands end: with a message and exit code 2 on wrong input (any ValueError), with 130 on Ctrl-C."""

from __future__ import annotations

import signal
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from bgwork import terminal


class Interrupted(Exception):
    """Ctrl-C, with what was saved and how to go on."""


class Commands(TyperGroup):
    """Turns what a person can mend into a message and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            terminal.error(str(error))
            raise typer.Exit(2) from None
        except Interrupted as interruption:
            terminal.error(f"interrupted; {interruption}")
            raise typer.Exit(130) from None
        except KeyboardInterrupt:
            terminal.error("interrupted; files are written whole or not at all, so the same command can simply be given again")
            raise typer.Exit(130) from None


def interrupt_once(number: int, frame: Any) -> NoReturn:  # noqa: ARG001
    """The first Ctrl-C ends the command, and further ones do not disturb it while it puts its threads and files in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
