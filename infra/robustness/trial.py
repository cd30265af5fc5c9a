"""One stage, run in a process of its own on a copy of a finished store, with something done to it."""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lewis_core.artifacts import MANIFEST, PROVENANCE, ArtifactRef, ArtifactStore
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.reporting import EVENT_PREFIX
from tasks.services import ModelService, listener_command

ROOT = Path(__file__).parents[2]
LONGEST_S = 600
SAME = "same result"
ONLY_IN_FLOWS = ("mine-distractors",)
"""Stages whose arguments cannot be handed to another process."""


@dataclass(frozen=True)
class Call:
    """A stage with its arguments, as the warm run recorded it."""

    file: Path
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the stage."""
        return str(self.spec["stage"])

    @property
    def key(self) -> str:
        """Identity of the stage."""
        return str(self.spec["key"])

    def inputs(self) -> list[dict[str, Any]]:
        """Handles of the artifacts that it reads."""
        found: list[dict[str, Any]] = []

        def visit(value: Any) -> None:
            if isinstance(value, dict):
                if {"kind", "key", "digest", "path"} <= value.keys():
                    found.append(value)
                for inner in value.values():
                    visit(inner)
            elif isinstance(value, list):
                for inner in value:
                    visit(inner)

        visit(self.spec["arguments"])
        return found


@dataclass
class Ended:
    """How a process ended."""

    code: int
    seconds: float
    error: str = ""
    """Class and message of the error that it named, if any."""
    tail: str = ""
    """Its last lines."""

    @property
    def outcome(self) -> str:
        """In words."""
        if self.code == 0:
            return "ended well"
        if self.error:
            return f"named error {self.error.partition(':')[0]}"
        return f"died with status {self.code}"


@dataclass
class Workshop:
    """A finished store, and a place for copies of it.

    Args:
        folder: Receives the warm run, trials and results.
    """

    folder: Path
    _services: dict[str, ModelService] = field(default_factory=dict)

    @property
    def warm(self) -> Path:
        """Work folder of the warm run."""
        return self.folder / "warm"

    def make_warm(self) -> None:
        """Run the pipeline once, unless that was done."""
        if not (self.warm / "done").is_file():
            shutil.rmtree(self.warm, ignore_errors=True)
            command = [sys.executable, "-m", "infra.robustness.warm", str(self.warm)]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
            (self.warm / "flow.json").write_bytes(done.stdout)
            (self.warm / "done").write_text("")

    def calls(self) -> list[Call]:
        """Recorded stages that can be run alone, in the order in which the store can be filled."""
        files = sorted((self.warm / "specs").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        calls = [Call(file, json.loads(file.read_text())) for file in files]
        return [call for call in calls if call.name not in ONLY_IN_FLOWS]

    def digest(self, call: Call) -> str:
        """Digest of the warm run's result."""
        found = self.find(self.warm / "store", call)
        if found is None:
            raise RuntimeError(f"the warm store lacks {call.name} {call.key}; delete {self.warm} and begin again")
        return found.digest

    def is_same(self, call: Call, found: ArtifactRef) -> bool:
        """Whether a result is that of the warm run.

        Answers of a model depend on what else is in its call, to rounding; so results of stages that ask one are
        compared number by number, all others digest by digest.
        """
        if found.digest == self.digest(call):
            return True
        wanted = ArtifactStore(self.warm / "store").place(call.name, call.key)
        return bool(call.spec["asks"]) and same_files(wanted, found.path)

    @staticmethod
    def find(store: Path, call: Call) -> ArtifactRef | None:
        """A stage's whole and unchanged result in a store."""
        return ArtifactStore(store).find(call.name, call.key)

    def copy(self, place: Path) -> Path:
        """A copy of the warm store; returns its root."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        shutil.copytree(self.warm / "store", place / "store", symlinks=True)
        return place / "store"

    def spec_for(self, call: Call, store: Path) -> Path:
        """The stage's specification for a copy of the store; starts the service that it asks."""
        text = json.dumps(call.spec).replace(str(self.warm / "store"), str(store))
        spec = json.loads(text)
        if "service_url" in spec["runtime"]:
            spec["runtime"]["service_url"] = self.service_url(call)
        file = store.parent / f"{call.name}.json"
        file.write_text(json.dumps(spec))
        return file

    def service_url(self, call: Call) -> str:
        """Address of the model that the stage asks."""
        arguments = call.spec["arguments"]
        ref = ModelRef.model_validate(arguments.get("answering") or arguments["config"]["listener"])
        known = ref.model_dump_json()
        if known not in self._services:
            root = Path(call.spec["runtime"]["data_root"])
            runtime = Runtime.model_validate(call.spec["runtime"]["runtime"])
            log = self.folder / f"service-{len(self._services)}.log"
            command = lambda port: listener_command(ref, root, runtime, port)  # noqa: E731
            self._services[known] = ModelService("service", command, log, 300.0)
        return self._services[known].ensure()


