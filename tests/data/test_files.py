"""Files and folders stay complete after a kill or an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_kd.data.files import (
    folder_beside,
    move_files,
    write_folder,
    write_json,
    write_text,
    write_whole,
)


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def killed(code: str, folder: Path) -> None:
    """Run code that kills itself."""
    kill = "import os, signal\ndie = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
    module = "from espnet_kd.data.files import *\nfrom pathlib import Path\n"
    done = subprocess.run([sys.executable, "-c", kill + module + code], cwd=folder)
    assert done.returncode == -signal.SIGKILL


def test_a_file(tmp_path: Path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "é\n", "latin-1")
    assert path.read_bytes() == b"\xe9\n"
    write_json(path, {"b": 1, "a": "é"})
    assert content(tmp_path) == {"new/a.txt": '{\n  "a": "é",\n  "b": 1\n}\n'}


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path):
    names = []

    def write(part: Path) -> None:
        names.append(part.name)
        part.touch()

    write_whole(tmp_path / "cuts.jsonl.gz", write)
    assert names[0].endswith(".jsonl.gz") and names[0] != "cuts.jsonl.gz"


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path):
    write_text(tmp_path / "a", "old")
    killed("write_whole('a', lambda p: (p.write_text('half'), die()))", tmp_path)
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_is_replaced(tmp_path: Path):
    for text in "old", "new":
        with write_folder(tmp_path / "kd") as folder:
            (folder / text).write_text(text)
            assert (tmp_path / "kd").exists() == (text == "new")
    assert content(tmp_path) == {"kd/new": "new"}
    assert os.listdir(tmp_path) == ["kd"]


def test_an_error_leaves_the_old_folder(tmp_path: Path):
    write_text(tmp_path / "kd" / "a", "old")
    with pytest.raises(KeyError), write_folder(tmp_path / "kd") as folder:
        (folder / "a").write_text("half")
        raise KeyError
    assert content(tmp_path) == {"kd/a": "old"}
    assert os.listdir(tmp_path) == ["kd"]


def test_leftovers_of_a_kill_are_not_in_the_next_folder(tmp_path: Path):
    write_text(tmp_path / "kd" / "a", "old")
    killed(
        "m = write_folder('kd'); f = m.__enter__(); (f / 'b').touch(); die()", tmp_path
    )
    assert content(tmp_path / "kd") == {"a": "old"}
    with write_folder(tmp_path / "kd") as folder:
        (folder / "c").write_text("new")
    assert content(tmp_path) == {"kd/c": "new"}


def test_files_move_into_a_folder(tmp_path: Path):
    write_text(tmp_path / "exp" / "kept", "kept")
    write_text(tmp_path / "exp" / "sub" / "a", "old")
    with folder_beside(tmp_path / "exp") as folder:
        write_text(folder / "sub" / "a", "new")
        write_text(folder / "b", "new")
        write_text(folder / "left", "left")
        move_files(folder, tmp_path / "exp", ["sub/a", "b"])
    assert content(tmp_path) == {"exp/kept": "kept", "exp/sub/a": "new", "exp/b": "new"}
