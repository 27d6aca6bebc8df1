"""What all commands share: errors in the user's words, and the exit codes 0, 1 and 2."""

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from service.errors import ServiceError, UsageError


def check_bounds(options: argparse.Namespace, bounds: Mapping[str, tuple[int, int]]) -> None:
    """UsageError naming the first flag whose number is outside its lowest and highest."""
    for name, (low, high) in bounds.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise UsageError(f"--{name.replace('_', '-')} {value}: give {low} to {high}")


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command and exit: 0 on success, 1 on a failed run, 2 on bad usage, 130 if interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold what is no text
    logging.basicConfig(
        level=os.environ.get("LOG_LEVEL", "WARNING"),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    try:
        main(sys.argv[1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
