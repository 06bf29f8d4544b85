"""setup.py, the constraint files and what the code imports agree."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Packages whose name on the index differs from that of the import. humanfriendly is a
# requirement of ESPnet, which re-exports its functions.
PACKAGES = {
    "espnet2": "espnet",
    "espeakng_loader": "espeakng-loader",
    "yaml": "pyyaml",
}
NOT_ON_THE_INDEX = {"warprnnt_pytorch"}  # replaced by our stand-in
WITH_TORCH = {"triton"}  # comes with torch where usable; optional elsewhere


def requirements() -> dict[str, list[str]]:
    """The requirements of setup.py, "" for the package and one key for each extra."""
    (call,) = (
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    values = {keyword.arg: keyword.value for keyword in call.keywords}
    return {
        "": ast.literal_eval(values["install_requires"]),
        **ast.literal_eval(values["extras_require"]),
    }


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def imported() -> set[str]:
    """The third-party modules that the package imports, anywhere in a file."""
    found = set()
    for path in (ROOT / "espnet_kd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
    found -= set(sys.stdlib_module_names) | {"espnet_kd"}
    return found - NOT_ON_THE_INDEX - WITH_TORCH


def test_the_head_of_the_makefile_names_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)", text, re.M)[1].split())
    assert targets == set(re.findall(r"^# make ([\w-]+)  ", text, re.M))


def test_every_import_is_required():
    required = {name_of(r) for kind in ("", "k2", "demo") for r in requirements()[kind]}
    lacking = {PACKAGES.get(name, name) for name in imported()} - required
    assert not lacking, f"imported, but not in setup.py: {sorted(lacking)}"


@pytest.mark.parametrize("environment", ["A", "B", "C"])
def test_every_requirement_is_pinned(environment):
    lines = (ROOT / "conf" / f"constraints-{environment}.txt").read_text().split("\n")
    lines = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {name_of(line) for line in lines}
    required = {name_of(r) for kind in requirements().values() for r in kind}
    required -= set() if environment == "A" else {"k2"}
    assert required <= pinned
    assert ("k2" in pinned) == (environment == "A")


def test_every_folder_is_a_package():
    folders = {path.parent for path in (ROOT / "espnet_kd").rglob("*.py")}
    assert not [f for f in folders if not (f / "__init__.py").exists()]


@pytest.fixture
def checkout(tmp_path):
    """The files that build an environment, with no Python around them."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "setup.py", tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum", "cp", "mkdir", "rm", "mv"):
        (tools / tool).symlink_to(shutil.which(tool))
    return tmp_path


def put_python(checkout: Path, name: str, answer: str) -> None:
    """A program called ``name`` that prints ``answer`` and does nothing else."""
    program = checkout / "tools" / name
    program.write_text(f"#!{shutil.which('bash')}\n{answer}\n")
    program.chmod(0o755)


def build(checkout: Path, *name: str) -> subprocess.CompletedProcess:
    environment = {
        "PATH": str(checkout / "tools"),
        "HOME": str(checkout),
        "PYENV_ROOT": str(checkout / "pyenv"),
    }
    command = [str(checkout / "conf" / "build_env.sh"), *name]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def python(version: str, k2: str = "") -> str:
    """A Python that "builds" a virtual environment of copies of itself."""
    return f"""case "$1 $2" in
    "-c import ensurepip"*) echo {version} ;;
    "-c from importlib"*) [ -n "{k2}" ] && echo "{k2}" ;;
    "-V "*) echo Python {version}.9 ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip" ;;
esac"""


def test_a_shim_that_fails_is_not_a_python(checkout):
    put_python(checkout, "python3.10", "echo 'pyenv: command not found' >&2; exit 127")
    done = build(checkout, "A")
    assert done.returncode == 1
    assert "A needs Python 3.10" in done.stderr and "leave ENV out" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "found, name, line",
    [
        (["3.10", "3.11", "3.12", "3.13"], "C", "Python 3.12.9, ESPnet 202611"),
        (["3.10", "3.11", "3.13"], "C", "Python 3.13.9, ESPnet 202611"),
        (["3.10", "3.11"], "B", "Python 3.11.9, ESPnet 202511"),
        (["3.10"], "A", "Python 3.10.9, ESPnet 202412"),
    ],
)
def test_the_newest_environment_is_built_and_reported(checkout, found, name, line):
    for version in found:
        put_python(checkout, f"python{version}", python(version))
    done = build(checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{checkout / f'.venv-{name}'}\n"
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"build_env: building {checkout / f'.venv-{name}'}")
    assert lines[1].startswith(f"build_env: environment {name}: {line}")
    assert lines[1].endswith("no k2: lattices run on the torch backend")
    # The second time nothing is built; the line is printed.
    assert build(checkout).stderr.splitlines() == lines[1:]
    assert build(checkout, name).stdout == done.stdout


def test_the_line_names_the_k2(checkout):
    put_python(checkout, "python3.10", python("3.10", k2="1.23.4"))
    assert build(checkout).stderr.endswith(", k2 1.23.4\n")


def test_without_a_python_it_names_the_versions(checkout):
    done = build(checkout)
    assert done.returncode == 1 and "no Python 3.10 to 3.13 was found" in done.stderr
    done = build(checkout, "C")
    assert done.returncode == 1 and "C needs Python 3.12 or 3.13" in done.stderr


def test_pyenv_is_searched(checkout):
    folder = checkout / "pyenv" / "versions" / "3.10.99" / "bin"
    folder.mkdir(parents=True)
    put_python(checkout, "made-up", '[ "$1" = -c ] && echo 3.10')
    (checkout / "tools" / "made-up").rename(folder / "python")
    assert f"with {folder / 'python'}" in build(checkout).stderr


def test_an_unknown_environment_is_refused(checkout):
    done = build(checkout, "D")
    assert done.returncode == 1 and "'D' is unknown: A, B or C" in done.stderr
