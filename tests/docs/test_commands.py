"""Each block of the pages is run, or names what runs it or why it is not run.

Python runs here, page by page from top to bottom. YAML is read by the classes that read
it in training. A shell block needs a comment above it (`tests.docs.pages`). Whatever
its content, the programs' own parsers must accept the options.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from espnet_kd.bin import kd_set
from espnet_kd.config.kd_conf import parse_kd_conf
from espnet_kd.models.espnet_versions import default_config
from tests.docs.pages import PAGES, ROOT, Block, blocks_of, commands_of, prose_of

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL, PYTHON, YAML = ("sh", "bash"), ("python",), ("yaml",)
# Shown, not run: figures and outputs, examples of files, changes of code, and Sphinx's.
SHOWN = ("", "text", "json", "diff")
NEEDED = "--train_set a --valid_set b --test_sets c --asr_config d.yaml".split()


def of(*languages: str):
    """Parametrise a test by the blocks in some languages."""
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=str)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_accounted_for(block: Block):
    known = (*SHELL, *PYTHON, *YAML, *SHOWN)
    assert block.language in known or block.language.startswith("{"), block.language
    if block.language in SHELL:
        assert block.kind, "no comment above it names what runs it"
    for name in block.note.split(", ") if block.kind == "run by" else ():
        if name.startswith("make "):
            assert f"\n{name[5:]}:" in (ROOT / "Makefile").read_text()
            continue
        path, _, function = name.partition("::")
        assert path.startswith("tests/") and (ROOT / path).is_file(), name
        assert f"def {function}" in (ROOT / path).read_text(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_escapes(page: Path):
    fences = re.findall("^ *(?:```|~~~)", page.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(blocks_of(page)), "an indented or unusual fence"


@of(*SHELL)
def test_options(block: Block, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder, words in commands_of(block.text):
        if folder != "." and words[0].endswith(".sh"):
            assert (ROOT / folder / words[0]).is_file(), words[0]
        if words[0] in ("./kd.sh", "./run.sh"):
            check_recipe(folder, words, tmp_path)
        elif words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, text=True)
            assert done.returncode == 0
        elif words[0].startswith("python") and words[1] == "-m":
            check_module(words[2], words[3:], capsys)


def check_recipe(folder: str, words: list[str], tmp_path: Path) -> None:
    """kd.sh itself accepts the options, also of an ESPnet run.sh; no stage is run."""
    ours = ROOT / folder / "run.sh"
    programs = {"kd.sh": ROOT / "egs" / "TEMPLATE" / "asr1" / "kd.sh", "run.sh": ours}
    for name, program in programs.items():
        (tmp_path / name).unlink(missing_ok=True)
        if program.is_file():
            (tmp_path / name).symlink_to(program)
    program, *options = words
    if not ours.is_file():
        program, options = "./kd.sh", [*NEEDED, *options]
    nothing = "--skip_data_prep true --skip_train true --skip_eval true"
    end = ["--python", sys.executable, *nothing.split()]
    answer = subprocess.run(
        [program, *options, *end], cwd=tmp_path, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def check_module(module: str, options: list[str], capsys) -> None:
    """The parser of one of our modules accepts the options."""
    if module.split(".")[0] not in ("espnet_kd", "benchmarks"):
        return
    get_parser = getattr(importlib.import_module(module), "get_parser", None)
    if get_parser is None:
        for option in options:
            assert not option.startswith("--") or option in help_of(module), option
        return
    for path in map(Path, options):  # ESPnet's parser opens its --config
        if path.suffix == ".yaml":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n")
    try:
        get_parser().parse_args(options)
    except SystemExit:
        pytest.fail(f"{module}: {capsys.readouterr().err.splitlines()[-1]}")


@functools.cache
def help_of(module: str) -> str:
    """What `python -m module --help` prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [module, "--help"])
        patch.delitem(sys.modules, module, raising=False)  # runpy warns of it
        with pytest.raises(SystemExit):
            runpy.run_module(module, run_name="__main__")
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_the_text(page: Path):
    for module, options in re.findall(
        r"`python3? -m ((?:espnet_kd|benchmarks)[\w.]*)([^`]*)`", prose_of(page)
    ):
        for option in re.findall(r"--\w+", options):
            assert option in help_of(module), f"{module} {option}"
        assert find_spec(module), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python(page: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks_of(page):
        if block.language in PYTHON and block.kind != "run by":
            tree = ast.parse(block.text)
            if block.kind == "not run":  # what it imports must still exist
                imports = (ast.Import, ast.ImportFrom)
                tree.body = [node for node in tree.body if isinstance(node, imports)]
            # Errors and assertions name the line of the page.
            ast.increment_lineno(tree, block.line)
            exec(compile(tree, str(page), "exec"), names)


@of(*YAML)
def test_yaml(block: Block):
    sections = yaml.safe_load(block.text)
    if block.kind:
        return
    parse_kd_conf(sections.pop("kd_conf", {}))
    for name, value in sections.pop("kd_set", {}).items():
        command = ["--output_dir", "new", f"--{name}", str(value)]
        kd_set.get_parser().parse_args(command)
    sections.update(sections.pop("training", {}))
    assert sections.keys() <= options_of_training()


@functools.cache
def options_of_training() -> set[str]:
    from espnet_kd.tasks.asr import ASRKDTask
    from espnet_kd.tasks.asr_transducer import ASRTransducerKDTask

    tasks = (ASRKDTask, ASRTransducerKDTask)
    return {name for task in tasks for name in default_config(task)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", prose_of(page)):
        is_outside = link.startswith(("http://", "https://"))
        assert is_outside or (page.parent / link).exists(), link
