"""A training step of the pocket recipe on the CPU: stock TRL and ours by turns, the same rows, the same listener."""

import json
import statistics
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets import Image as ImageFeature
from trl import GRPOTrainer

from infra.bench.recorder import Recorder
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings, RewardsConfig, TrainSpeakerConfig
from lewis_core.models.images import ImageFolder
from lewis_core.models.loading import load_model
from lewis_core.models.vlm import open_model
from lewis_core.pocket.config import PocketWorldConfig
from lewis_core.pocket.photos import render_photos
from lewis_core.prompts import CONCISE
from lewis_core.reporting import NullReporter
from lewis_core.rewards.trl import build_rewards
from lewis_core.seeding import stable_rng
from lewis_core.training.assemble import adapter_config, assemble_trainer, training_arguments
from lewis_core.training.memory import Plan

PIXELS = 12_544
CANDIDATES = 5


def run(recorder: Recorder, folder: Path, steps: int, is_small: bool) -> None:
    """Train both ways, a step each in turn, and write down seconds and rewards.

    Args:
        recorder: Takes the times.
        folder: Receives photos and work files.
        steps: Updates of each arm; the first is not counted.
        is_small: A step of 2 x 4 completions, for tests; else 8 x 8 as in ``deployments/settings/pocket.toml``.
    """
    (folder / "photos").mkdir()
    world = PocketWorldConfig(categories=("mug", "bag"), concepts_per_category=6, train_photos=2, test_photos=2)
    render_photos(folder / "photos", world, Runtime(), NullReporter())
    rows, config, runtime = make_rows(folder / "photos"), settings(is_small, steps), Runtime(device="cpu")
    listener = open_model(config.listener, runtime, folder / "photos")
    arms = {
        name: Stepper(make(rows, config, folder, listener, runtime))
        for name, make in (("ours", _ours), ("stock TRL", _stock))
    }
    for step in range(steps):
        for arm in list(arms.values()) if step % 2 == 0 else reversed(list(arms.values())):
            arm.step()
    for name, arm in arms.items():
        times = arm.seconds[1:] or arm.seconds
        recorder.add(
            "pocket step",
            name,
            statistics.median(times),
            times=[round(t, 3) for t in arm.seconds],
            processor_s=round(statistics.median(arm.processor[1:] or arm.processor), 3),
            rewards=[round(r, 4) for r in arm.rewards],
            completion_tokens=round(statistics.fmean(arm.lengths), 1),
        )


def make_rows(photos: Path) -> list[dict[str, Any]]:
    """A row for each training photo: its concept's test photo among those of look-alikes."""
    facts = json.loads((photos / "facts.json").read_text(encoding="utf-8"))
    test: dict[str, dict[str, str]] = {}
    for path, fact in sorted(facts.items()):
        if fact["split"] == "test":
            test.setdefault(fact["category"], {}).setdefault(fact["concept"], path)
    rows = []
    for path, fact in sorted(facts.items()):
        if fact["split"] != "train":
            continue
        rng, known = stable_rng(0, path), test[fact["category"]]
        others = [known[concept] for concept in sorted(known) if concept != fact["concept"]]
        target = int(rng.integers(CANDIDATES))
        candidates = [others[index] for index in rng.permutation(len(others))[: CANDIDATES - 1]]
        candidates.insert(target, known[fact["concept"]])
        rows.append(
            {
                "prompt": [{"role": "user", "content": CONCISE.speaker(fact["category"])}],
                "query": path,
                "candidates": candidates,
                "target_index": target,
                "category_word": fact["category"],
            }
        )
    return rows


def settings(is_small: bool, steps: int) -> TrainSpeakerConfig:
    """The recipe of ``deployments/settings/pocket.toml``."""
    model = ModelRef(path="pocket:base", prompts="concise", dtype="float32", max_pixels=PIXELS, min_pixels=PIXELS)
    rewards = RewardsConfig.model_validate(
        {"listener": {"shape": "grounded", "requests": 0}, "length": {"min_words": 16}, "repetition": {"weight": 1.0}}
    )
    return TrainSpeakerConfig(
        model=model,
        listener=model,
        lora=LoraSettings(r=16, alpha=32),
        rewards=rewards,
        max_steps=max(steps, 60),
        prompts_per_step=2 if is_small else 8,
        num_generations=4 if is_small else 8,
        max_new_tokens=16 if is_small else 96,
        learning_rate=1e-3,
        beta=0.04,
        gradient_checkpointing=False,
        save_steps=10_000,
    )


def _ours(rows: list[Any], config: TrainSpeakerConfig, folder: Path, listener: Any, runtime: Runtime) -> Any:
    functions, weights = build_rewards(config.rewards, listener)
    model, processor = load_model(config.model, runtime, trainable=True)
    table, photos, work = Dataset.from_list(rows), ImageFolder(folder / "photos"), folder / "ours"
    return assemble_trainer(model, processor, table, photos, functions, weights, work, config, runtime)


def _stock(rows: list[Any], config: TrainSpeakerConfig, folder: Path, listener: Any, runtime: Runtime) -> Any:
    functions, weights = build_rewards(config.rewards, listener)
    model, processor = load_model(config.model.model_copy(update={"engine": "plain"}), runtime, trainable=True)
    table = Dataset.from_list([row | {"image": str(folder / "photos" / row["query"])} for row in rows])
    return GRPOTrainer(
        model=model,
        reward_funcs=list(functions),
        args=training_arguments(
            config, Plan(config.prompts_per_step, checkpointing=False), weights, folder / "stock", "cpu"
        ),
        train_dataset=table.cast_column("image", ImageFeature()),
        processing_class=processor,
        peft_config=adapter_config(model, config.lora),
    )


class Stepper:
    """Takes a trainer's steps one at a time, so that two can take turns.

    Args:
        trainer: A GRPO trainer of one process and one pass a step.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
        self._batches = iter(trainer.get_train_dataloader())
        self.seconds: list[float] = []
        self.processor: list[float] = []  # seconds of all threads, which other programs on the machine hardly change
        self.rewards: list[float] = []
        self.lengths: list[float] = []

    def step(self) -> None:
        """Rollouts, rewards, reference, update."""
        trainer = self._trainer
        started, worked = time.perf_counter(), time.process_time()
        try:
            batch = next(self._batches)
        except StopIteration:
            self._batches = iter(trainer.get_train_dataloader())
            batch = next(self._batches)
        trainer.training_step(trainer.model, batch, None)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model.zero_grad()
        trainer.state.global_step += 1
        self.seconds.append(time.perf_counter() - started)
        self.processor.append(time.process_time() - worked)
        metrics = trainer._metrics["train"]
        self.rewards.append(float(metrics["reward"][-1]))
        self.lengths.append(float(metrics["completions/mean_length"][-1]))
