"""Faults of stages: killed, damaged, without room, without access, at the wrong time of day."""

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from infra.robustness.trial import SAME, Call, Ended, Results, Workshop, choose, run_stage
from lewis_core.artifacts import MANIFEST, ArtifactStore

FAKETIME = (
    Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"),
)
EARLIEST = 0.25
"""Kills fall into this share of a stage's time and later: before it, Python is loading."""


def run_all(shop: Workshop, results: Results, kills: int, others: int) -> None:
    """All faults of stages.

    Args:
        shop: Where the warm store is.
        results: Takes the trials.
        kills: How many stages are killed.
        others: How many trials of each other fault that runs stages.
    """
    calls = shop.calls()
    measure(shop, results, calls)
    seconds = {row["trial"]: row["seconds"] for row in results.rows if row["fault"] == "none"}
    kill(shop, results, [call for call in calls if call.file.stem in seconds], seconds, kills)
    damage(shop, results, calls)
    damage_input(shop, results, calls, others)
    fill_disk(shop, results, calls, others)
    forbid_writing(shop, results, calls, others)
    change_time(shop, results, calls, others)


def measure(shop: Workshop, results: Results, calls: list[Call]) -> None:
    """Every stage once without a fault, alone: it gives the result that it gave in the flow."""
    for name in results.todo("none", [call.file.stem for call in calls]):
        [call] = [one for one in calls if one.file.stem == name]
        store = without(shop, call)
        ended = run_stage(shop.spec_for(call, store))
        finish(shop, results, "none", name, call, ended, store)


def without(shop: Workshop, call: Call, place: str = "trial") -> Path:
    """A copy of the warm store that lacks a stage's result."""
    store = shop.copy(shop.folder / place)
    ArtifactStore(store).discard(call.name, call.key)
    return store


def finish(
    shop: Workshop, results: Results, fault: str, trial: str, call: Call, ended: Ended, store: Path, **facts: Any
) -> None:
    """Compare the result with the warm run's, and write the trial down."""
    found = shop.find(store, call)
    same = ended.code == 0 and found is not None and shop.is_same(call, found)
    outcome = SAME if same else ended.outcome if ended.code else "another result"
    tail = "" if same else ended.error or ended.tail
    results.add(fault, trial, call.name, outcome, same, seconds=round(ended.seconds, 2), tail=tail, **facts)


class Moment:
    """When a stage is killed: at a time, or some seconds after it has begun to write its result.

    Args:
        trial: Number of the trial, which decides.
        seconds: How long the stage takes.
        writing: Finds the files of the unfinished result.
    """

    def __init__(self, trial: str, seconds: float, writing: Callable[[], Iterable[Path]]) -> None:
        rng = choose(f"kill {trial}")
        self._at = rng.uniform(EARLIEST, 1.0) * seconds
        self._after = rng.uniform(0, 0.02 if rng.random() < 0.5 else 0.5)
        self._writing, self._seen_at = writing, None if int(trial) % 3 == 2 else -1.0

    def __call__(self, passed: float) -> bool:
        """Whether it has come."""
        if self._seen_at == -1.0:
            return passed >= self._at
        if self._seen_at is None and any(True for _ in self._writing()):
            self._seen_at = passed
        return self._seen_at is not None and passed >= self._seen_at + self._after


def kill(shop: Workshop, results: Results, calls: list[Call], seconds: dict[str, float], kills: int) -> None:
    """``kill -9`` at a random moment, or while the result is being written; then the same again, to its end.

    Every stage has its turn, then those that take less than the median. Stages that had ended before the moment came
    do not count.
    """
    order = sorted(calls, key=lambda call: seconds[call.file.stem])
    order = [*calls, *order[: (len(order) + 1) // 2] * 99]
    done = sum(row["fault"] == "kill -9" for row in results.rows)
    for trial in results.todo("kill -9", [f"{number:03d}" for number in range(3 * kills)]):
        if done >= kills:
            return
        call = order[int(trial)]
        store = without(shop, call)
        spec, pattern = shop.spec_for(call, store), f".building-{call.key}-*"
        moment = Moment(trial, seconds[call.file.stem], partial((store / call.name).glob, f"{pattern}/*"))
        killed = run_stage(spec, kill_when=moment)
        if killed.code != -signal.SIGKILL:
            seconds[call.file.stem] = min(seconds[call.file.stem], killed.seconds)
            continue
        done += 1
        left = len(list((store / call.name).glob(pattern)))
        found = shop.find(store, call)
        if found is not None and not shop.is_same(call, found):
            results.add("kill -9", trial, call.name, "half-written result was used", ok=False)
            continue
        ended = run_stage(shop.spec_for(call, store))
        facts = {"at_s": round(killed.seconds, 2), "was_killed": True, "left_behind": left}
        finish(shop, results, "kill -9", trial, call, ended, store, done_before=found is not None, **facts)


def damaged(data: bytes, how: str, seed: str) -> bytes:
    """Data that was truncated, or in which a bit has changed."""
    if how == "truncated":
        return data[: choose(seed).randrange(max(1, len(data)))]
    place = choose(seed).randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << choose(seed).randrange(8))]) + data[place + 1 :]


