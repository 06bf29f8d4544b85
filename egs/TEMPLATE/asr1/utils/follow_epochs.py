#!/usr/bin/env python3
"""Print a line for each epoch of an ESPnet training while its log grows.

    follow_epochs.py exp/asr_x/train.log [inode of an earlier run's log]

Ends at SIGTERM, with what the log holds by then, or when its parent has ended.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

STARTED = re.compile(r"(\d+)/(\d+)epoch started(?:\. Estimated time to finish: (.+))?")
RESULTS = re.compile(r"(\d+)epoch results: (.+)")
SECTION = re.compile(r"\[(\w+)\] (.*?)(?=, \[\w+\] |$)")
MEASURES = ("wer", "wer_transducer", "acc")  # of the valid set, where they are


class Epochs:
    """Turns lines of ESPnet's log into one line per epoch."""

    def __init__(self) -> None:
        self.last = 0  # epoch of the training
        self.waiting = ""  # for the remaining time, which the next epoch reports

    def read(self, line: str) -> Iterator[str]:
        """Lines to print after a line of the log."""
        started, results = STARTED.search(line), RESULTS.search(line)
        if started:
            self.last = int(started[2])
            yield from self.end(f", {started[3]} left" if started[3] else "")
        elif results:
            yield from self.end()
            self.waiting = f"epoch {results[1]} of {self.last}: {_values(results[2])}"
            if int(results[1]) == self.last:
                yield from self.end()

    def end(self, left: str = "") -> Iterator[str]:
        """The line that waits; also to be called at the end of the log."""
        if self.waiting:
            yield self.waiting + left
        self.waiting = ""


def _values(text: str) -> str:
    """Losses and error rates of an epoch; ESPnet writes nan for what it left out."""
    sections = {
        name: dict(re.findall(r"(\w+)=([^,\s]+)", values))
        for name, values in SECTION.findall(text)
    }
    train, valid = sections.get("train", {}), sections.get("valid", {})
    parts = [name for name in train if re.fullmatch("loss_(hard|kd_.+)", name)]
    losses = ", ".join(f"{name[5:]} {train[name]}" for name in sorted(parts))
    shown = [f"train loss {train.get('loss')}" + (f" ({losses})" if losses else "")]
    if "loss" in valid:
        shown.append(f"valid loss {valid['loss']}")
    for name in MEASURES:
        if valid.get(name, "nan") != "nan":
            shown.append(f"{name.split('_')[0]} {valid[name]}")
    return ", ".join(shown)


def follow(log: Path, earlier: str) -> Iterator[str]:
    """Lines of the log until SIGTERM."""
    is_over = []
    signal.signal(signal.SIGTERM, lambda *_: is_over.append(True))
    parent, lines, part = os.getppid(), None, b""
    while True:
        is_last = bool(is_over) or os.getppid() != parent
        if lines is None and log.exists() and str(log.stat().st_ino) != earlier:
            lines = log.open("rb")
        for piece in lines or ():
            part += piece
            if part.endswith(b"\n"):  # else it is being written
                yield part.decode(encoding="utf-8", errors="replace")
                part = b""
        if is_last:
            return
        time.sleep(0.5)


def main(log: str, earlier: str = "") -> None:
    epochs = Epochs()
    for line in follow(Path(log), earlier):
        _show(epochs.read(line))
    _show(epochs.end())


def _show(texts: Iterator[str]) -> None:
    for text in texts:
        print(
            f"{datetime.datetime.now():%Y-%m-%dT%H:%M:%S} (kd.sh)   {text}", flush=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
