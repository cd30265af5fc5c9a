"""GPUs of this machine: a run takes what it needs, and no two runs take the same one.

A GPU is taken by a lock of the kernel on a file in a folder that all runs of the machine share; it is free the moment
its holder is gone, however it went. Within a run a model service may share a GPU with a stage: a listener and the
training that asks it have to fit on one card if there is only one. Two stages never do. Without a GPU nothing here does
anything.
"""

import contextlib
import logging
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lewis_core.config.gpus import GpuConfig
from lewis_core.errors import ConfigError, ProcessError
from tasks.processes import is_closing
from tasks.turns import REMIND_S, holder, try_lock

logger = logging.getLogger(__name__)
POLL_S, FENCE_TRY_S = 0.2, 5.0
DRIVER = Path("/proc/driver/nvidia/gpus")
SERVICE_GPUS = 1
"""GPUs of a model service."""
Kind = Literal["stage", "training", "service"]


@dataclass(frozen=True)
class Gpu:
    """One card."""

    name: str
    """What CUDA_VISIBLE_DEVICES takes: a number or a UUID."""
    lock: str
    """Name of its lock: the driver's number of the card, whatever this process calls it."""


def find_gpus(ids: Sequence[int] | None) -> list[Gpu]:
    """GPUs that this process may use.

    Args:
        ids: Their numbers; ``None``: those in CUDA_VISIBLE_DEVICES, else all.
    """
    cards = driver_cards()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in ids] if ids is not None else []
    if ids is None and visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    elif ids is None:
        names = [str(index) for index in range(len(cards))]
    by_name = dict(cards) | {str(index): card[1] for index, card in enumerate(cards)}
    return [Gpu(name, f"gpu{by_name.get(name, name)}") for name in names]


def driver_cards() -> list[tuple[str, str]]:
    """UUID and device number of every card, in the order of the bus."""
    found = []
    for folder in sorted(DRIVER.iterdir()) if DRIVER.is_dir() else []:
        text = (folder / "information").read_text(encoding="utf-8", errors="replace")
        uuid, minor = (re.search(rf"{name}:\s*(\S+)", text) for name in ("GPU UUID", "Device Minor"))
        found.append((uuid[1] if uuid else folder.name, minor[1] if minor else folder.name))
    if found:
        return found
    devices = sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*"))
    return [(f"nvidia{number}", str(number)) for number in devices]


@dataclass
class Held:
    """A GPU that this run has."""

    giving_back: contextlib.ExitStack
    """Frees it on this machine, and in the limit over all machines."""
    users: list[Kind] = field(default_factory=list)


