"""The door of the command line: Ctrl-C is answered from the first moment, while torch and OpenMM are still on their way."""

from __future__ import annotations

import os
import signal
from typing import Any


def leave(number: int, frame: Any) -> None:  # noqa: ARG001
    """Ends the process before there is any work to put in order; an exception would be caught by a library that tries imports."""
    os.write(2, b"Error: interrupted before anything was begun\n")
    os._exit(128 + number)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, leave)
    from bgwork.commands import app
    from bgwork.endings import interrupt_once

    signal.signal(signal.SIGINT, interrupt_once)
    app()


if __name__ == "__main__":
    main()
