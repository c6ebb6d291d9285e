"""Command line: thin commands over the library."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def about() -> None:
    """From an energy to free energies with exact weights and error bars."""


def main() -> None:
    """Run the command line."""
    app()