def damage(shop: Workshop, results: Results, calls: list[Call]) -> None:
    """Truncate, flip a bit in, or delete every file of every result: it is not found any more."""
    for how in results.todo("damaged file is noticed", ["truncated", "bit flipped", "deleted"]):
        store = shop.copy(shop.folder / "trial")
        tried, missed = 0, []
        for call in calls:
            folder = ArtifactStore(store).place(call.name, call.key)
            for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
                if file.name == "provenance.json":
                    continue
                data = file.read_bytes()
                file.unlink()
                if how != "deleted":
                    file.write_bytes(damaged(data, how, f"{how} {file.name}"))
                tried += 1
                if shop.find(store, call) is not None:
                    missed.append(str(file.relative_to(store)))
                file.unlink(missing_ok=True)
                file.write_bytes(data)
            if shop.find(store, call) is None:
                missed.append(f"{call.name} was not found again")
        results.add("damaged file is noticed", how, "all", "not found", not missed, count=tried, tail=str(missed[:5]))


def damage_input(shop: Workshop, results: Results, calls: list[Call], others: int) -> None:
    """Damage a stage's input behind its back: it refuses by name; made again, the input is what it was."""
    with_inputs = [call for call in calls if call.inputs()]
    for trial in results.todo("damaged input", [f"{number:03d}" for number in range(others)]):
        rng = choose(f"input {trial}")
        call = with_inputs[int(trial) * 7 % len(with_inputs)]
        store = without(shop, call)
        handle = rng.choice(call.inputs())
        source = next(one for one in calls if (one.name, one.key) == (handle["kind"], handle["key"]))
        folder = ArtifactStore(store).place(source.name, source.key)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
        file = rng.choice([path for path in files if path.name != "provenance.json"])
        file.write_bytes(damaged(file.read_bytes(), rng.choice(["truncated", "bit flipped"]), trial))
        refused = run_stage(shop.spec_for(call, store))
        named = refused.code != 0 and "ArtifactError" in refused.error and shop.find(store, call) is None
        if not named:
            results.add("damaged input", trial, call.name, f"was used: {refused.outcome}", ok=False, tail=refused.tail)
            continue
        run_stage(shop.spec_for(source, store))
        ended = run_stage(shop.spec_for(call, store))
        shown = f"{source.name}/{file.name}" if file.name != MANIFEST else f"{source.name}'s manifest"
        finish(shop, results, "damaged input", trial, call, ended, store, damaged=shown, first="refused by name")


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[bool]:
    """Mount something on a folder; whether that was possible."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(place)], check=False, capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(place)], check=False)


HEAVY = ("render-photos", "train-speaker", "embed-images", "build-dataset", "describe-concepts", "play-games")
LIGHT = ("evaluate-vqa", "build-catalog", "build-report", "split-concepts", "evaluate-recognition", "compare-speakers")
WITHOUT_TORCH = ("render-photos", "play-games", "build-games", *LIGHT)
"""Stages whose process does not load torch, whose threads libfaketime can block."""


def some_calls(calls: list[Call], names: tuple[str, ...], most: int) -> dict[str, Call]:
    """One call of each of the first stages named."""
    by_name = {call.name: call for call in calls}
    return {name: by_name[name] for name in names if name in by_name and names.index(name) < most}


def fill_disk(shop: Workshop, results: Results, calls: list[Call], others: int) -> None:
    """No room: on a small disk of its own, or, where nothing can be mounted, with a limit of a file's size."""
    chosen = some_calls(calls, (*HEAVY, *LIGHT), others)
    for name in results.todo("disk full", list(chosen)):
        call, place = chosen[name], shop.folder / "small-disk"
        shutil.rmtree(place, ignore_errors=True)
        with mounted(place, "-t", "tmpfs", "-o", "size=64m", "tmpfs") as is_disk:
            store = without(shop, call, "small-disk/trial")
            spec = shop.spec_for(call, store)
            prefix: tuple[str, ...] = ()
            if is_disk:
                usage = shutil.disk_usage(place)
                leave = choose(f"full {name}").randrange(0, 12) * 1024
                with (place / "ballast").open("wb") as ballast:
                    ballast.write(b"\0" * max(0, usage.free - leave))
            else:
                prefix = ("prlimit", "--fsize=2048")
            refused = run_stage(elsewhere(shop, spec), prefix=prefix)
            (place / "ballast").unlink(missing_ok=True)
            facts = {"how": "tmpfs" if is_disk else "limit of a file's size"}
            conclude(shop, results, "disk full", name, call, refused, store, **facts)


