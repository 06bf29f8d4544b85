"""docs/kd_conf.md is rendered from the fields of `kd_conf`, as --help is."""

import importlib
import subprocess
import sys

import pytest

from espnet_kd.config.reference import help_text, page, parts
from tests.docs.pages import ROOT


def test_the_page_is_what_its_command_writes():
    command = [sys.executable, "-m", "espnet_kd.config.reference"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    written = (ROOT / "docs" / "kd_conf.md").read_text(encoding="utf-8")
    remedy = "run: python -m espnet_kd.config.reference > docs/kd_conf.md"
    assert written == done.stdout == page(), remedy


@pytest.mark.parametrize("command", ["asr_train", "asr_transducer_train"])
def test_help_of_training_shows_every_field(command: str):
    shown = importlib.import_module(f"espnet_kd.bin.{command}").get_parser()
    text = shown.format_help()
    assert help_text() in text
    for part in parts():
        for row in part.rows:
            assert f"\n  {row.name} = {row.default} (" in text, row.name
    assert max(map(len, help_text().splitlines())) <= 88
