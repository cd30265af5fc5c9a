"""Rows of measurements: medians, memory, what failed; every row is on disk as soon as it is known."""

import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "transformers", "trl", "peft")


@dataclass(frozen=True)
class Rates:
    """What the hardware does, measured in the same run."""

    flops: float
    """Floating-point operations a second of a large matrix product in the models' precision."""
    bytes_per_s: float
    """Bytes a second, read and written, of a large copy."""


class Recorder:
    """Takes times and writes them down.

    Args:
        file: Receives everything, again after every row.
        device: ``cpu`` or ``cuda``.
        settings: What was asked for.
        budget_s: Nothing new is begun after this many seconds; what was left out is listed.
    """

    def __init__(self, file: Path, device: str, settings: dict[str, Any], budget_s: float) -> None:
        self._file, self.device, self._settings, self._budget_s = file, device, settings, budget_s
        self._started = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.rates = self._measure_rates()
        self._write()

    def _measure_rates(self) -> Rates:
        dtype, size = (torch.bfloat16, 8192) if self.device == "cuda" else (torch.float32, 1024)
        a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        source = torch.randn(1 << (29 if self.device == "cuda" else 22), device=self.device, dtype=dtype)
        target = torch.empty_like(source)
        product = self._median(lambda: a @ b, 10, 3)
        copy = self._median(lambda: target.copy_(source), 10, 3)
        return Rates(2 * size**3 / product, 2 * source.numel() * source.element_size() / copy)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _median(self, call: Callable[[], object], repeats: int, warmup: int) -> float:
        return statistics.median(self._times(call, repeats, warmup))

    def _times(self, call: Callable[[], object], repeats: int, warmup: int) -> list[float]:
        for _ in range(warmup):
            call()
        self.synchronize()
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            self.synchronize()
            times.append(time.perf_counter() - started)
        return times

    def measure(
        self,
        part: str,
        arm: str,
        call: Callable[[], object],
        *,
        repeats: int = 3,
        warmup: int = 1,
        units: float = 1.0,
        unit: str = "steps",
        **facts: Any,
    ) -> float | None:
        """Time a call.

        Args:
            part: What is computed.
            arm: Who computes it.
            call: Does it once.
            repeats: Timed calls; the median counts.
            warmup: Calls before.
            units: How much one call does.
            unit: Of what.
            facts: Written beside the times.

        Returns:
            Median seconds of a call; ``None`` if there was no time or no memory for it.
        """
        name = f"{part}: {arm}" + "".join(f", {key} {value}" for key, value in facts.items() if key == "visual_tokens")
        if not self.has_time(name):
            return None
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            times = self._times(call, repeats, warmup)
        except torch.OutOfMemoryError as error:
            self.add(part, arm, None, error=f"out of memory: {str(error).splitlines()[0]}", **facts)
            return None
        if self.device == "cuda":
            facts["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        seconds = statistics.median(times)
        self.add(part, arm, seconds, times=[round(t, 6) for t in times], **{f"{unit}_per_s": units / seconds}, **facts)
        return seconds

    def profile(self, name: str, call: Callable[[], object], **facts: Any) -> None:
        """Write down which kernels a call spends its time in, and how long the GPU is busy."""
        if self.device != "cuda" or not self._settings.get("profile") or not self.has_time(f"profile: {name}"):
            return
        from torch.profiler import ProfilerActivity, profile

        self.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            started = time.perf_counter()
            call()
            self.synchronize()
            seconds = time.perf_counter() - started
        found = summarise_kernels(profiler)
        kernels = found.pop("kernels")
        self.note(f"profile: {name}", seconds=seconds, **found, **facts)
        for key, count, milliseconds in kernels:
            print(f"    {milliseconds:9.2f} ms {count:6d} x {key}", flush=True)
        self.notes[-1]["kernels"] = kernels
        self._write()

    def has_time(self, name: str) -> bool:
        """Whether something new may be begun; if not, it is listed as left out."""
        if time.monotonic() - self._started < self._budget_s:
            return True
        self.left_out.append(name)
        self._write()
        return False

    def add(self, part: str, arm: str, seconds: float | None, **facts: Any) -> None:
        """Write a row down, and show it."""
        row = {"part": part, "arm": arm, "seconds": seconds, **facts}
        self.rows.append(row)
        self._write()
        shown = "failed" if seconds is None else f"{seconds * 1e3:.1f} ms"
        rest = " ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in facts.items()
            if key != "times"
        )
        print(f"[{time.monotonic() - self._started:5.0f} s] {part} | {arm} | {shown} | {rest}", flush=True)

    def note(self, what: str, **facts: Any) -> None:
        """Write down something that is no time."""
        self.notes.append({"what": what, **facts})
        self._write()
        print(f"{what}: {facts}", flush=True)

    def seconds(self, part: str, arm: str, **facts: Any) -> float | None:
        """Seconds of a row that was written before."""
        for row in self.rows:
            if row["part"] == part and row["arm"] == arm and all(row.get(k) == v for k, v in facts.items()):
                found: float | None = row["seconds"]
                return found
        return None

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Let a failure cost this part alone; it is written down, and raised again at the end."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the other parts must not be lost with it
            import traceback

            traceback.print_exc(limit=8)
            self.add(name, "failed", None, error=f"{type(error).__name__}: {error}")
        finally:
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Rows of parts that broke (not: of arms for which memory did not suffice)."""
        return [row for row in self.rows if row["arm"] == "failed"]

    def _write(self) -> None:
        hardware = torch.cuda.get_device_name() if self.device == "cuda" else platform.processor() or platform.machine()
        document = {
            "hardware": hardware,
            "cpus": torch.get_num_threads(),
            "python": sys.version.split()[0],
            "versions": {name: version(name) for name in LIBRARIES},
            "settings": self._settings,
            "rates": {"tflops": self.rates.flops / 1e12, "tb_per_s": self.rates.bytes_per_s / 1e12},
            "rows": self.rows,
            "notes": self.notes,
            "left_out": self.left_out,
        }
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self._file)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as text: seconds, rate, and how many times faster than the slowest arm of the same part."""
    lines = []
    slowest: dict[tuple[Any, ...], float] = {}
    for row in rows:
        key = row["part"], row.get("visual_tokens")
        if row["seconds"] is not None:
            slowest[key] = max(slowest.get(key, 0.0), row["seconds"] * row.get("scale", 1.0))
    for row in rows:
        key = row["part"], row.get("visual_tokens")
        if row["seconds"] is None:
            lines.append(f"{row['part']:<12} {row['arm']:<44} {row.get('error', 'not measured')}")
            continue
        seconds = row["seconds"] * row.get("scale", 1.0)
        rates = [f"{value:10.1f} {name[:-6]}/s" for name, value in row.items() if name.endswith("_per_s")]
        lines.append(
            f"{row['part']:<12} V={row.get('visual_tokens', '-'):<6} {row['arm']:<44} {seconds * 1e3:12.1f} ms "
            f"{slowest[key] / seconds:8.1f} x {''.join(rates)}"
        )
    return "\n".join(lines)


def summarise_kernels(profiler: Any, most: int = 25) -> dict[str, Any]:
    """What a finished ``torch.profiler.profile`` saw of a GPU: seconds it was busy, launches, its longest kernels.

    Returns:
        ``busy_s``, ``launches``, and ``kernels``: name, launches and milliseconds of each.
    """
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total)
    return {
        "busy_s": sum(row.self_device_time_total for row in rows) / 1e6,
        "launches": sum(row.count for row in rows if row.self_device_time_total),
        "kernels": [[row.key[:90], row.count, round(row.self_device_time_total / 1e3, 2)] for row in rows[:most]],
    }
