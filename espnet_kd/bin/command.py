"""How all commands parse their options, fail and exit.

    exit code   when
    0           success
    1           faults of the input or the machine: one message on stderr, no traceback;
                or returned by the command itself
    2           options refused by the parser
    130, 141    Ctrl-C; closed stdout (`| head`), as in shells

Any other exception is a bug of this package and keeps its traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

EXPECTED = (OSError, ValueError)
INTERRUPTED, UNREAD = 130, 141


class Help(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """The docstring of a command, unwrapped, and the default of every option."""


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The empty parser of `espnet_kd.bin.<name>`; `description` is its docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m espnet_kd.bin.{name}",
        description=description,
        formatter_class=Help,
    )


def command(
    get_parser: Callable[[], argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], int | None],
) -> Callable[[Sequence[str] | None], int]:
    """The `main` of a command: parse, `run`, exit as described in this module.

    Args:
        get_parser: returns the parser, see `new_parser`.
        run: does the work; returns the exit code, None for 0.

    Returns:
        A function of the command line (None: that of the process), which returns the
        exit code if `run` ends normally.
    """

    def main(cmd: Sequence[str] | None = None) -> int:
        """Parse and run; returns the exit code."""
        parser = get_parser()
        args = parser.parse_args(cmd)
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        with ending(parser.prog.rpartition(".")[2]), _reader_may_leave():
            return run(args) or 0

    return main


@contextmanager
def ending(
    name: str, expected: tuple[type[Exception], ...] = EXPECTED
) -> Iterator[None]:
    """End the process as described in this module, at exceptions of types `expected`.

    Raises:
        SystemExit: with `name: message`, or with 130 after Ctrl-C.
    """
    try:
        yield
    except (*expected, *_errors_of_yaml(expected)) as error:
        raise SystemExit(f"{name}: {str(error) or type(error).__name__}") from error
    except KeyboardInterrupt as error:
        print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error


def _errors_of_yaml(expected: tuple) -> tuple[type[Exception], ...]:
    """Turn errors of the yaml package, which are not ValueErrors, into ValueErrors.

    It is not imported here: `doctor` must run without it.
    """
    yaml = sys.modules.get("yaml")
    return (yaml.YAMLError,) if yaml and ValueError in expected else ()


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        # Discard the rest of the buffer, or Python's exit would fail to write it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(UNREAD) from error
