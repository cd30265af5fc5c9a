"""Training of a pocket vision-language model from ground truth.

Phase one trains the vision tower alone through attribute heads (:mod:`.probe`), phase two trains
everything on the mixture of exercises (:mod:`.encoding`). Both run for a set time.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lewis_core.pocket.training.assets import build_model_config
from lewis_core.pocket.training.config import VlmTrainingConfig
from lewis_core.pocket.training.encoding import (
    GROUPS,
    LOSS_WEIGHTS,
    TASK_NAMES,
    ExerciseEncoder,
    StepBatch,
)
from lewis_core.pocket.training.measure import Examiner
from lewis_core.pocket.training.probe import ATTRIBUTES, HIDDEN, AttributeProbe
from lewis_core.pocket.training.stepper import GraphStepper, augment
from lewis_core.pocket.training.stream import DevicePool, Feeder, stream_facts
from lewis_core.pocket.training.twin import QwenTwin

logger = logging.getLogger(__name__)
NUM_VALIDATION = 1024
LOG_EVERY = 500
FINAL_RATE_FRAC = 0.02


class VlmTrainer:
    """One model in training: its weights, its photos, its exercises, its log."""

    def __init__(
        self,
        config: VlmTrainingConfig,
        encoder: ExerciseEncoder,
        photos: DevicePool,
        feeder: Feeder,
    ) -> None:
        """Build random weights on the photos' device."""
        torch.manual_seed(config.seed)
        self.config, self.encoder, self.photos, self.feeder = config, encoder, photos, feeder
        self.device = photos.device
        model_config = build_model_config(encoder.tokenizer.get_vocab(), config.size)
        self.model = QwenTwin(model_config).to(self.device)
        self.probe = AttributeProbe(model_config["vision_config"]["hidden_size"]).to(self.device)
        self.vision = list(self.model.model.visual.parameters())
        self.history: list[dict[str, float]] = []

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def see(self) -> None:
        """Train the vision tower through the attribute heads."""
        config, chunk = self.config, self.photos.pool.config.chunk

        def loss() -> tuple[Tensor, Tensor]:
            draw = torch.rand(config.images_per_see_step, device=self.device)
            indices = (draw * self.photos.num_trainable).long() + chunk
            with self._autocast():
                visual = self.model.see(augment(self.photos.images(indices)))
            value = self.probe.loss(visual, self.photos.labels.index_select(0, indices))
            return value, value

        stepper = GraphStepper(loss, [*self.vision, *self.probe.parameters()], weight_decay=config.weight_decay)
        decay = 1 - config.learn_vision_rate / config.see_rate

        def schedule(done: float) -> float:
            return 1 - decay * done

        def prepare(step: int) -> None:
            if step % 100 == 0:
                self._synchronise()
                self.photos.load_ready()
                if self.photos.num_loaded == self.photos.pool.num_chunks:
                    self.feeder.open(self.photos.pool.num_total)
            if step % 1000 == 0:
                logger.info("see: step %d, loss %.3f", step, float(stepper.log))

        steps = self._run(stepper, config.see_seconds, config.see_rate, schedule, prepare, 0.0)
        self._note("see", steps, config.see_seconds, self._read_probe())

    @torch.no_grad()
    def _read_probe(self) -> dict[str, float]:
        """Return the attribute heads' accuracy on validation photos."""
        count = min(NUM_VALIDATION, self.photos.pool.config.chunk)
        labels, logits = self.photos.labels[:count], []
        with self._autocast():
            for start in range(0, count, 256):
                rows = torch.arange(start, min(start + 256, count), device=self.device)
                logits.append(self.probe(self.model.see(self.photos.images(rows))))
        right, shown = torch.cat(logits).argmax(-1) == labels, labels != HIDDEN
        return {
            name: float(right[:, column][shown[:, column]].float().mean()) for column, name in enumerate(ATTRIBUTES)
        }

    def learn(self, save: Callable[[], None]) -> None:
        """Train everything on all exercises."""
        config = self.config
        self.photos.wait_for(self.photos.pool.num_chunks)
        self.feeder.open(self.photos.pool.num_total)
        held = to_device(self.feeder.get(), self.device)
        examiner = self._examiner()
        totals: list[Tensor] = []

        def loss() -> tuple[Tensor, Tensor]:
            return self._exercise_loss(held)

        parameters = [*self.model.parameters(), *self.probe.parameters()]
        stepper = GraphStepper(loss, parameters, self.vision, config.weight_decay)
        waited = 0.0

        def prepare(step: int) -> None:
            nonlocal waited
            start = time.monotonic()
            batch = self.feeder.get()
            waited += time.monotonic() - start
            copy_batch(batch, held)
            if step % 20 == 1:
                totals.append(stepper.log.clone())
            if step % LOG_EVERY == 0 and totals:
                self._log_losses(step, totals, waited)
                totals.clear()

        ratio = config.learn_vision_rate / config.learn_rate
        steps = self._run(stepper, config.learn_seconds, config.learn_rate, cosine, prepare, ratio)
        save()
        results = examiner.examine(self.model)
        self._note("learn", steps, config.learn_seconds, {**results, "waited_s": waited})
        save()

    def _exercise_loss(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of a step, and the losses by task with the probe's last."""
        indices: Any = batch.image_indices
        logs = torch.zeros(len(TASK_NAMES) + 1, device=self.device)
        total = torch.zeros((), device=self.device)
        with self._autocast():
            visual = self.model.see(augment(self.photos.images(indices)))
            for name, group in GROUPS.items():
                rows: Any = batch.groups[name]
                seen = visual.index_select(0, rows.images) if group.has_image else None
                hidden = self.model.read(rows.ids, seen).flatten(0, 1)
                logits = self.model.logits(hidden.index_select(0, rows.positions))
                losses = F.cross_entropy(logits.float(), rows.targets, reduction="none")
                losses = losses * rows.weights
                total = total + losses.sum()
                logs = logs.index_add(0, rows.tasks, losses.detach())
        probe = self.probe.loss(visual, self.photos.labels.index_select(0, indices))
        logs[-1] = probe.detach()
        return total + self.config.probe_weight * probe, logs

    def _run(
        self,
        stepper: GraphStepper,
        seconds: float,
        rate: float,
        schedule: Callable[[float], float],
        prepare: Callable[[int], None],
        vision_ratio: float,
    ) -> int:
        """Step until the time is up; returns the number of steps."""
        stepper.record()
        start, step = time.monotonic(), 0
        while (done := (time.monotonic() - start) / seconds) < 1:
            step += 1
            prepare(step)
            now = rate * min(1, step / self.config.warmup_steps) * schedule(done)
            stepper.set_rates(now, now * vision_ratio)
            stepper.step()
        self._synchronise()
        return step

    def _synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _examiner(self) -> Examiner:
        pool = self.photos.pool
        count = min(NUM_VALIDATION, pool.config.chunk)
        facts = [stream_facts(pool.config.seed, index) for index in range(count)]
        return Examiner(self.encoder, self.photos.pixels[:count], facts, self.device)

    def _log_losses(self, step: int, totals: list[Tensor], waited: float) -> None:
        means = torch.stack(totals).mean(0).tolist()
        scaled = [f"{t}={m / LOSS_WEIGHTS[t]:.3f}" for t, m in zip(TASK_NAMES, means, strict=False)]
        text = " ".join(scaled)
        logger.info("learn: step %d, waited %.0f s, %s probe=%.3f", step, waited, text, means[-1])

    def _note(self, phase: str, steps: int, seconds: float, results: Mapping[str, float]) -> None:
        rounded = {name: round(value, 4) for name, value in results.items()}
        logger.info("%s: %d steps in %.0f s: %s", phase, steps, seconds, rounded)
        self.history.append({"steps": steps, "seconds": seconds, **rounded})

    def save(self, output_dir: Path) -> None:
        """Write weights (bfloat16) and the log."""
        output_dir.mkdir(parents=True, exist_ok=True)
        state = {
            name: value.detach().to("cpu", torch.bfloat16).contiguous()
            for name, value in self.model.state_dict().items()
        }
        save_file(state, output_dir / "weights.safetensors", metadata={"format": "pt"})
        log = {"config": self.config.model_dump(mode="json"), "history": self.history}
        (output_dir / "training.json").write_text(json.dumps(log, indent=1) + "\n")


def cosine(done: float) -> float:
    """Fall from 1 to a small rest along half a cosine."""
    return FINAL_RATE_FRAC + (1 - FINAL_RATE_FRAC) * 0.5 * (1 + math.cos(math.pi * done))


def to_device(batch: StepBatch, device: str) -> StepBatch:
    """Copy a step's arrays to tensors."""

    def move(array: Any) -> Any:
        return torch.as_tensor(array, device=device).clone()

    groups = {name: type(rows)(*map(move, rows)) for name, rows in batch.groups.items()}
    return StepBatch(move(batch.image_indices), groups)


def copy_batch(batch: StepBatch, held: StepBatch) -> None:
    """Overwrite the tensors that a recorded step reads."""
    target: Any = held.image_indices
    target.copy_(torch.as_tensor(batch.image_indices))
    for name, rows in batch.groups.items():
        for array, tensor in zip(rows, held.groups[name], strict=True):
            slot: Any = tensor
            slot.copy_(torch.as_tensor(array))
