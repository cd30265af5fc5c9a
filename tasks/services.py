"""Model services: started when first needed, waited for until ready, restarted when they died, always stopped.

A service is no stage: its address is different every time, so it is never part of a stage's identity, and it is not
started at all when everything that would ask it is there already.
"""

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
import psutil

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ListenerError, ProcessError
from tasks.gpus import SERVICE_GPUS, GpuPool, cuda_environment
from tasks.processes import Process

logger = logging.getLogger(__name__)
PORT_TRIES = 3
Command = Callable[[int], list[str]]


def listener_command(ref: ModelRef, image_root: Path, runtime: Runtime, port: int) -> list[str]:
    """Command line of a model service."""
    command = [sys.executable, "-m", "lewis_core.listener", "--model", ref.model_dump_json()]
    command += ["--image-root", str(image_root), "--port", str(port), "--device", runtime.device]
    command += ["--workers", str(runtime.num_workers), "--batch-size", str(runtime.batch_size)]
    command += ["--vision-cache-mib", str(runtime.vision_cache_mib)]
    command += ["--drain-s", "4"]  # of the 10 s that a guard gives
    if runtime.prompt_cache_mib is not None:
        command += ["--prompt-cache-mib", str(runtime.prompt_cache_mib)]
    if runtime.batch_tokens is not None:
        command += ["--batch-tokens", str(runtime.batch_tokens)]
    if runtime.compile_layers:
        command.append("--compile-layers")
    if runtime.torch_threads is not None:
        command += ["--threads", str(runtime.torch_threads)]
    return command


def told_beside_training(runtime: Runtime) -> list[str]:
    """What a service is told besides where a training has its GPU.

    It keeps no keys and values of photos, unless the settings say how much: it starts before the training, which plans
    by the memory that it finds free.
    """
    return ["--prompt-cache-mib", "0"] if runtime.prompt_cache_mib is None else []


def free_port() -> int:
    """A port of the loopback interface that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ModelService:
    """One model behind HTTP, in a guarded process.

    Args:
        name: Its role, shown in errors and logs.
        command: Command line for a port.
        log: File that gets its output.
        ready_s: Longest wait until it is ready.
        gpus: Where it takes a GPU from while it runs; ``None``: it needs none.
        beside_training: Added to the command line where a training has that GPU.
    """

    def __init__(
        self,
        name: str,
        command: Command,
        log: Path,
        ready_s: float,
        gpus: GpuPool | None = None,
        beside_training: Sequence[str] = (),
    ) -> None:
        self.name, self.log = name, log
        self._command, self._ready_s, self._beside_training = command, ready_s, beside_training
        self._gpus, self._lease = gpus, contextlib.ExitStack()
        self._process: Process | None = None
        self._url = ""
        self._lock = threading.Lock()

    def ensure(self) -> str:
        """Return the address of the ready service; starts it when it is not running.

        Raises:
            ProcessError: If it ends while starting; carries its last lines.
            ListenerError: If it says that it cannot load its model, or is not ready in time.
        """
        with self._lock:
            if self._process is None or not self._process.is_alive:
                if self._process is not None:
                    logger.warning("%s has died and is started again; its log is %s", self.name, self.log)
                    self._process.stop()
                self._lease.close()
                with contextlib.ExitStack() as lease:
                    names = (
                        lease.enter_context(self._gpus.lease(SERVICE_GPUS, self.name, "service")) if self._gpus else ()
                    )
                    is_beside = self._gpus is not None and self._gpus.trains_on(names)
                    self._start(cuda_environment(names), self._beside_training if is_beside else ())
                    self._lease = lease.pop_all()
            return self._url

    def stop(self) -> None:
        """End the process and wait until it is gone; the service can be started again."""
        with self._lock:
            if self._process is not None:
                self._process.stop()
                self._process = None
            self._lease.close()

    def _start(self, environment: Mapping[str, str], told: Sequence[str]) -> None:
        for attempt in range(PORT_TRIES):
            port = free_port()
            self._url = f"http://127.0.0.1:{port}"
            self._process = Process(self.name, [*self._command(port), *told], self.log, env=environment)
            try:
                self._wait_ready(self._process)
                return
            except ProcessError as error:
                self._process.stop()
                taken = any("address already in use" in line.lower() for line in error.tail)
                if not taken or attempt == PORT_TRIES - 1:
                    raise
                logger.info("%s: port %d was taken by another process; trying another one", self.name, port)
            except BaseException:
                self._process.stop()
                raise

    def _wait_ready(self, process: Process) -> None:
        started = time.monotonic()
        logger.info("%s: starting on %s, log in %s", self.name, self._url, self.log)
        with httpx.Client(base_url=self._url, trust_env=False, timeout=5.0) as client:
            while process.is_alive:
                if self._is_ready(client) and listens(process.pid, client.base_url.port):
                    logger.info("%s: ready after %.1f s", self.name, time.monotonic() - started)
                    return
                if time.monotonic() - started > self._ready_s:
                    raise ListenerError(
                        f"{self.name} was not ready after {self._ready_s:g} s (run.listener_start_timeout_s); "
                        f"its log is {self.log}"
                    )
                time.sleep(0.1)
        raise ProcessError(self.name, process.wait(), process.tail)

    def _is_ready(self, client: httpx.Client) -> bool:
        try:
            answer = client.get("/readyz")
        except httpx.HTTPError:
            return False
        if answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            raise ListenerError(f"{self.name} cannot load its model: {answer.text.strip()[:2000]}")
        return answer.status_code == httpx.codes.OK


def listens(pid: int, port: int | None) -> bool:
    """Whether a process or a descendant of it listens on a port: another one's answer must not be taken for ours."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                if any(c.laddr.port == port for c in process.net_connections() if c.status == psutil.CONN_LISTEN):
                    return True
    return False
