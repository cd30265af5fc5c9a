"""A training process of :mod:`infra.bench.distributed`: the product's training, on random weights that never stop.

Started by ``accelerate launch`` with the path of a spec (:class:`Spec`). Random text is no description and random
models seldom end one, so text is given a meaning, and completions their full length.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from infra.bench import trainers, world
from infra.bench.recorder import summarise_kernels
from infra.bench.training import _parse
from lewis_core.config.base import Runtime
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.listener.client import HttpModel
from lewis_core.models import loading
from lewis_core.records import Record
from lewis_core.reporting import NullReporter
from lewis_core.rewards import trl as rewards
from lewis_core.training import session
from lewis_core.training.assemble import PLAN
from lewis_core.training.processes import end_process, leave_process_group, uses_deepspeed
from lewis_core.training.speaker import train_on_rows

PROFILED = 4
"""Step that is profiled, counted from 1: CUDA graphs are captured by then."""


class Spec(Record):
    """What a process does."""

    config: dict[str, Any]
    """Of the training."""
    rows: list[dict[str, Any]]
    photos: Path
    work: Path
    out: Path
    device: str
    url: str | None = None
    """Of the listener's service."""
    size: str | None = None
    """Make a random model of this size instead of loading the settings' one."""
    profile: bool = False
    """Write down in which kernels a GPU spent one step."""


class Steps(NullReporter):
    """Writes each step's numbers as they come, with the time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.peak_gib = 0.0
        """Of memory over all steps; the trainer counts anew after each of them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line."""
        self.peak_gib = max(self.peak_gib, metrics.get("gpu/peak_memory_gib", 0.0))
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")


class Parts(TrainerCallback):
    """Writes where this process' time went."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Append a line."""
        row = {name: value for name, value in (logs or {}).items() if name.startswith("seconds/")}
        if row:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **row}) + "\n")


class Kernels(TrainerCallback):
    """Writes which kernels a GPU spent one step in, and how long it was busy."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._profiler: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin, at the step to look at."""
        if state.global_step == PROFILED - 1:
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profiler.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write what was seen."""
        if self._profiler is None:
            return
        torch.cuda.synchronize()
        self._profiler.__exit__(None, None, None)
        self._file.write_text(json.dumps(summarise_kernels(self._profiler), indent=1), encoding="utf-8")
        self._profiler = None


def endless(make: Any, watchers: Sequence[TrainerCallback], made: list[Any]) -> Any:
    """Wrap the function that makes trainers: completions get their full length, and watchers see each step."""

    def assemble(*arguments: Any, **named: Any) -> Any:
        trainer = make(*arguments, **named)
        made.append(trainer)
        trainers.never_ends(trainer)
        for watcher in watchers:
            trainer.add_callback(watcher)
        return trainer

    return assemble


def random_model(size: str, tokens: int, device: str) -> Any:
    """A function that makes a random model where others are loaded."""

    def load(*_: Any, **__: Any) -> tuple[Any, Any]:
        processor = world.build_processor(tokens)
        return world.build_model(size, processor, device), processor

    return load


def exchange_s(trainer: Any, times: int = 5) -> float | None:
    """Seconds in which the processes add up as many bytes as the gradients have, at best; ``None``: there is one."""
    from torch import distributed

    if trainer.accelerator.num_processes == 1:
        return None
    numbers = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    gradients, found = torch.ones(numbers, device=trainer.accelerator.device), []
    for _ in range(times):
        trainer.accelerator.wait_for_everyone()
        started = time.perf_counter()
        distributed.all_reduce(gradients)
        float(gradients[0])  # a GPU is waited for
        found.append(time.perf_counter() - started)
    return round(min(found), 5)


def rehearse_deepspeed_on_cpu() -> None:
    """Let accelerate, which knows DeepSpeed on accelerators only, take gloo: a CPU rehearses what GPUs will do."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


def main(path: Path) -> int:
    """Train; returns the exit status."""
    spec, rank = Spec.model_validate_json(path.read_text(encoding="utf-8")), int(os.environ.get("RANK", "0"))
    if spec.device == "cpu" and uses_deepspeed():
        rehearse_deepspeed_on_cpu()
    (spec.out / f"pid-{rank}").write_text(str(os.getpid()), encoding="utf-8")
    config = TrainSpeakerConfig.model_validate(spec.config)
    rewards.parse_or_none = _parse
    made: list[Any] = []
    watchers: list[TrainerCallback] = [Parts(spec.out / f"parts-{rank}.jsonl")]
    if spec.profile and torch.cuda.is_available():
        watchers.append(Kernels(spec.out / f"kernels-{rank}.json"))
    session.assemble_trainer = endless(session.assemble_trainer, watchers, made)
    if spec.size:
        tokens = config.model.max_pixels // world.PIXELS_PER_TOKEN**2
        loading.load_model = random_model(spec.size, tokens, spec.device)
    output = spec.out / f"output-{rank}"
    output.mkdir(parents=True, exist_ok=True)
    runtime = Runtime.model_validate({"device": spec.device, "num_workers": 4})
    listener = HttpModel(spec.url) if spec.url else None
    started = time.time()
    steps = Steps(spec.out / "steps.jsonl")
    reporter = steps if rank == 0 else NullReporter()
    rows = Dataset.from_list(spec.rows)
    with trainers.quiet():
        summary = train_on_rows(rows, listener, output, spec.work, config, spec.photos, runtime, reporter)
    facts: dict[str, Any] = {"rank": rank, "started": started, "ended": time.time(), "steps": summary["steps"]}
    facts["plan"] = json.loads((spec.work / PLAN).read_text(encoding="utf-8"))
    if torch.cuda.is_available():
        facts["peak_gib"] = round(max(steps.peak_gib, torch.cuda.max_memory_allocated() / 2**30), 2)
        facts["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        facts["gpu"] = torch.cuda.get_device_name()
    if not uses_deepspeed():
        facts["exchange_s"] = exchange_s(made[0])
    (spec.out / f"facts-{rank}.json").write_text(json.dumps(facts), encoding="utf-8")
    leave_process_group()
    return 0


if __name__ == "__main__":
    end_process(main(Path(sys.argv[1])))
