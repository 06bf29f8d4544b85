"""follow_epochs.py on a log that grows, with lines as ESPnet writes them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "egs/TEMPLATE/asr1/utils/follow_epochs.py"
HEAD = "[vm] 2026-11-28 20:01:25,346 (trainer:334) INFO: "
STARTED = "2/4epoch started\n"
NEXT = "{}/4epoch started. Estimated time to finish: 3 minutes and 12.5 seconds\n"
RESULTS = (
    "{}epoch results: [train] iter_time=0.033, loss=109.285, loss_transducer=85.527, "
    "loss_kd_path=2.578, loss_hard=106.707, time=4.23 seconds, total_count=8, [valid] "
    "loss=95.846, cer_transducer=nan, wer_transducer={}, loss_hard=95.846, acc=0.512, "
    "time=0.35 seconds, total_count=1, gpu_max_cached_mem_GB=0.000\n"
)


def test_a_resumed_training(tmp_path: Path):
    log = tmp_path / "train.log"
    log.write_text(HEAD + NEXT.format(1) + HEAD + RESULTS.format(1, 0.9))
    inode = str(log.stat().st_ino)
    follower = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(log), inode],
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.7)
    log.rename(tmp_path / "train.1.log")  # as ESPnet's launcher does
    with log.open("w") as lines:
        lines.write(HEAD + STARTED + HEAD + "other words\n" + HEAD)
        lines.write(RESULTS.format(2, 0.25)[:70])
        lines.flush()  # a half-written line
        time.sleep(0.7)
        lines.write(RESULTS.format(2, 0.25)[70:] + HEAD + NEXT.format(3))
        lines.flush()
        first = follower.stdout.readline()
        lines.write(HEAD + RESULTS.format(3, "nan"))  # stopped early: no next epoch
    follower.terminate()
    rest = follower.stdout.read().splitlines()
    assert follower.wait() == 0
    losses = "train loss 109.285 (hard 106.707, kd_path 2.578), valid loss 95.846"
    shown = [line.split(" (kd.sh)   ")[1] for line in (first.rstrip(), *rest)]
    assert shown == [
        f"epoch 2 of 4: {losses}, wer 0.25, acc 0.512, 3 minutes and 12.5 seconds left",
        f"epoch 3 of 4: {losses}, acc 0.512",
    ]


def test_a_half_written_character(tmp_path: Path):
    log = tmp_path / "train.log"
    log.write_bytes("é".encode()[:1])
    follower = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(log)], stdout=subprocess.PIPE, text=True
    )
    time.sleep(1)  # it has read that far
    with log.open("ab") as lines:
        lines.write("é\n".encode()[1:])
        lines.write((HEAD + NEXT.format(4) + HEAD + RESULTS.format(4, 0.5)).encode())
        lines.flush()
        assert "epoch 4 of 4: train loss 109.285" in follower.stdout.readline()
    follower.terminate()
    assert follower.wait() == 0


def test_it_ends_with_its_parent(tmp_path: Path):
    """kd.sh itself was killed by SIGKILL."""
    follower = f"{sys.executable} {PROGRAM} {tmp_path}/train.log"
    command = f"{follower} >/dev/null & echo $!; sleep 1"
    shell = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    process = Path("/proc", shell.stdout.strip())
    for _ in range(50):
        if not process.exists() or "\nState:\tZ" in (process / "status").read_text():
            return
        time.sleep(0.1)
    raise AssertionError("it still follows the log")
