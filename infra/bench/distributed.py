"""Training on several GPUs, as the product starts it: ``python -m infra.bench.distributed ddp:1 ddp zero2 --size 7b``.

A part is a run of ``accelerate launch`` with random weights of real size and a time limit of its own; what was measured
is written after every part. Its name says what runs:

| name | what runs |
|---|---|
| ddp, zero2, zero3 | the strategy on all GPUs, with as many prompts on each |
| zero2:1 | it on one GPU, or any other number |
| ...+listener | a model service judges, on the GPU after the training's; how long training waits for it |
| ...+kill | a process is killed with SIGKILL in the middle of a step, and the same command goes on |
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx

from infra.bench import trainers, world
from infra.bench.trainers import Shape
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.grpo import DistributedConfig, Strategy
from lewis_core.config.training import ListenerRewardConfig, RewardsConfig, TrainSpeakerConfig
from lewis_core.errors import LewisError, ProcessError
from lewis_core.training.journal import read_rows
from tasks.processes import Process
from tasks.training_launch import Machine, accelerate_command

PART = re.compile(r"(?P<strategy>ddp|zero2|zero3)(:(?P<gpus>[1-9]\d*))?(?P<listener>\+listener)?(?P<kill>\+kill)?")
WARM = 2
"""Steps that are left out: kernels are chosen, CUDA graphs captured."""
KILL_AFTER, SAVE_EVERY = 3, 2
"""Steps after which a process is killed, and between checkpoints."""


@dataclass(frozen=True)
class Part:
    """A training that is to be measured."""

    name: str
    strategy: Strategy
    gpus: int
    """Processes of the training; they take the first GPUs."""
    asks_listener: bool
    is_killed: bool

    @classmethod
    def parse(cls, text: str, gpus: int) -> "Part":
        """Read a part's name.

        Args:
            text: The name.
            gpus: How many there are.

        Raises:
            ValueError: If there is no such part, or a GPU is wanting.
        """
        found = PART.fullmatch(text)
        if found is None:
            raise ValueError(f"there is no part {text}; parts are ddp, zero2 or zero3[:GPUS][+listener][+kill]")
        asks = found["listener"] is not None
        wanted = int(found["gpus"] or gpus - asks)
        if wanted < 1 or wanted + asks > gpus:
            raise ValueError(f"{text} needs {max(1, wanted) + asks} GPUs, and --gpus says {gpus}")
        return cls(text, cast("Strategy", found["strategy"]), wanted, asks, found["kill"] is not None)

    @property
    def folder(self) -> str:
        """Name of its folder and its log."""
        return re.sub(r"\W", "-", self.name)


class Bench:
    """Runs parts and keeps what they say.

    Args:
        folder: Model, photos, working files.
        options: The command line.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder, self._options = folder, options
        self._started = time.monotonic()
        self._photos = folder / "photos"
        self.results: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(options).items()}}
        names = world.write_photos(self._photos, options.prompts * options.gpus, options.visual_tokens)
        self._names, self._model = names, folder / "model"

    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return float(self._options.budget_s) - (time.monotonic() - self._started)

    def save(self) -> None:
        """Write all results so far."""
        text = json.dumps(self.results, indent=1)
        (self._options.out / f"distributed-{self._options.size}.json").write_text(text + "\n", encoding="utf-8")

    def build(self) -> None:
        """Make the model, in a process of its own, so that its memory is free afterwards."""
        started = time.monotonic()
        code = (
            "import sys; from pathlib import Path; from infra.bench import world\n"
            "processor = world.build_processor(int(sys.argv[4])); folder = Path(sys.argv[2])\n"
            "model = world.build_model(sys.argv[1], processor, sys.argv[3])\n"
            "model.save_pretrained(folder); processor.save_pretrained(folder)"
        )
        arguments = [self._options.size, str(self._model), self._options.device, str(self._options.visual_tokens)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=max(10.0, self.left_s()))
        self.results["build_s"] = round(time.monotonic() - started, 1)

    def config(self, part: Part) -> TrainSpeakerConfig:
        """Settings of a part."""
        options = self._options
        shape = Shape(
            options.visual_tokens, options.prompts * part.gpus, options.group, options.new_tokens, options.rank,
            beta=0.04,
        )  # fmt: skip
        steps = options.zero3_steps if part.strategy == "zero3" else options.steps
        weight, requests = (1.0, options.requests) if part.asks_listener else (0.0, 1)
        values = trainers.settings(shape).model_dump() | {
            "model": self.model,
            "listener": self.model,
            "num_processes": part.gpus,
            "distributed": DistributedConfig(strategy=part.strategy),
            "max_steps": KILL_AFTER + 3 if part.is_killed else steps,
            "rewards": RewardsConfig(listener=ListenerRewardConfig(weight=weight, requests=requests)),
            "warmup_steps": 0,
            "watchdogs": {"action": "off"},  # random text is all that they warn of
        }
        if part.is_killed:
            values["save_steps"] = SAVE_EVERY
        if options.checkpointing:
            values["gradient_checkpointing"] = True
        return TrainSpeakerConfig.model_validate(values)

    @property
    def model(self) -> ModelRef:
        """What is trained, and judges."""
        pixels = self._options.visual_tokens * world.PIXELS_PER_TOKEN**2
        return ModelRef(path=str(self._model), prompts="concise", max_pixels=pixels, min_pixels=784)

    def run(self, part: Part) -> None:
        """Run a part and keep its result; a failure is a result too."""
        if self.left_s() < self._options.part_s / 2:
            self.results[part.name] = {"left_out": f"{self.left_s():.0f} s were left"}
            return
        try:
            with self._service(part.gpus) if part.asks_listener else contextlib.nullcontext() as url:
                self.results[part.name] = self._kill(part, url) if part.is_killed else self._train(part, url)
        except (LewisError, OSError, RuntimeError, ValueError) as error:
            self.results[part.name] = {"failed": f"{type(error).__name__}: {error}"}
        self.save()
        sys.stdout.write(f"{part.name}: {json.dumps(self.results[part.name])}\n")
        sys.stdout.flush()

    def _kill(self, part: Part, url: str | None) -> dict[str, Any]:
        """Kill the last process in the middle of a step, and start the same command again."""
        place = self._folder / part.folder
        process = self._start(part, url)
        try:
            while process.is_alive and len(read_rows(place / "steps.jsonl")) < KILL_AFTER:
                time.sleep(0.05)
            victim = int((place / f"pid-{part.gpus - 1}").read_text(encoding="utf-8"))
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            status = process.wait(self._options.part_s)
            ended_s = time.monotonic() - killed
        finally:
            process.stop()
        again = self._train(part, url)
        kept = [row["step"] for row in read_rows(place / "output-0" / "metrics.jsonl")]
        return again | {
            "launcher_status": status,
            "others_ended_after_s": round(ended_s, 1),
            "steps_after_resuming": [row["step"] for row in read_rows(place / "steps.jsonl")][KILL_AFTER:],
            "steps_in_the_journal": kept,
            "is_whole": kept == list(range(1, KILL_AFTER + 4)),
        }

    def _train(self, part: Part, url: str | None) -> dict[str, Any]:
        """Run a training to its end, and read what it says."""
        started, place, config = time.monotonic(), self._folder / part.folder, self.config(part)
        process = self._start(part, url)
        try:
            status = process.wait(min(self._options.part_s, max(1.0, self.left_s())))
        except ProcessError as error:
            status = error.code
        finally:
            process.stop()
        log = (place / "log").read_text(encoding="utf-8", errors="replace")
        (self._options.out / f"{part.folder}.log").write_text(log[-200_000:], encoding="utf-8")
        steps = read_rows(place / "steps.jsonl")
        facts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(place.glob("facts-*.json"))]
        timed = steps[WARM:] if len(steps) > WARM else steps[1:]
        found: dict[str, Any] = {"status": status, "wall_s": round(time.monotonic() - started, 1), "facts": facts}
        found["step_s"] = [round(row["step_s"], 3) for row in steps]
        if timed:
            step_s = statistics.median(row["step_s"] for row in timed)
            found["samples_per_s"] = round(config.prompts_per_step * config.num_generations / step_s, 3)
            found["samples_per_s_a_gpu"] = round(found["samples_per_s"] / part.gpus, 3)
            waits = [row.get("seconds/listener_wait", 0.0) / row["step_s"] for row in timed]
            found["listener_wait_share"] = round(statistics.median(waits), 4)
            files = sorted(place.glob("parts-*.jsonl"))
            found["parts"] = [_median_parts(read_rows(file)[-len(timed) :]) for file in files]
        for file in sorted(place.glob("kernels-*.json")):
            (self._options.out / f"{part.folder}-{file.name}").write_bytes(file.read_bytes())
        if status:
            found["log_tail"] = log[-1500:]
        return found

    def _start(self, part: Part, url: str | None) -> Process:
        place, config = self._folder / part.folder, self.config(part)
        place.mkdir(exist_ok=True)
        shape = Shape(self._options.visual_tokens, config.prompts_per_step, config.num_generations, 1)
        spec = {
            "config": config.model_dump(mode="json"),
            "rows": trainers.make_rows(shape, self._names),
            "photos": str(self._photos),
            "work": str(place / "work"),
            "out": str(place),
            "device": self._options.device,
            "url": url,
            "size": self._options.size if self._options.in_process else None,
            "profile": self._options.profile,
        }
        (place / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        is_gpu = self._options.device == "cuda"
        entry = ["infra.bench.distributed_worker", str(place / "spec.json")]
        runtime = Runtime.model_validate({"device": self._options.device, "torch_threads": None if is_gpu else 1})
        command = accelerate_command(config, runtime, entry, Machine(), has_gpu=is_gpu)
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(part.gpus)))} if is_gpu else {}
        return Process(part.folder, command, place / "log", env=visible, is_scoped=False)

    @contextlib.contextmanager
    def _service(self, gpu: int) -> Iterator[str]:
        """A model service on a GPU of its own."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "lewis_core.listener", "--model", self.model.model_dump_json()]
        command += ["--image-root", str(self._photos), "--port", str(port), "--device", self._options.device]
        visible = {"CUDA_VISIBLE_DEVICES": str(gpu)} if self._options.device == "cuda" else {}
        process = Process("service", command, self._options.out / "service.log", env=visible, is_scoped=False)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(int(self._options.part_s * 5)):
                if not process.is_alive:
                    raise RuntimeError("the model service ended while it was starting; see service.log")
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(url + "/readyz", trust_env=False).status_code == httpx.codes.OK:
                        break
                time.sleep(0.2)
            yield url
        finally:
            process.stop()


def _median_parts(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each part of a step, in one process."""
    names = sorted({name for row in rows for name in row if name.startswith("seconds/")})
    return {name[8:]: round(statistics.median(row.get(name, 0.0) for row in rows), 3) for name in names}