def run_stage(
    spec: Path,
    *,
    kill_when: Callable[[float], bool] | None = None,
    environment: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> Ended:
    """Run a stage's process to its end, or until it is to be killed.

    Args:
        spec: The stage's specification.
        kill_when: From seconds since the start to whether to ``kill -9`` the stage and all that it started.
        environment: Variables added to the environment.
        prefix: Put before the command.
    """
    started = time.monotonic()
    log = spec.with_suffix(".log")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tasks.launch", str(spec)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**env, **(environment or {})},
            start_new_session=True,
        )
        while process.poll() is None:
            seconds = time.monotonic() - started
            if seconds > LONGEST_S or (kill_when is not None and kill_when(seconds)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(0.002)
    return Ended(process.returncode, time.monotonic() - started, *read_log(log))


def read_log(log: Path) -> tuple[str, str]:
    """The error that a stage named in its log, and the log's last lines."""
    error, lines = "", log.read_text(encoding="utf-8", errors="replace").split("\n")  # events begin with a separator
    for line in lines:
        if line.startswith(EVENT_PREFIX):
            with contextlib.suppress(ValueError):
                event = json.loads(line.removeprefix(EVENT_PREFIX))
                if event.get("event") == "failure":
                    error = f"{event['error']}: {event['message']}"
    return error, "\n".join(line for line in lines if not line.startswith(EVENT_PREFIX))[-600:]


def same_files(wanted: Path, found: Path) -> bool:
    """Whether two folders hold the same files: JSON to rounding, all others byte by byte."""
    names = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in (wanted, found)
    ]
    if names[0] != names[1]:
        return False
    for name in names[0]:
        one, other = (wanted / name).read_bytes(), (found / name).read_bytes()
        if one == other or name.name in (MANIFEST, PROVENANCE):
            continue
        if name.suffix not in (".json", ".jsonl"):
            return False
        values = [[json.loads(line) for line in split(content, name.suffix)] for content in (one, other)]
        if not is_close(*values):
            return False
    return True


def split(content: bytes, suffix: str) -> list[bytes]:
    """The JSON texts of a file."""
    return content.splitlines() if suffix == ".jsonl" else [content]


def is_close(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same up to rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_close, one, other))
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-5)
    return bool(one == other)


def choose(seed: str) -> random.Random:
    """Random numbers that depend on a name alone."""
    return random.Random(seed)


class Results:
    """Trials that were made, one JSON object a line; what is there is not done again.

    Args:
        file: The file.
        deadline: Monotonic time after which no trial begins.
    """

    def __init__(self, file: Path, deadline: float) -> None:
        self._file, self._deadline = file, deadline
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines() if file.is_file() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def todo(self, fault: str, names: list[str]) -> Iterator[str]:
        """Trials of a fault that were not made yet, as long as there is time."""
        done = {row["trial"] for row in self.rows if row["fault"] == fault}
        for name in names:
            if name not in done and time.monotonic() < self._deadline:
                yield name

    def add(self, fault: str, trial: str, stage: str, outcome: str, ok: bool, **facts: Any) -> None:
        """Write a trial down, and show it."""
        row = {"fault": fault, "trial": trial, "stage": stage, "outcome": outcome, "ok": ok, **facts}
        self.rows.append(row)
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = {name: value for name, value in facts.items() if name != "tail" or not ok}
        print(f"{'ok ' if ok else 'BAD'} {fault} | {stage} | {outcome} | {shown}", flush=True)