class GpuPool:
    """The GPUs of one run.

    Args:
        config: Which there are, and how they are shared.
        is_used: Whether this run computes on GPUs at all.
    """

    def __init__(self, config: GpuConfig, is_used: bool) -> None:
        self._config = config
        self._gpus = find_gpus(config.ids) if is_used else []
        self._folder = (config.lock_dir or Path(tempfile.gettempdir()) / "lewis-gpus").absolute()
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()

    def sharing(self, stage_gpus: int, services: int) -> int:
        """How many of a run's services will share a GPU with a stage that has some; 0 if this run uses none."""
        if not self._gpus:
            return 0
        return services if self._config.services == "shared" else max(0, services - (len(self._gpus) - stage_gpus))

    def trains_on(self, names: Sequence[str]) -> bool:
        """Whether a training of this run has one of some GPUs."""
        with self._lock:
            return any("training" in self._held[name].users for name in names if name in self._held)

    @contextlib.contextmanager
    def lease(self, count: int, what: str, kind: Kind = "stage") -> Iterator[tuple[str, ...]]:
        """Have GPUs for a while.

        Args:
            count: How many.
            what: What they are for, for the log.
            kind: A stage never shares with another stage, nor a training, which is one; a service may share with
                anything of its run.

        Yields:
            Their names for CUDA_VISIBLE_DEVICES; nothing if this run uses none.

        Raises:
            ConfigError: If there are not as many, or the limit over all machines does not exist.
            ProcessError: If the flow ends while it waits, or others keep them for longer than ``max_wait_s``.
        """
        if not self._gpus or count == 0:
            yield ()
            return
        if count > len(self._gpus):
            names = ", ".join(gpu.name for gpu in self._gpus)
            raise ConfigError(
                f"{what} needs {count} GPUs; this run may use {len(self._gpus)} ({names}): "
                "lower training.num_processes, or allow more in run.gpus.ids or CUDA_VISIBLE_DEVICES"
            )
        taken = self._wait(count, what, kind)
        try:
            yield tuple(gpu.name for gpu in taken)
        finally:
            self._give_back(taken, kind)

    def _wait(self, count: int, what: str, kind: Kind) -> list[Gpu]:
        started, said = time.monotonic(), 0.0
        while (taken := self._try(count, kind)) is None:
            waited = time.monotonic() - started
            if is_closing():
                raise ProcessError(what, 128 + 15, ["stopped waiting for a GPU: the flow is ending"])
            if self._config.max_wait_s is not None and waited > self._config.max_wait_s:
                raise ProcessError(what, 1, [f"no {count} GPUs became free within {waited:.0f} s: {self._holders()}"])
            if time.monotonic() - said > REMIND_S:
                said = time.monotonic()
                logger.info("%s: waiting for %d of %d GPUs: %s", what, count, len(self._gpus), self._holders())
            time.sleep(POLL_S * random.uniform(0.5, 1.5))
        return taken

    def _holders(self) -> str:
        busy = [gpu for gpu in self._gpus if gpu.name not in self._held]
        return "; ".join(f"{gpu.name} has {holder(self._place(gpu))}" for gpu in busy) or "this run has them all"

    def _try(self, count: int, kind: Kind) -> list[Gpu] | None:
        """Take all of them or none, so that two runs never wait for each other's."""
        with self._lock:
            shared = [gpu for gpu in self._gpus if gpu.name in self._held and self._may_share(gpu, kind)]
            if kind == "service" and self._config.services == "shared" and shared:
                return self._use(shared[:count], kind)
            fresh: list[Gpu] = []
            for gpu in self._gpus:
                if len(fresh) < count and gpu.name not in self._held and self._take(gpu):
                    fresh.append(gpu)
            if len(fresh) + len(shared) < count:
                for gpu in fresh:
                    self._held.pop(gpu.name).giving_back.close()
                return None
            return self._use([*fresh, *shared[: count - len(fresh)]], kind)

    def _may_share(self, gpu: Gpu, kind: Kind) -> bool:
        return kind == "service" or not {"stage", "training"}.intersection(self._held[gpu.name].users)

    def _use(self, gpus: list[Gpu], kind: Kind) -> list[Gpu]:
        for gpu in gpus:
            self._held[gpu.name].users.append(kind)
        return gpus

    def _take(self, gpu: Gpu) -> bool:
        file = try_lock(self._place(gpu))
        if file is None:
            return False
        with contextlib.ExitStack() as stack:
            stack.enter_context(file)
            if self._config.limit is not None and not enter_limit(stack, self._config.limit):
                return False
            self._held[gpu.name] = Held(stack.pop_all())
        return True

    def _place(self, gpu: Gpu) -> Path:
        return self._folder / f"{gpu.lock}.lock"

    def _give_back(self, gpus: Sequence[Gpu], kind: Kind) -> None:
        with self._lock:
            for gpu in gpus:
                held = self._held[gpu.name]
                held.users.remove(kind)
                if not held.users:
                    del self._held[gpu.name]
                    held.giving_back.close()


def enter_limit(stack: contextlib.ExitStack, limit: str) -> bool:
    """Take one slot of a Prefect global concurrency limit; whether there was one.

    Raises:
        ConfigError: If there is no such limit.
    """
    from prefect.client.orchestration import get_client
    from prefect.concurrency.sync import concurrency
    from prefect.exceptions import ObjectNotFound

    try:
        with get_client(sync_client=True) as client:
            client.read_global_concurrency_limit_by_name(limit)
        # A server that goes away in the middle is no reason to end what runs: the lock on this machine still holds.
        stack.enter_context(
            concurrency(limit, timeout_seconds=FENCE_TRY_S, strict=True, raise_on_lease_renewal_failure=False)
        )
    except TimeoutError:
        return False
    except ObjectNotFound as error:
        raise ConfigError(
            f"run.gpus.limit: Prefect has no concurrency limit {limit!r}; make it with "
            f"`prefect gcl create {limit} --limit N`, N the GPUs of all machines together"
        ) from error
    return True


def cuda_environment(names: Sequence[str]) -> dict[str, str]:
    """Environment of a child process that may use these GPUs only; empty if GPUs are no matter."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(names), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if names else {}
