"""Train once undisturbed and once with everything going wrong, and compare: ``python -m infra.chaos``.

The disturbed run loses its listener twice (once it is back before the trainer gives up, once it is not), is killed
with ``kill -9`` twice, and meets a full disk once. What supervises it here does what the flow does: it starts the
listener if it is dead, and the same command again.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.chaos.parts import Listener, Trainer
from infra.chaos.world import POCKET, RUNTIME, publish_rows, settings, write_photos
from lewis_core.artifacts import ArtifactStore, digest_folder
from lewis_core.pipeline import TRAIN_SPEAKER
from lewis_core.reporting import parse_event
from lewis_core.stages import stage_key
from tasks.launch import LaunchSpec
from tasks.stage import to_json

MAX_STARTS = 12
SMALL_DISK = 1000
"""Bytes of the largest file that a full disk still takes: less than a checkpoint, or the metrics."""


@dataclass
class Disturbed:
    """What a disturbed run went through."""

    done: list[str] = field(default_factory=list)
    """Faults, in order."""
    ends: list[int] = field(default_factory=list)
    """Exit status of each start of the trainer."""
    steps: list[int] = field(default_factory=list)
    """Every step that was reported, also those whose result was lost."""
    warnings: list[str] = field(default_factory=list)
    """What the trainer said."""


Fault = Callable[[Trainer, Listener], None]


def plan_faults(steps: int) -> dict[int, tuple[str, Fault]]:
    """What goes wrong after which step, once each; for at least 9 steps."""
    at = [max(1, round(steps * share)) for share in (0.12, 0.25, 0.45, 0.7, 0.85)]
    return {
        at[0]: ("the listener is killed and starts again", _restart_listener),
        at[1]: ("the trainer is killed", lambda trainer, _: trainer.kill()),
        at[2]: ("the disk is full", lambda trainer, _: trainer.fill_disk(SMALL_DISK)),
        at[3]: ("the trainer is killed again", lambda trainer, _: trainer.kill()),
        at[4]: ("the listener is killed and stays away", lambda _, listener: listener.kill()),
    }


def _restart_listener(_: Trainer, listener: Listener) -> None:
    listener.kill()
    listener.start()


def write_spec(folder: Path, photos: Path, url: str, steps: int) -> tuple[Path, ArtifactStore, str]:
    """Write what the trainer is started with; returns the file, the store and the key of the result."""
    store = ArtifactStore(folder / "store")
    config = settings(max_steps=steps, save_steps=2, sample_steps=3, patience={"outage_s": 2.0, "busy_s": 120.0})
    arguments: dict[str, object] = {"dataset": publish_rows(photos, store.root), "config": config}
    key = stage_key(TRAIN_SPEAKER, arguments)
    spec = LaunchSpec(
        stage=TRAIN_SPEAKER.name,
        function=TRAIN_SPEAKER.function,
        asks=TRAIN_SPEAKER.asks,
        key=key,
        store=store.root,
        arguments=to_json(arguments),
        runtime=to_json({"runtime": RUNTIME, "data_root": photos, "service_url": url}),
    )
    file = folder / "spec.json"
    file.write_text(spec.model_dump_json(), encoding="utf-8")
    return file, store, key


def supervise(spec: Path, listener: Listener, faults: dict[int, tuple[str, Fault]]) -> Disturbed:
    """Start training again until it has ended well.

    Raises:
        RuntimeError: If it does not end well in a dozen starts.
    """
    seen = Disturbed()
    for _ in range(MAX_STARTS):
        listener.ensure()
        trainer = Trainer(spec)
        for line in trainer.lines():
            _follow(line, trainer, listener, faults, seen)
        seen.ends.append(trainer.wait())
        if seen.ends[-1] == 0:
            return seen
    raise RuntimeError(f"training did not end well in {MAX_STARTS} starts: {seen}")


def _follow(
    line: str, trainer: Trainer, listener: Listener, faults: dict[int, tuple[str, Fault]], seen: Disturbed
) -> None:
    event = parse_event(line)
    if event is None:
        if " WARNING " in line or " ERROR " in line or "Error" in line:
            seen.warnings.append(line.strip())
        if "cannot be written" in line and "checkpoint" in line:
            trainer.fill_disk(None)  # somebody has made room
        return
    step = event.get("step")
    if event["event"] != "metrics" or "loss" not in event["metrics"] or step is None:
        return
    seen.steps.append(step)
    if step in faults:
        name, strike = faults.pop(step)
        seen.done.append(f"step {step}: {name}")
        strike(trainer, listener)


def run(folder: Path, steps: int = 20) -> dict[str, Any]:
    """Run both and compare.

    Args:
        folder: Place for everything; emptied first.
        steps: Optimiser updates.

    Returns:
        ``equal``: whether both have the same files, byte for byte; and what happened.
    """
    shutil.rmtree(folder, ignore_errors=True)
    photos = write_photos(folder / "photos")
    results, times, starts, seen = {}, {}, {}, {}
    for name in ("undisturbed", "disturbed"):
        (folder / name).mkdir()
        listener = Listener(photos, folder / name / "listener.log")
        started = time.monotonic()
        try:
            spec, store, key = write_spec(folder / name, photos, listener.url, steps)
            faults = plan_faults(steps) if name == "disturbed" else {}
            seen[name] = supervise(spec, listener, faults)
        finally:
            listener.kill()
        times[name], starts[name] = round(time.monotonic() - started, 1), listener.starts
        found = store.find(TRAIN_SPEAKER.name, key)
        if found is None:
            raise RuntimeError(f"training ended well but published nothing; see {folder / name}")
        results[name] = found.path
    files = {name: digest_folder(path) for name, path in results.items()}
    metrics = (results["disturbed"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    disturbed = seen["disturbed"]
    return {
        "equal": files["disturbed"] == files["undisturbed"],
        "different": sorted(f for f in files["undisturbed"] if files["disturbed"].get(f) != files["undisturbed"][f]),
        "model": POCKET.path,
        "steps": [json.loads(line)["step"] for line in metrics],
        "computed_again": len(disturbed.steps) - len(set(disturbed.steps)),
        "faults": disturbed.done,
        "exit_statuses": disturbed.ends,
        "listener_starts": starts,
        "wall_s": times,
        "warnings": disturbed.warnings,
    }
