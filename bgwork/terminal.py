"""What a person sees while a command works: tables, notes and progress bars, the last two silent when nobody watches.

Results go to stdout, everything else to stderr. Where stderr is not a terminal there are no bars and no colours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 120  # of tables in a pipe or a file, where there is no window to fill


class Tick(Protocol):
    """Progress callback of samplers, reference runs and training."""

    def __call__(self, done: int, total: int, text: str = "") -> None: ...


def stdout() -> Console:
    """The console for results."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def stderr() -> Console:
    """The console for notes, progress and errors."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(stderr=True, highlight=False, soft_wrap=True, width=PLAIN_WIDTH)


def note(text: str) -> None:
    """One line on what is being done or skipped."""
    stderr().print(escape(text), style="dim")


def error(text: str) -> None:
    """One line on what is wrong and what helps."""
    stderr().print(f"[bold red]Error:[/] {escape(text)}")


class Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g}/s" if task.speed else "-/s")


@contextmanager
def progress(title: str) -> Iterator[Tick]:
    """A bar with count, rate, time left and a few words (the current loss or ESS); nothing where stderr is not a terminal."""
    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, text="")

        def tick(done: int, total: int, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield tick


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, columns of numbers aligned right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD)
    for k, name in enumerate(header):
        numbers = all(re.fullmatch(r"[-+0-9.e± –]+|inf|-inf", row[k]) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    stdout().print(table)


def say(text: str) -> None:
    """One line on stdout."""
    stdout().print(escape(text), soft_wrap=True)
