#!/usr/bin/env python3
"""Run a command, or an array of jobs, on this machine: for recipes without Kaldi.

    run_jobs.py [--max_jobs_run N] [--other value ...] [JOB=1:4] exp/log.JOB.txt command

Takes the command line of Kaldi's run.pl: JOB is replaced by the job's number, options
for clusters (--gpu, --mem, --name ...) are accepted and ignored.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main(argv: list[str]) -> int:
    max_jobs, argv = _options(argv)
    name, jobs = None, [1]
    array = re.fullmatch(r"(\w+)=(\d+):(\d+)", argv[0]) if argv else None
    if array:
        name, jobs = array[1], list(range(int(array[2]), int(array[3]) + 1))
        argv = argv[1:]
    if len(argv) < 2:
        sys.exit(__doc__)
    log, *command = argv
    with ThreadPoolExecutor(max_jobs or len(jobs)) as pool:
        codes = list(pool.map(lambda job: _run(name, job, log, command), jobs))
    failed = [_fill(log, name, job) for job, code in zip(jobs, codes) if code]
    if failed:
        print(
            f"run_jobs.py: {len(failed)} of {len(jobs)} jobs failed, see "
            f"{' '.join(failed)}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _options(argv: list[str]) -> tuple[int, list[str]]:
    max_jobs = 0
    while argv and argv[0].startswith("-"):
        if argv[0].replace("-", "_") == "__max_jobs_run":
            max_jobs = int(argv[1])
        argv = argv[2:]
    return max_jobs, argv


def _fill(text: str, name: str | None, job: int) -> str:
    return text.replace(name, str(job)) if name else text


def _run(name: str | None, job: int, log: str, command: list[str]) -> int:
    path = Path(_fill(log, name, job))
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [_fill(word, name, job) for word in command]
    with path.open("w") as out:
        print("#", *command, file=out)
        print("# Started at", datetime.datetime.now(), file=out, flush=True)
        code = subprocess.call(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        print(f"# Ended (code {code}) at", datetime.datetime.now(), file=out)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
