"""Processes that outlive the command that started them: started, found again, stopped.

A process is known by its id *and* the time at which it was created, so that an id that was given to somebody else after
a crash or a reboot is never taken for ours, let alone killed.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil


class StackError(Exception):
    """Something that the person at the keyboard has to know; the message says what to do."""


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    Args:
        name: Shown in status and in file names.
        command: Command line.
        is_ready: Whether it answers; asked again and again after the start.
        address: Where it can be reached, for people.
        port: Port that it needs, or ``None``.
        env: Environment beyond this process's own.
        user: Operating system user; ``None``: this one.
        stop_signal: What ends it in good order.
        stop_s: Seconds until it is killed.
        keeps_orphans: What it started goes on when it was killed, until the stack is stopped.
    """

    name: str
    command: Sequence[str]
    is_ready: Callable[[], bool]
    address: str
    port: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    stop_signal: int = signal.SIGTERM
    stop_s: float = 30.0
    keeps_orphans: bool = False


class Keeper:
    """Starts and stops parts; remembers them in ``pids/`` and writes their output to ``logs/``.

    Args:
        folder: The stack's folder.
        cwd: Working folder of all parts.
    """

    def __init__(self, folder: Path, cwd: Path) -> None:
        self._pids, self._logs, self._cwd = folder / "pids", folder / "logs", cwd
        for path in (self._pids, self._logs):
            path.mkdir(parents=True, exist_ok=True)

    def log(self, name: str) -> Path:
        """Log file of a part."""
        return self._logs / f"{name}.log"

    def find(self, name: str) -> psutil.Process | None:
        """The part's process, if it is running."""
        pid, created = self._remembered(name)
        try:
            process = psutil.Process(pid)
            is_ours = abs(process.create_time() - created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except (ValueError, psutil.Error):
            return None
        return process if is_ours else None

    def _remembered(self, name: str) -> tuple[int, float]:
        try:
            known = json.loads((self._pids / f"{name}.json").read_text(encoding="utf-8"))
            return int(known["pid"]), float(known["created"])
        except (OSError, ValueError, KeyError):
            return -1, 0.0

    def orphans(self, name: str) -> list[psutil.Process]:
        """What a part left behind when it was killed: the rest of the session that it led.

        As long as a session has members, its leader's id is given to no other process.
        """
        leader, created = self._remembered(name)
        if leader < 0 or self.find(name) is not None:
            return []
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                is_member = process.pid != leader and os.getsid(process.pid) == leader
                if is_member and process.create_time() >= created - 1:
                    found.append(process)
        return found

    def start(self, part: Part, timeout_s: float) -> bool:
        """Start a part unless it is running, and wait until it answers.

        Args:
            part: Which.
            timeout_s: Longest wait.

        Returns:
            Whether it had to be started.

        Raises:
            StackError: If its port is taken, it ends while starting, or does not answer in time.
        """
        process = self.find(part.name)
        is_new = process is None
        if process is None:
            if not part.keeps_orphans:
                kill(self.orphans(part.name))
            check_port(part)
            process = self._spawn(part)
        deadline = time.monotonic() + timeout_s
        while not part.is_ready():
            if self.find(part.name) is None:
                raise StackError(
                    f"{part.name} ended while starting; the end of {self.log(part.name)}:\n{self.tail(part.name)}"
                )
            if time.monotonic() > deadline:
                raise StackError(
                    f"{part.name} runs, but has not answered at {part.address} for {timeout_s:g} s; "
                    f"the end of {self.log(part.name)}:\n{self.tail(part.name)}"
                )
            time.sleep(0.2)
        return is_new

    def _spawn(self, part: Part) -> psutil.Process:
        with self.log(part.name).open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} starting {part.name}\n".encode())
            log.flush()
            child = subprocess.Popen(
                list(part.command),
                cwd=self._cwd if part.user is None else "/",
                env={**os.environ, **part.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=part.user,
                extra_groups=None if part.user is None else [],
            )
        child.returncode = 0  # it outlives this command: nobody waits for it
        process = psutil.Process(child.pid)
        fresh = self._pids / f"{part.name}.json.new"
        fresh.write_text(json.dumps({"pid": child.pid, "created": process.create_time()}), encoding="utf-8")
        fresh.replace(self._pids / f"{part.name}.json")
        return process

    def stop(self, part: Part) -> bool:
        """End a part with everything that it started; returns whether it was running."""
        process = self.find(part.name)
        family = self.orphans(part.name) if process is None else [process, *descendants(process)]
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(part.stop_signal)
            psutil.wait_procs([process], timeout=part.stop_s)
        kill(family)
        (self._pids / f"{part.name}.json").unlink(missing_ok=True)
        return process is not None

    def tail(self, name: str, num_lines: int = 15) -> str:
        """The last lines of a part's log."""
        with suppress(OSError):
            return "\n".join(self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])
        return ""


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill processes and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All processes that a process started, and theirs."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def check_port(part: Part) -> None:
    """Raise if somebody else listens where a part wants to.

    Raises:
        StackError: Naming the port and the variable that changes it.
    """
    if part.port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", part.port))
        except OSError as error:
            variable = f"LEWIS_STACK_{part.name.upper()}_PORT"
            raise StackError(
                f"{part.name} wants port {part.port}, which another program has; end that, or set {variable}"
            ) from error
