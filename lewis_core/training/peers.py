"""A process ends when another one of its machine is gone, instead of waiting for it.

A process that is killed (``kill -9``, out of memory, a broken driver) says nothing. The others wait for it in a
collective: between GPUs of one machine NCCL notices nothing until the collectives' own timeout, and a process that is
inside NCCL does not hear the launcher's SIGTERM either. So each of them looks after those on its machine in a thread.
What is lost on other machines is seen by NCCL and gloo themselves: a connection breaks.
"""

import logging
import os
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from lewis_core.rewards.trl import OUTAGES
from lewis_core.training.processes import end_process, is_alone, shared_store

logger = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
"""Pause between looks."""
GRACE_S = 10.0
"""Time to end by itself, as when the collective fails, after another process is gone."""
_turns = count()


class Peer(NamedTuple):
    """Another process of this training on this machine."""

    rank: int
    process: psutil.Process | None
    """``None``: it was gone when this one looked for the first time."""

    def is_gone(self) -> bool:
        """Whether it runs no more; a killed process that nobody has waited for yet is gone, too."""
        if self.process is None:
            return True
        try:
            return not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


@contextmanager
def end_without_peers() -> Iterator[None]:
    """While the block runs, end this process (status 1) if another one of this machine is gone before it has left it.

    All processes have to enter the block. A process that leaves it with an error of its own is missed as well.
    """
    if is_alone():
        yield
        return
    key, rank = f"lewis/left/{next(_turns)}", int(os.environ["RANK"])
    peers, ended = _find_peers(rank), threading.Event()
    threading.Thread(target=_watch, args=(peers, key, ended), name="peers", daemon=True).start()
    try:
        yield
    except OUTAGES:  # all processes leave with it, and one of them saves
        shared_store().set(f"{key}/{rank}", b"1")
        raise
    else:
        shared_store().set(f"{key}/{rank}", b"1")
    finally:
        ended.set()


def _find_peers(rank: int) -> list[Peer]:
    from accelerate.utils import gather_object

    place = _place()
    told: list[tuple[int, int, str]] = gather_object([(rank, os.getpid(), place)])
    return [Peer(other, _process(pid)) for other, pid, where in told if where == place and other != rank]


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _place() -> str:
    """Where process ids mean the same processes: a boot of a machine and, in containers, a namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return platform.node()


def _watch(peers: Sequence[Peer], key: str, ended: threading.Event) -> None:
    while not ended.wait(LOOK_EVERY_S):
        lost = [peer for peer in peers if peer.is_gone() and not _has_left(peer, key)]
        if lost and not ended.wait(GRACE_S):
            logger.error(
                "process %s of this training is gone (killed, or out of memory?), and process %s would wait for it: it "
                "ends, too; the same command goes on from the last checkpoint",
                ", ".join(str(peer.rank) for peer in lost),
                os.environ["RANK"],
            )
            end_process(1)


def _has_left(peer: Peer, key: str) -> bool:
    store: Any = shared_store()
    return bool(store.check([f"{key}/{peer.rank}"]))