def forbid_writing(shop: Workshop, results: Results, calls: list[Call], others: int) -> None:
    """A store that can only be read."""
    chosen = some_calls(calls, ("render-photos", "build-dataset", "play-games", "build-report"), others)
    for name in results.todo("read-only folder", list(chosen)):
        call, place = chosen[name], shop.folder / "trial"
        store = without(shop, call)
        spec = shop.spec_for(call, store)
        moved = elsewhere(shop, spec)
        with mounted(store, "--bind", str(store)) as bound:
            if not bound or subprocess.run(["mount", "-o", "remount,ro,bind", str(store)], check=False).returncode:
                results.add("read-only folder", name, call.name, "not tried: nothing can be mounted here", ok=True)
                continue
            refused = run_stage(moved)
        conclude(shop, results, "read-only folder", name, call, refused, place / "store")


def elsewhere(shop: Workshop, spec: Path) -> Path:
    """A copy of the specification where a log can be written beside it."""
    folder = shop.folder / "logs"
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(spec, folder / spec.name))


def conclude(
    shop: Workshop, results: Results, fault: str, trial: str, call: Call, refused: Ended, store: Path, **facts: Any
) -> None:
    """The fault is over: nothing half-written may be there, and the same command ends well.

    A stage that did not need what was missing may have ended well before.
    """
    found = shop.find(store, call)
    was_right = refused.code == 0 and found is not None and shop.is_same(call, found)
    if not was_right and (not refused.error or refused.code == 0 or found is not None):
        results.add(fault, trial, call.name, f"not named: {refused.outcome}", ok=False, tail=refused.tail)
        return
    ended = run_stage(shop.spec_for(call, store))
    first = "was not hindered" if was_right else refused.outcome
    finish(shop, results, fault, trial, call, ended, store, first=first, said=refused.error[:200], **facts)


class Jumps:
    """A clock that jumps every 0.3 s, for a process that runs with libfaketime.

    Args:
        file: Tells the library what time it is.
        name: Decides the jumps.
    """

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._rng, self._next = file, choose(f"clock {name}"), 0.0
        file.write_text("+0")

    def environment(self, library: Path) -> dict[str, str]:
        """Variables of the process."""
        here = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1"}
        return {**here, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}

    def __call__(self, passed: float) -> bool:
        """Jump, if it is time; never a reason to kill the process."""
        if passed >= self._next:
            self._file.write_text(self._rng.choice(["-9y", "+20y", "-1h", "+1d", "+0"]))
            self._next = passed + 0.3
        return False


def change_time(shop: Workshop, results: Results, calls: list[Call], others: int) -> None:
    """The clock jumps, by years and hours, back and forth, while a stage runs."""
    library = next((path for path in FAKETIME if path.is_file()), None)
    chosen = some_calls(calls, WITHOUT_TORCH, others)
    for name in results.todo("clock jump", list(chosen)):
        call = chosen[name]
        if library is None:
            results.add("clock jump", name, call.name, "not tried: libfaketime is not installed", ok=True)
            continue
        store = without(shop, call)
        jumps = Jumps(store.parent / "time", name)
        ended = run_stage(shop.spec_for(call, store), kill_when=jumps, environment=jumps.environment(library))
        finish(shop, results, "clock jump", name, call, ended, store)