def main(arguments: Sequence[str]) -> int:
    """Measure; returns 0 if every part ran."""
    parser = argparse.ArgumentParser(prog="python -m infra.bench.distributed", description=__doc__)
    parser.add_argument("parts", nargs="+", help="one after the other: ddp, zero2 or zero3[:GPUS][+listener][+kill]")
    parser.add_argument("--size", choices=tuple(world.SIZES), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--gpus", type=int, default=2, help="that there are")
    parser.add_argument("--prompts", type=int, default=4, help="on each GPU, of a step")
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--visual-tokens", type=int, default=256, help="a square")
    parser.add_argument("--rank", type=int, default=64, help="of LoRA")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--zero3-steps", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2, help="to the listener, while completions are written")
    parser.add_argument("--budget-s", type=float, default=600.0)
    parser.add_argument("--part-s", type=float, default=150.0, help="longest time of a part")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--in-process", action="store_true", help="every process makes the model: nothing is on disk")
    parser.add_argument("--profile", action="store_true", help="also the kernels of one step of each GPU")
    parser.add_argument("--checkpointing", action="store_true", help="activations are computed again")
    options = parser.parse_args(arguments)
    try:
        parts = [Part.parse(text, options.gpus) for text in options.parts]
    except ValueError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    options.out = options.out.absolute()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), options)
        if not options.in_process or any(part.asks_listener for part in parts):
            bench.build()
        for part in parts:
            bench.run(part)
        bench.save()
    wanted = {name: found for name, found in bench.results.items() if name in options.parts}
    return int(any("failed" in found or found.get("status") for found in wanted.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
