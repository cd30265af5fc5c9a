"""A Prefect server for one command, when none is configured.

Prefect starts one itself in that case, but leaves it behind when the command is killed. This one is a guarded process:
it ends with the command however that ends.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    PREFECT_UI_URL,
    get_current_settings,
    temporary_settings,
)

from lewis_core.errors import ConfigError, OrchestrationError, ProcessError
from tasks.processes import Process
from tasks.services import free_port

_for_good = contextlib.ExitStack()
_ENVIRONMENT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""What Prefect sets for a server of its own: no UI, and nothing that only a lasting server needs."""


def ensure_prefect_server(log: Path) -> str:
    """Make a Prefect API available to this process: the configured one, or one that ends when this process has ended.

    The server has to outlive every exit handler, as Prefect sends its last logs and events from there; so nobody stops
    it but its guard.

    Args:
        log: File that gets the server's output.

    Returns:
        Address of the API.

    Raises:
        ConfigError: If one is configured, and nobody answers there.
        ProcessError: If the server ends while starting; carries its last lines.
        OrchestrationError: If it is not ready in time.
    """
    configured: str | None = PREFECT_API_URL.value()
    if configured:
        check_answers(configured)
        return configured
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    server = Process("prefect-server", command, log, env={**settings, **_ENVIRONMENT}, is_scoped=False)
    url = f"http://127.0.0.1:{port}/api"
    try:
        _wait_ready(server, url, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    except BaseException:
        server.stop()
        raise
    _for_good.enter_context(
        temporary_settings({PREFECT_API_URL: url, PREFECT_UI_URL: ""})
    )  # it has no pages to link to
    return url


def check_answers(url: str, tries: int = 5) -> None:
    """Check that a Prefect API answers, before anything runs.

    Raises:
        ConfigError: If nobody answers there.
    """
    reason = ""
    for attempt in range(tries):
        try:
            httpx.get(f"{url}/health", timeout=5.0)
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}"
            time.sleep(0.5 * attempt)
        else:
            return
    raise ConfigError(
        f"no Prefect server answers at {url} ({reason}): start it, or let this command start one for itself by "
        "unsetting PREFECT_API_URL (prefect config unset PREFECT_API_URL)"
    )


@contextlib.contextmanager
def prefect_server_needed() -> Iterator[None]:
    """Say in one line that the server went away or failed, if that is what ended the body.

    What runs goes on for minutes without a server, as Prefect's client tries again; if it is back by then, nothing is
    lost.

    Raises:
        OrchestrationError: If the server went away and did not come back, or cannot do its work.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        if not error.response.is_server_error:
            raise
        raise OrchestrationError(
            f"the Prefect server cannot do its work (it answers {error.response.status_code}): see its log, "
            "logs/prefect-server.log in the work folder if this command started it, and whether it can write its "
            "database (in PREFECT_HOME, else ~/.prefect); then run the command again"
        ) from error
    except httpx.TransportError as error:
        raise OrchestrationError(
            f"the Prefect server went away ({type(error).__name__}: {error}); start it, and the same command goes on "
            "where it stopped"
        ) from error


def _wait_ready(server: Process, url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while server.is_alive and time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=2.0, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    if not server.is_alive:
        raise ProcessError("prefect-server", server.wait(), server.tail)
    lines = "\n".join(server.tail)
    raise OrchestrationError(
        f"the Prefect server gives no answer at {url} within {timeout_s:g} s; its last lines:\n{lines}"
    )
