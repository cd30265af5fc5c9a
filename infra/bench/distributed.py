"""Training on several GPUs, as the product starts it: ``python -m infra.bench.distributed one two zero2 --size 7b``.

Every part is a run of ``accelerate launch`` with random weights of real size, each with a time limit of its own; what
was measured is written after every part.

| part | what runs |
|---|---|
| one | one GPU |
| two | data parallel on all GPUs, as many prompts on each |
| two:1000 | the same; gradients are exchanged in parts of 1000 MiB, or any other number, instead of 25 |
| zero2, zero3 | the same under DeepSpeed |
| zero2_one | ZeRO-2 on one GPU: what DeepSpeed costs without an exchange |
| listener | training on the first GPU, a model service on the second; how long training waits for it |
| kill | data parallel; a process is killed with SIGKILL, and the same command goes on |
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
from typing import Any

import httpx

from infra.bench import trainers, world
from infra.bench.trainers import Shape
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.grpo import DistributedConfig
from lewis_core.config.training import ListenerRewardConfig, RewardsConfig, TrainSpeakerConfig
from lewis_core.errors import LewisError, ProcessError
from lewis_core.training.journal import read_rows
from tasks.processes import Process
from tasks.training_launch import Machine, accelerate_command

PARTS = ("one", "two", "zero2_one", "zero2", "zero3", "listener", "kill")
WARM = 2
"""Steps that are left out: kernels are chosen, CUDA graphs captured."""
KILL_AFTER, SAVE_EVERY = 3, 2
"""Steps after which a process is killed, and between checkpoints, in the part ``kill``."""


@dataclass(frozen=True)
class Launch:
    """A training that is to be started."""

    name: str
    """Of its folder and its log."""
    config: TrainSpeakerConfig
    gpus: tuple[int, ...] | None = None
    """GPUs that it sees; None for all."""
    url: str | None = None
    """Address of a listener; None if nobody is asked."""
    bucket_mib: int | None = None
    """Size of an exchange of gradients, in MiB; None for what training chooses."""


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

    def config(self, processes: int, **changes: Any) -> TrainSpeakerConfig:
        """Settings of a part."""
        options = self._options
        shape = Shape(
            options.visual_tokens, options.prompts * processes, options.group, options.new_tokens, options.rank,
            beta=0.04,
        )  # fmt: skip
        pixels = options.visual_tokens * world.PIXELS_PER_TOKEN**2
        model = ModelRef(path=str(self._model), prompts="concise", max_pixels=pixels, min_pixels=784)
        values = trainers.settings(shape).model_dump() | {
            "model": model,
            "listener": model,
            "num_processes": processes,
            "max_steps": options.steps,
            "rewards": RewardsConfig(listener=ListenerRewardConfig(weight=0.0)),
            "warmup_steps": 0,
            "watchdogs": {"action": "off"},  # random text is all that they warn of
        }
        return TrainSpeakerConfig.model_validate(values | changes)

    def run(self, part: str) -> None:
        """Run a part and keep its result; a failure is a result too."""
        if self.left_s() < self._options.part_s / 2:
            self.results[part] = {"left_out": f"{self.left_s():.0f} s were left"}
            return
        name, _, bucket_mib = part.partition(":")
        try:
            self.results[part] = getattr(self, f"_{name}")(*([int(bucket_mib)] if bucket_mib else []))
        except (LewisError, OSError, RuntimeError, ValueError) as error:
            self.results[part] = {"failed": f"{type(error).__name__}: {error}"}
        self.save()
        sys.stdout.write(f"{part}: {json.dumps(self.results[part])}\n")
        sys.stdout.flush()

    def _one(self) -> dict[str, Any]:
        return self._train(Launch("one", self.config(1), gpus=(0,)))

    def _two(self, bucket_mib: int | None = None) -> dict[str, Any]:
        name = f"two-{bucket_mib}" if bucket_mib else "two"
        return self._train(Launch(name, self.config(self._options.gpus), bucket_mib=bucket_mib))

    def _zero2_one(self) -> dict[str, Any]:
        config = self.config(1, distributed=DistributedConfig(strategy="zero2"))
        return self._train(Launch("zero2_one", config, gpus=(0,)))

    def _zero2(self) -> dict[str, Any]:
        config = self.config(self._options.gpus, distributed=DistributedConfig(strategy="zero2"))
        return self._train(Launch("zero2", config))

    def _zero3(self) -> dict[str, Any]:
        changes = {"distributed": DistributedConfig(strategy="zero3"), "max_steps": self._options.zero3_steps}
        if self._options.checkpointing:
            changes["gradient_checkpointing"] = True
        return self._train(Launch("zero3", self.config(self._options.gpus, **changes)))

    def _listener(self) -> dict[str, Any]:
        rewards = RewardsConfig(listener=ListenerRewardConfig(requests=self._options.requests))
        with self._service(gpu=1) as url:
            found = self._train(Launch("listener", self.config(1, rewards=rewards), gpus=(0,), url=url))
        steps = read_rows(self._folder / "listener" / "steps.jsonl")[WARM:]
        waits = [row["seconds/listener_wait"] / row["step_s"] for row in steps]
        found["listener_wait_share"] = round(statistics.median(waits), 4) if waits else None
        return found

    def _kill(self) -> dict[str, Any]:
        """Kill the last process in the middle of a step, and start the same command again."""
        changes = {"gradient_checkpointing": True} if self._options.checkpointing else {}
        config = self.config(self._options.gpus, save_steps=SAVE_EVERY, max_steps=KILL_AFTER + 3, **changes)
        launch, place = Launch("kill", config), self._folder / "kill"
        process = self._start(launch)
        try:
            while process.is_alive and len(read_rows(place / "steps.jsonl")) < KILL_AFTER:
                time.sleep(0.05)
            victim = int((place / f"pid-{self._options.gpus - 1}").read_text(encoding="utf-8"))
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            status = process.wait(self._options.part_s)
            ended_s = time.monotonic() - killed
        finally:
            process.stop()
        again = self._train(launch)
        resumed = [row["step"] for row in read_rows(place / "steps.jsonl")][KILL_AFTER:]
        kept = [row["step"] for row in read_rows(place / "output-0" / "metrics.jsonl")]
        return {
            "launcher_status": status,
            "others_ended_after_s": round(ended_s, 1),
            "steps_after_resuming": resumed,
            "steps_in_the_journal": kept,
            "is_whole": kept == list(range(1, config.max_steps + 1)),
            "facts": again["facts"],
        }

    def _train(self, launch: Launch) -> dict[str, Any]:
        """Run a training to its end, and read what it says."""
        started, place, config = time.monotonic(), self._folder / launch.name, launch.config
        process = self._start(launch)
        try:
            status = process.wait(min(self._options.part_s, max(1.0, self.left_s())))
        except ProcessError as error:
            status = error.code
        finally:
            process.stop()
        log = (place / "log").read_text(encoding="utf-8", errors="replace")
        (self._options.out / f"{launch.name}.log").write_text(log[-200_000:], encoding="utf-8")
        steps = read_rows(place / "steps.jsonl")
        facts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(place.glob("facts-*.json"))]
        timed = steps[WARM:] if len(steps) > WARM else steps[1:]
        found: dict[str, Any] = {"status": status, "wall_s": round(time.monotonic() - started, 1), "facts": facts}
        found["step_s"] = [round(row["step_s"], 3) for row in steps]
        if timed:
            step_s = statistics.median(row["step_s"] for row in timed)
            found["samples_per_s"] = round(config.prompts_per_step * config.num_generations / step_s, 3)
            found["samples_per_s_a_gpu"] = round(found["samples_per_s"] / config.num_processes, 3)
            files = sorted(place.glob("parts-*.jsonl"))
            found["parts"] = [_median_parts(read_rows(file)[-len(timed) :]) for file in files]
        for file in sorted(place.glob("kernels-*.json")):
            (self._options.out / f"{launch.name}-{file.name}").write_bytes(file.read_bytes())
        if status:
            found["log_tail"] = log[-1500:]
        return found

    def _start(self, launch: Launch) -> Process:
        place, config = self._folder / launch.name, launch.config
        place.mkdir(exist_ok=True)
        shape = Shape(self._options.visual_tokens, config.prompts_per_step, config.num_generations, 1)
        spec = {
            "config": config.model_dump(mode="json"),
            "rows": trainers.make_rows(shape, self._names),
            "photos": str(self._photos),
            "work": str(place / "work"),
            "out": str(place),
            "device": self._options.device,
            "url": launch.url,
            "size": self._options.size if self._options.in_process else None,
            "profile": self._options.profile,
            "bucket_mib": launch.bucket_mib,
        }
        (place / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        is_gpu = self._options.device == "cuda"
        entry = ["infra.bench.distributed_worker", str(place / "spec.json")]
        runtime = Runtime.model_validate({"device": self._options.device, "torch_threads": None if is_gpu else 1})
        command = accelerate_command(config, runtime, entry, Machine(), has_gpu=is_gpu)
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, launch.gpus))} if launch.gpus and is_gpu else {}
        return Process(launch.name, command, place / "log", env=visible, is_scoped=False)

    @contextlib.contextmanager
    def _service(self, gpu: int) -> Iterator[str]:
        """A model service on a GPU of its own."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "lewis_core.listener", "--model", self.config(1).model.model_dump_json()]
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
    parser.add_argument("parts", nargs="+", help=f"{', '.join(PARTS)}, two:MIB; one after the other")
    parser.add_argument("--size", choices=tuple(world.SIZES), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--gpus", type=int, default=2, help="processes of the parts with several")
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
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing in kill and zero3")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if not re.fullmatch(rf"{'|'.join(PARTS)}|two:[1-9]\d*", part)]:
        parser.error(f"there is no part {', '.join(unknown)}")
    options.out.mkdir(parents=True, exist_ok=True)
    options.out = options.out.absolute()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), options)
        if not options.in_process or "listener" in options.parts:
            bench.build()
        for part in options.parts:
            bench.run(part)
        bench.save()
    wanted = {name: found for name, found in bench.results.items() if name in options.parts}
    return int(any("failed" in found or found.get("status") for found in wanted.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
