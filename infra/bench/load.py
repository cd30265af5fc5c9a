"""A service under load: how much it answers, and how late, against how much is asked; overload; a long steady run.

    python -m infra.bench.load --size pocket                                  # CPU, two minutes
    python -m infra.bench.load --size 7b --device cuda --seconds 5            # random weights, under two minutes
    python -m infra.bench.load --size pocket --soak-s 1800 --rates            # a long steady run alone

The load is open: requests come at random times (Poisson) whether or not others were answered, from another process
than the service's, and a latency counts from the moment at which a request should have been sent. A request is one
game; its deadline is ``--deadline-s``, and only answers within it count as goodput. The other arm is a service in the
reference's style (one generation for each pair, one request at a time, no limit to its queue) around the same model.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from infra.bench.load_service import VISUAL_TOKENS

OURS, REFERENCE = "ours", "reference style"
CROWD = 16
"""Requests at a time when the capacity is measured."""
SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 3.0)
"""Offered load, as shares of the capacity."""
PHOTOS = 40


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m infra.bench.load", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=tuple(VISUAL_TOKENS), default="pocket")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the JSON file")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each rate")
    parser.add_argument("--rates", type=float, nargs="*", default=SHARES, help="shares of the capacity; none: no rates")
    parser.add_argument("--deadline-s", type=float, default=5.0, help="of each request")
    parser.add_argument("--soak-s", type=float, default=0.0, help="a steady run at 0.7 of the capacity")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--descriptions", type=int, default=4)
    parser.add_argument("--reference-requests", type=int, default=4, help="of the other arm; 0: without it")
    parser.add_argument("--name", default="load", help="beginning of the JSON file's name")
    return parser.parse_args(arguments)


@dataclass
class Point:
    """What happened at one rate."""

    arm: str
    offered_per_s: float
    share: float
    answered: int
    within_deadline_per_s: float
    refused: int
    failed: int
    """Neither answered nor refused in an orderly way: no answer at all, or 5xx other than 503 and 504."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass
class Outcome:
    """One request."""

    status: int
    seconds: float
    """From when it should have been sent."""


class Asker:
    """Sends games.

    Args:
        options: Sizes.
        port: Where the service listens.
        arm: Whose schema.
    """

    def __init__(self, options: argparse.Namespace, port: int, arm: str) -> None:
        self._options, self.arm = options, arm
        self._url = f"http://127.0.0.1:{port}/{'v1/score' if arm == OURS else 'batch_score'}"
        limits = httpx.Limits(max_connections=2000, max_keepalive_connections=200)
        self.client = httpx.AsyncClient(timeout=120, limits=limits, trust_env=False)
        self._number = 0

    def body(self) -> bytes:
        """A game that was not asked before: photos repeat, descriptions do not."""
        from infra.bench.world import description

        self._number += 1
        rng, options = random.Random(self._number), self._options
        tokens = VISUAL_TOKENS[options.size]
        photos = [f"{tokens}-{number:03d}.jpg" for number in rng.sample(range(PHOTOS), options.candidates)]
        texts = [description(self._number * 1000 + number, 60) for number in range(options.descriptions)]
        if self.arm == OURS:
            return json.dumps({"games": [{"candidates": photos, "descriptions": texts, "category": "mug"}]}).encode()
        return json.dumps({"batch": [{"candidate_paths": photos, "question": text} for text in texts]}).encode()

    async def ask(self, body: bytes, due: float, deadline_s: float = 600.0) -> Outcome:
        """Send one request."""
        headers = {"Content-Type": "application/json", "X-Request-Timeout": f"{deadline_s}"}
        try:
            patience = deadline_s + (5 if self.arm == OURS else 0)  # ours says itself that it is too late
            response = await self.client.post(self._url, content=body, headers=headers, timeout=patience)
            status = response.status_code
            if status not in (200, 503, 504):
                print(response.text[:300], file=sys.stderr)
        except httpx.HTTPError:
            status = 0
        return Outcome(status, time.perf_counter() - due)


