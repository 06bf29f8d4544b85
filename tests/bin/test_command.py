"""How a command ends, each in its own process."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(__file__).parents[2] / "espnet_kd" / "bin"
SCRIPT = '''"""Count lines.

    python count.py --lines 3
"""
import sys
from espnet_kd.bin.command import command, new_parser

def get_parser():
    parser = new_parser("count", __doc__)
    parser.add_argument("--lines", type=int, default=7, help="how many")
    return parser

def run(args):
    {body}

main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
'''


@pytest.fixture
def start(tmp_path: Path):
    """Starts the script with a body of `run`."""

    def start(body: str, *options: str) -> subprocess.Popen:
        path = tmp_path / "count.py"
        path.write_text(SCRIPT.format(body=body))
        return subprocess.Popen(
            [sys.executable, path, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def ended(start):
    """Exit code, stdout and stderr of the script."""

    def ended(body: str, *options: str) -> tuple[int, str, str]:
        process = start(body, *options)
        out, err = process.communicate()
        return process.returncode, out, err

    return ended


def test_success(ended):
    assert ended("print(args.lines)", "--lines", "3") == (0, "3\n", "")


def test_a_returned_exit_code(ended):
    assert ended("return args.lines") == (7, "", "")


@pytest.mark.parametrize(
    "body, message",
    [
        ("raise ValueError('lines: 7; must be even')", "lines: 7; must be even"),
        ("open('gone')", "[Errno 2] No such file or directory: 'gone'"),
        ("import yaml; yaml.safe_load('{')", "while parsing a flow node"),
        ("raise ValueError", "ValueError"),
    ],
)
def test_an_expected_error_is_a_message(ended, body: str, message: str):
    code, out, err = ended(body)
    assert (code, out) == (1, "")
    assert err.startswith(f"count: {message}") and "Traceback" not in err


def test_a_bug_keeps_its_traceback(ended):
    code, _, err = ended("{}['lines']")
    assert code == 1 and "Traceback" in err and "KeyError" in err


def test_wrong_options(ended):
    code, _, err = ended("pass", "--lines", "many")
    assert code == 2 and "--lines: invalid int value: 'many'" in err


def test_help_has_the_docstring_and_defaults(ended):
    code, out, _ = ended("pass", "--help")
    assert code == 0
    assert "usage: python -m espnet_kd.bin.count [-h]" in out
    assert "\n    python count.py --lines 3\n" in out
    assert "how many (default: 7)" in out


def test_interrupted(start):
    # What a script starts in the background ignores SIGINT, and so do its children.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    sleep = "print('here', flush=True); import time; time.sleep(60)"
    process = start(f"{listen}; {sleep}")
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "count: interrupted\n")


def test_closed_stdout(start):
    """As with `| head -n 1`: the reader ends while the command still writes."""
    process = start("for n in range(10**6): print(n)")
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_warnings_look_alike(ended):
    code, _, err = ended("import logging; logging.warning('few lines')")
    assert (code, err) == (0, "WARNING: few lines\n")


@pytest.mark.parametrize(
    "path",
    sorted(BIN.glob("[!_]*.py")),
    ids=lambda path: path.stem,
)
def test_all_commands_end_alike(path: Path):
    """Apart from `sys.exit(main())`, only command.py ends the process."""
    if path.stem == "command":
        return
    tree = ast.parse(path.read_text())
    raised = [ast.unparse(x.exc) for x in ast.walk(tree) if isinstance(x, ast.Raise)]
    calls = [ast.unparse(x) for x in ast.walk(tree) if isinstance(x, ast.Call)]
    assert not [text for text in raised if "SystemExit" in text]
    ends = {text for text in calls if text.startswith(("sys.exit(", "exit("))}
    assert ends <= {"sys.exit(main())"}
    assert "command(get_parser, run)" in calls or any("ending(" in c for c in calls)
