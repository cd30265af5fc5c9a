"""Stages and a model service that stand in for the real ones: same contract, nothing to compute."""

import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import FrozenConfig
from lewis_core.errors import CatalogError, ListenerUnavailableError
from lewis_core.records import JsonObject
from lewis_core.reporting import Reporter


class CountConfig(FrozenConfig):
    """Settings of the stand-ins."""

    number: int = 1
    """Written to the artifact."""
    log: str = ""
    """File that gets a line whenever a stage computes."""


def note(config: CountConfig, name: str) -> None:
    with Path(config.log).open("a") as file:
        file.write(f"{name}\n")


def count(config: CountConfig, output_dir: Path, reporter: Reporter) -> JsonObject:
    """Write a number."""
    note(config, "count")
    reporter.log_metrics({"loss": 0.5}, step=1)
    reporter.log_table("samples", [{"text": "a", "reward": 1.0}], step=1)
    for done in range(1, 4):
        reporter.progress(done, 3, "numbers")
    (output_dir / "number.txt").write_text(str(config.number))
    return {"number": config.number}


def double(source: ArtifactRef, config: CountConfig, output_dir: Path, reporter: Reporter) -> JsonObject:
    """Double a number."""
    note(config, "double")
    reporter.log_metrics({"loss": 0.25}, step=1)
    number = int(source.file("number.txt").read_text()) * 2
    (output_dir / "number.txt").write_text(str(number))
    return {"number": number}


def know(config: CountConfig, output_dir: Path, cache_dir: Path) -> JsonObject:
    """Leave something for other runs."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    (cache_dir / "known.txt").write_text(str(config.number))
    (output_dir / "ok.txt").write_text("ok")
    return {}


def write(name: str, config: CountConfig, output_dir: Path, data_root: Path) -> JsonObject:
    """Write a name."""
    note(config, name)
    (output_dir / "name.txt").write_text(f"{name} {config.number}")
    return {"length": len(name)}


def refuse_one(name: str, config: CountConfig, output_dir: Path) -> JsonObject:
    """Fail for one of several values."""
    if name == "bad":
        raise CatalogError(f"no photos of {name}")
    return {"number": config.number}


def refuse(config: CountConfig, output_dir: Path) -> JsonObject:
    """Fail as a stage fails on bad input."""
    note(config, "refuse")
    raise CatalogError("no photos in /somewhere; put some there")


def lose_listener_once(config: CountConfig, output_dir: Path, service_url: str) -> JsonObject:
    """Lose the service at the first attempt."""
    note(config, service_url)
    if Path(config.log).read_text().count("\n") == 1:
        raise ListenerUnavailableError("nobody answers")
    (output_dir / "ok.txt").write_text("ok")
    return {}


def be_killed_once(config: CountConfig, output_dir: Path) -> JsonObject:
    """Be killed at the first attempt, as by the kernel when memory runs out."""
    note(config, "killed")
    if Path(config.log).read_text().count("\n") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    (output_dir / "ok.txt").write_text("ok")
    return {}


def see_gpus(config: CountConfig, output_dir: Path) -> JsonObject:
    """Say which GPUs this process may use."""
    note(config, os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    (output_dir / "ok.txt").write_text("ok")
    return {}


def count_slowly(config: CountConfig, output_dir: Path) -> JsonObject:
    """Write a number, after two seconds."""
    note(config, "count slowly")
    time.sleep(2)
    (output_dir / "number.txt").write_text(str(config.number))
    return {"number": config.number}


def hang(config: CountConfig, output_dir: Path) -> JsonObject:
    """Never end."""
    note(config, str(os.getpid()))
    time.sleep(600)
    return {}


def stand_in_command(port: int) -> list[str]:
    """Command line of the model service below."""
    return [sys.executable, __file__, str(port)]


class Handler(BaseHTTPRequestHandler):
    """503 for half a second, then 200."""

    started = time.monotonic()

    def do_GET(self) -> None:
        """Say whether the stand-in is ready."""
        status = 200 if time.monotonic() - self.started > 0.5 else 503
        if os.environ.get("STAND_IN_FAILS"):
            status = 500
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b'{"status": "failed", "detail": "no weights in /nowhere"}' if status == 500 else b"{}")


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