async def closed_loop(asker: Asker, seconds: float, crowd: int, most: int = 10**9) -> float:
    """Requests a second that are answered when ``crowd`` clients ask one after the other."""
    started, answered = time.perf_counter(), 0

    async def client() -> None:
        nonlocal answered
        while time.perf_counter() - started < seconds and answered < most:
            outcome = await asker.ask(asker.body(), time.perf_counter())
            answered += outcome.status == 200

    await asyncio.gather(*(client() for _ in range(crowd)))
    return answered / (time.perf_counter() - started)


async def open_loop(asker: Asker, rate: float, seconds: float, deadline_s: float) -> list[Outcome]:
    """Ask at random times, on average ``rate`` times a second, whatever becomes of it."""
    rng, tasks = random.Random(0), list[Awaitable[Outcome]]()
    bodies = [asker.body() for _ in range(int(rate * seconds * 1.5) + 8)]
    started = due = time.perf_counter()
    for body in bodies:
        due += rng.expovariate(rate)
        if due > started + seconds:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(asker.ask(body, due, deadline_s)))
    return list(await asyncio.gather(*tasks))


def summarise(
    asker: Asker, outcomes: list[Outcome], rate: float, share: float, took_s: float, deadline: float
) -> Point:
    """Counts and percentiles; latencies are those of requests that were answered."""
    answered = sorted(one.seconds for one in outcomes if one.status == 200)

    def percentile(q: float) -> float | None:
        return round(answered[min(len(answered) - 1, int(q * len(answered)))] * 1e3, 1) if answered else None

    good = sum(seconds <= deadline + 0.25 for seconds in answered)  # a little time for the way back
    return Point(
        asker.arm, round(rate, 2), share, len(answered), round(good / took_s, 2),
        sum(one.status in (503, 504) for one in outcomes),
        sum(one.status not in (200, 503, 504) for one in outcomes),
        percentile(0.5), percentile(0.95), percentile(0.99),
    )  # fmt: skip


async def measure(options: argparse.Namespace, folder: Path, service: psutil.Process) -> dict[str, Any]:
    """All arms and rates; what is known is on disk at once."""
    ready = json.loads((folder / "ready.json").read_text())
    ours, other = (Asker(options, port, arm) for port, arm in zip(ready["ports"], (OURS, REFERENCE), strict=True))
    result: dict[str, Any] = {"hardware": ready["hardware"], "points": [], "goodput_kept_at_overload": None}
    async with ours.client, other.client:
        capacity = await measure_ours(ours, options, result)
        if options.soak_s:
            result["soak"] = await soak(ours, capacity * 0.7, options, folder, service)
            save(options, result)
        if options.reference_requests:
            # last: it goes on with what nobody waits for any more
            await measure_reference(other, capacity, options, result)
    return result


async def measure_ours(ours: Asker, options: argparse.Namespace, result: dict[str, Any]) -> float:
    """Capacity, and what becomes of shares of it; returns the capacity, in requests a second."""
    first = await ours.ask(ours.body(), time.perf_counter())
    if first.status != 200:
        raise RuntimeError(f"the service answers with status {first.status}")
    await closed_loop(ours, min(3.0, options.seconds), CROWD)  # photos are seen, kernels are chosen
    capacity = await closed_loop(ours, options.seconds, CROWD)
    result["capacity_per_s"] = round(capacity, 2)
    print(f"capacity: {capacity:.1f} requests/s of {options.candidates} x {options.descriptions} pairs", flush=True)
    for share in options.rates:
        result["points"].append(await one_rate(ours, capacity, share, options))
        best = max(point["within_deadline_per_s"] for point in result["points"])
        overload = [point["within_deadline_per_s"] for point in result["points"] if point["share"] >= 3]
        result["goodput_kept_at_overload"] = round(min(overload) / best, 3) if overload and best else None
        save(options, result)
    return capacity


