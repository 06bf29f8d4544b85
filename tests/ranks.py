"""Two processes that train together, forked from the one that runs the tests."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable


def run_two_ranks(work: Callable, *args) -> None:
    """Run `work(rank, *args)` in both; they find each other by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked processes have imported everything already.
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_as_rank, args=(rank, port, work, args))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
    assert [rank.exitcode for rank in ranks] == [0, 0]


def _as_rank(rank: int, port: int, work: Callable, args: tuple) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    work(rank, *args)
