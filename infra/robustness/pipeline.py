"""Faults of the whole flow: it is killed, or its model services are; the results are the same all the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from infra.robustness.trial import LONGEST_S, ROOT, SAME, Call, Results, Workshop, choose, is_close
from infra.robustness.warm import SETTINGS
from lewis_core.artifacts import ArtifactStore

ASKING = ("play-games", "evaluate-identification", "evaluate-recognition", "evaluate-vqa")
REMOVED = 4
"""Results that a trial has to make again."""
PATIENCE_S = 45.0
"""Within which everything that a killed flow started has to be gone."""


def run_all(shop: Workshop, results: Results, trials: int) -> None:
    """Kill flows, and services of flows.

    Args:
        shop: Where the warm store is.
        results: Takes the trials.
        trials: How many; every third loses its service, the others are killed.
    """
    for trial in results.todo("flow", [f"{number:03d}" for number in range(trials)]):
        place = shop.folder / "flow"
        try:
            try_flow(shop, results, trial, place)
        finally:
            end(place)
            shutil.rmtree(place, ignore_errors=True)


def try_flow(shop: Workshop, results: Results, trial: str, place: Path) -> None:
    """One trial."""
    loses_service = int(trial) % 3 == 1
    rng, calls = choose(f"flow {trial}"), shop.calls()
    removed = rng.sample([call for call in calls if call.name in ASKING] if loses_service else calls, REMOVED)
    store = shop.copy(place)
    for call in removed:
        ArtifactStore(store).discard(call.name, call.key)
    process = start(place)
    wait_until(lambda: any(place.glob("logs/*-*.json")) or process.poll() is not None, LONGEST_S)
    if loses_service:
        what = kill_service(place, process, rng.uniform(0, 2))
        code = process.wait(LONGEST_S)
    else:
        what = "flow killed"
        time.sleep(rng.uniform(0, 8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not wait_until(lambda: not processes(place), PATIENCE_S):
            results.add("flow", trial, what, f"left behind: {processes(place)}", ok=False)
            return
        if wrong := unlike(shop, store, calls, missing_is_wrong=False):
            results.add("flow", trial, what, f"half-written result: {wrong}", ok=False)
            return
        code = start(place).wait(LONGEST_S)
    wrong = unlike(shop, store, calls, missing_is_wrong=True)
    if not is_close(said(shop.warm / "flow.json"), said(place / "flow.log")):
        wrong.append("the flow's numbers")
    outcome = SAME if not wrong and code == 0 else f"status {code}, other results: {wrong}"
    tail = "" if outcome == SAME else (place / "flow.log").read_text(errors="replace")[-800:]
    results.add("flow", trial, what, outcome, ok=outcome == SAME, made_again=[c.name for c in removed], tail=tail)


def start(place: Path) -> subprocess.Popen[bytes]:
    """Start the flow in a work folder."""
    command = [sys.executable, "-m", "flows", "full-pipeline", SETTINGS, "--set", f"run.work_dir={place}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (place / "flow.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)


def said(log: Path) -> dict[str, Any]:
    """What the flow said in its last line about the speakers."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith('{"base"')]
    found = json.loads(lines[-1]) if lines else {}
    return {name: found.get(name) for name in ("base", "trained")}


def kill_service(place: Path, flow: subprocess.Popen[bytes], after_s: float) -> str:
    """``kill -9`` the services that answer stages, some seconds after the first of these has begun."""

    def began() -> bool:
        return flow.poll() is not None or any(any(place.glob(f"logs/{name}-*.json")) for name in ASKING)

    wait_until(began, LONGEST_S)
    time.sleep(after_s)
    services = [one for one in processes(place) if is_service(one.info["cmdline"])]
    for process in services:
        process.kill()
    return f"{len(services)} services killed"


def is_service(words: list[str]) -> bool:
    """Whether a command line is that of a model service, and not of its guard."""
    return "lewis_core.listener" in words and not any(word.endswith("guard.py") for word in words)


def processes(place: Path) -> list[psutil.Process]:
    """Everything that runs with this folder on its command line, but for this process."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid() and any(str(place) in word for word in process.info["cmdline"] or [])
    ]


def end(place: Path) -> None:
    """End what is left of a trial."""
    for process in processes(place):
        process.kill()


def unlike(shop: Workshop, store: Path, calls: list[Call], missing_is_wrong: bool) -> list[str]:
    """Results that differ from those of the warm run.

    What is made from a model's answers has another identity if these were rounded otherwise, so it may be missing.
    """
    wrong = []
    asking = {call.key for call in calls if call.spec["asks"] and call.name != "train-speaker"}
    for call in calls:
        found = shop.find(store, call)
        derived = any(handle["key"] in asking for handle in call.inputs())
        if (found is None and missing_is_wrong and not derived) or (
            found is not None and not shop.is_same(call, found)
        ):
            wrong.append(f"{call.name} {'is missing' if found is None else 'is another'}")
    return wrong


def wait_until(condition: Callable[[], Any], longest_s: float) -> bool:
    """Wait until something is so; whether it became so."""
    deadline = time.monotonic() + longest_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