async def measure_reference(other: Asker, capacity: float, options: argparse.Namespace, result: dict[str, Any]) -> None:
    """The other arm alone, and at shares of our capacity."""
    slow = await closed_loop(other, 600, 1, most=options.reference_requests)
    print(f"reference style: {slow:.3f} requests/s", flush=True)
    result["reference_capacity_per_s"] = round(slow, 4)
    save(options, result)
    for share in (1 / 8, 1 / 4) if options.rates else ():
        result["points"].append(await one_rate(other, capacity, share, options))
        save(options, result)


def save(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write down what is known so far."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    options.out.mkdir(parents=True, exist_ok=True)
    document = {"date": time.strftime("%Y-%m-%d"), "settings": settings, **result}
    file = options.out / f"{options.name}-{options.size}-{options.device}.json"
    file.write_text(json.dumps(document, indent=1) + "\n")


async def one_rate(asker: Asker, capacity: float, share: float, options: argparse.Namespace) -> dict[str, Any]:
    """One point of the curve."""
    rate, seconds = capacity * share, options.seconds
    started = time.perf_counter()
    outcomes = await open_loop(asker, rate, seconds, options.deadline_s)
    point = summarise(asker, outcomes, rate, share, max(seconds, time.perf_counter() - started), options.deadline_s)
    print(json.dumps(asdict(point)), flush=True)
    return asdict(point)


async def soak(
    asker: Asker, rate: float, options: argparse.Namespace, folder: Path, service: psutil.Process
) -> dict[str, Any]:
    """A steady run: memory in its second quarter against that in its last."""
    memory: list[tuple[int, int]] = []
    stop = asyncio.Event()

    async def watch() -> None:
        while not stop.is_set():
            cuda = folder / "cuda"
            memory.append((service.memory_info().rss >> 20, int(cuda.read_text() or 0) if cuda.is_file() else 0))
            await asyncio.sleep(max(0.2, options.soak_s / 400))

    watching, outcomes = asyncio.ensure_future(watch()), list[Outcome]()
    started = time.perf_counter()
    while (left := options.soak_s - (time.perf_counter() - started)) > 0:
        outcomes += await open_loop(asker, rate, min(60.0, left), options.deadline_s)
    stop.set()
    await watching
    quarter = len(memory) // 4
    early, late = (
        [statistics.median(sample[i] for sample in part) for i in range(2)]
        for part in (memory[quarter : 2 * quarter], memory[3 * quarter :])
    )
    point = summarise(asker, outcomes, rate, 0.7, options.soak_s, options.deadline_s)
    memory_facts = {"rss_mib": [early[0], late[0]], "cuda_mib": [early[1], late[1]]}
    return asdict(point) | {"seconds": options.soak_s, "requests": len(outcomes), **memory_facts}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start the service's process, measure, and end it."""
    from infra.bench import world

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "photos").mkdir()
        world.write_photos(folder / "photos", PHOTOS, VISUAL_TOKENS[options.size])
        command = [sys.executable, "-m", "infra.bench.load_service", temporary, options.size, options.device]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            wait_for(lambda: (folder / "ready.json").is_file() or process.poll() is not None)
            if process.poll() is not None:
                raise RuntimeError(f"the service ended with status {process.returncode}")
            return asyncio.run(measure(options, folder, psutil.Process(process.pid)))
        finally:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], bool], longest_s: float = 600.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + longest_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| arm | offered, requests/s | of capacity | answered in time, per s | refused | lost | p50 ms | p95 | p99 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for point in result["points"]:
        lines.append(
            f"| {point['arm']} | {point['offered_per_s']} | {point['share']:g} | {point['within_deadline_per_s']} | "
            f"{point['refused']} | {point['failed']} | {point['p50_ms']} | {point['p95_ms']} | {point['p99_ms']} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Measure; returns 0 if overload keeps 90 % of the best goodput and no request was lost."""
    options = parse_arguments(arguments)
    result = run(options)
    print(table(result))
    print(json.dumps({name: value for name, value in result.items() if name != "points"}))
    kept = result["goodput_kept_at_overload"]
    lost = sum(point["failed"] for point in result["points"] if point["arm"] == OURS)
    return int(lost > 0 or (kept is not None and kept < 0.9))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
