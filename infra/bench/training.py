"""Training, by stock TRL and by ours: update, reference, rollouts, and whole steps from end to end."""

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import TrainerCallback

from infra.bench import trainers, world
from infra.bench.listener import Baselines, open_facade, serving
from infra.bench.recorder import Recorder
from infra.bench.trainers import Shape
from lewis_core.config.training import ListenerRewardConfig
from lewis_core.models.attention import use_shared_prefix
from lewis_core.models.engine import banned_ids
from lewis_core.models.features import backbone
from lewis_core.models.fusing import fuse
from lewis_core.models.sampling import Sampler, Sampling
from lewis_core.records import Description
from lewis_core.rewards import trl as rewards
from lewis_core.rewards.trl import ListenerReward
from lewis_core.seeding import stable_seed

COMPLETION = 150
"""Tokens of a completion in updates, as in the engine's notes."""
OURS, STOCK = "ours", "stock TRL"
OPTIONAL_PARTS = ("update", "reference", "rollouts", "step")


def run(recorder: Recorder, folder: Path, options: Any, parts: tuple[str, ...] = OPTIONAL_PARTS) -> None:
    """All parts, for each number of visual tokens: ours with one model, then stock TRL with another.

    Args:
        recorder: Takes the times.
        folder: Where photos and checkpoints may be written.
        options: ``size``, ``visual_tokens``, ``prompts``, ``group``, ``rank``, ``new_tokens``, ``candidates``,
            ``compile``, ``arms``, ``groups``, ``checkpointing``, numbers of repeats and of stock steps.
        parts: What is measured.
    """
    for tokens in options.visual_tokens:
        update = Shape(tokens, options.prompts, options.group, min(COMPLETION, options.completion), options.rank)
        step = Shape(
            tokens, options.prompts, options.group, options.new_tokens, options.rank, options.candidates, beta=0.04
        )
        processor = world.build_processor(tokens)
        photos = world.write_photos(folder, max(options.prompts, options.candidates), tokens)
        for arm in (OURS, STOCK) if options.arms == "all" else (OURS,):
            bench = ArmBench(recorder, arm, folder, processor, photos, options)
            with recorder.section(f"{arm}, {tokens} visual tokens"):
                for part, shape in (("update", update), ("reference", update), ("rollouts", step), ("step", step)):
                    if part in parts and (part != "step" or tokens in options.step_tokens):
                        getattr(bench, part)(shape)
            del bench


class ArmBench:
    """One arm's measurements.

    Args:
        recorder: Takes the times.
        arm: ``OURS`` or ``STOCK``.
        folder: Photos, checkpoints.
        processor: Of the speaker.
        photos: Names of photos.
        options: As for :func:`run`.
    """

    def __init__(
        self, recorder: Recorder, arm: str, folder: Path, processor: Any, photos: list[str], options: Any
    ) -> None:
        self._recorder, self._arm, self._folder, self._processor = recorder, arm, folder, processor
        self._photos, self._options = photos, options
        self._repeats: int = options.repeats if arm == OURS else options.stock_repeats
        self._shared: Any = None

    def _bare_trainer(self, shape: Shape) -> Any:
        """A trainer without a listener, kept for all parts but whole steps."""
        if self._shared is None:
            self._shared = self._trainer(shape, [_no_reward])
        return self._shared

    def _trainer(self, shape: Shape, functions: list[Any], **changes: Any) -> Any:
        gc.collect()
        if self._recorder.device == "cuda":
            torch.cuda.empty_cache()
        model = world.build_model(self._options.size, self._processor, self._recorder.device)
        if self._options.compile and self._arm == OURS:
            from lewis_core.models.compiling import compile_layers

            compile_layers(model)
        rows = trainers.make_rows(shape, self._photos)
        make = trainers.ours if self._arm == OURS else trainers.stock
        return make(model, self._processor, self._folder, rows, shape, functions, **changes)

    def _prepared(self, trainer: Any, shape: Shape, groups: int) -> dict[str, Any]:
        """Inputs of a micro-batch of some groups."""
        rows = trainers.make_rows(shape, self._photos)[:groups]
        if self._arm == OURS:
            trainer._rows = rows
            ids, _, _ = trainer._tokenize_prompts([row["prompt"] for row in rows])
            return trainers.fixed_inputs(trainer, rows, shape, ids)
        inputs = trainers.fixed_inputs(trainer, rows, shape, self._prompt_ids(trainer, rows))
        trainers.pixel_inputs(trainer, self._folder, rows, shape, inputs)
        return inputs

    def _prompt_ids(self, trainer: Any, rows: list[dict[str, Any]]) -> list[list[int]]:
        from lewis_core.models.images import ImageFolder

        images = ImageFolder(self._folder)
        content = [{"type": "image"}, {"type": "text", "text": trainers.INSTRUCTION}]
        text = trainer.processing_class.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return [
            trainer.processing_class(text=[text], images=[images.load(row["query"])])["input_ids"][0] for row in rows
        ]

    def update(self, shape: Shape) -> None:
        """Forward and backward pass, per group."""
        trainer = self._bare_trainer(shape)
        planned = self._planned(trainer, shape)
        wanted = {*self._options.groups, planned} if self._arm == OURS else {1}  # TRL: a group of completions a pass
        sizes = sorted(wanted & set(range(1, shape.prompts + 1)))
        for checkpointing in (name == "on" for name in self._options.checkpointing):
            _set_checkpointing(trainer, checkpointing)
            for groups in sizes:
                inputs = self._prepared(trainer, shape, groups)

                def step(trainer: Any = trainer, inputs: dict[str, Any] = inputs) -> None:
                    trainer.model.zero_grad()
                    loss = trainer._compute_loss(trainer.model, inputs)
                    trainer.accelerator.backward(loss)

                where = f"{self._arm}, {groups} groups a pass, checkpointing {'on' if checkpointing else 'off'}"
                facts = {"visual_tokens": shape.visual_tokens, "scale": 1 / groups, "units": groups, "unit": "groups"}
                seconds = self._recorder.measure("update", where, step, repeats=self._repeats, **facts)
                if self._arm == OURS and groups == sizes[-1]:
                    self._recorder.profile(f"update, {where}", step, visual_tokens=shape.visual_tokens)
                if seconds is not None and groups == 1:
                    self._note_gradient(trainer, where, shape)
        if self._arm == OURS:
            counts = self._counts(trainer, shape)
            floor = 2 * world.forward_flops(trainer.model, *counts) / self._recorder.rates.flops
            self._recorder.add("update", "floor", floor, visual_tokens=shape.visual_tokens, planned_groups=planned)

    def _note_gradient(self, trainer: Any, where: str, shape: Shape) -> None:
        """Both arms have the same weights and rows, so the same gradient."""
        gradients = [p.grad.float().norm() for p in trainer.model.parameters() if p.grad is not None]
        norm = torch.stack(gradients).norm().item()
        self._recorder.note(f"gradient norm: {where}", visual_tokens=shape.visual_tokens, norm=norm)

    def _planned(self, trainer: Any, shape: Shape) -> int:
        """Groups of a pass that the product would choose."""
        from lewis_core.training import memory

        config = trainers.settings(shape)
        return memory.plan(memory.estimate(trainer.model, config), config, shape.prompts).prompts

    def _counts(self, trainer: Any, shape: Shape) -> tuple[float, float]:
        """Unique tokens of a group, and pairs of query and key."""
        prompt = len(self._prompt_ids(trainer, trainers.make_rows(shape, self._photos)[:1])[0])
        return world.shared_counts(prompt, [shape.new_tokens] * shape.group)

    def reference(self, shape: Shape) -> None:
        """Log-probabilities without gradients, all groups of a step."""
        trainer = self._bare_trainer(shape)
        groups = shape.prompts
        inputs = self._prepared(trainer, shape, groups)
        ids, mask = (torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1) for name in ("ids", "mask"))
        names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
        extra = {name: inputs[name] for name in names if name in inputs}
        trainer._prompt_of_row = inputs["prompt_of_row"].tolist()

        def read() -> None:
            with torch.no_grad():
                trainer._get_per_token_logps_and_entropies(
                    trainer.model, ids, mask, shape.new_tokens, batch_size=shape.group, **extra
                )

        facts = {"visual_tokens": shape.visual_tokens, "units": groups, "unit": "groups"}
        self._recorder.measure("reference", self._arm, read, repeats=self._repeats, **facts)
        if self._arm == OURS:
            floor = groups * world.forward_flops(trainer.model, *self._counts(trainer, shape))
            self._recorder.add(
                "reference", "floor", floor / self._recorder.rates.flops, visual_tokens=shape.visual_tokens
            )

    def rollouts(self, shape: Shape) -> None:
        """Completions of full length, all groups of a step together; shapes were seen before."""
        trainer = self._bare_trainer(shape)
        trainer.max_completion_length = trainer.generation_config.max_new_tokens = shape.new_tokens
        trainers.never_ends(trainer)
        inputs = self._prepared(trainer, shape, shape.prompts)
        ids = [row[mask.bool()].tolist() for row, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)]
        fields: dict[str, Any] = {}
        if self._arm == OURS:
            trainer._prompt_of_row = inputs["prompt_of_row"].tolist()
        else:
            image = trainer.model.config.image_token_id
            fields = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
            fields["mm_token_type_ids"] = [[int(token == image) for token in row] for row in ids]
        written: list[int] = []

        def write() -> None:
            completions, _ = trainer._generate_single_turn(ids, None, fields, shape.group)
            written[:] = [len(completion) for completion in completions]

        rows = shape.prompts * shape.group
        facts = {"visual_tokens": shape.visual_tokens, "units": rows * shape.new_tokens, "unit": "tokens", "rows": rows}
        self._recorder.measure("rollouts", self._arm, write, repeats=self._repeats, **facts)
        if self._arm == OURS:
            self._recorder.profile("rollouts", write, visual_tokens=shape.visual_tokens)
        if written and set(written) != {shape.new_tokens}:
            raise RuntimeError(f"expected {shape.new_tokens} tokens each, found {sorted(set(written))}")
        if self._arm == OURS:
            seeded = [Sampling(shape.new_tokens, trainer.temperature, row) for row in range(rows)]
            sampler = self._plain_sampler()
            bare = partial(sampler.sample, trainer._prompts, trainer._prompt_of_row, seeded)
            self._recorder.measure("rollouts", "ours, without an adapter", bare, repeats=self._repeats, **facts)
            floor = self._rollout_floor(trainer, shape, len(ids[0]))
            self._recorder.add(
                "rollouts", "floor", floor, visual_tokens=shape.visual_tokens,
                tokens_per_s=rows * shape.new_tokens / floor,
            )  # fmt: skip

    def _plain_sampler(self) -> Sampler:
        """A sampler of a model without an adapter, as inference engines are measured; completions never end."""
        model = world.build_model(self._options.size, self._processor, self._recorder.device)
        use_shared_prefix(model)
        fuse(model)
        pad = self._processor.tokenizer.pad_token_id
        return Sampler(
            model, image_token_id=model.config.image_token_id, pad_id=pad, eos_ids=(), banned=banned_ids(model)
        )

    def _rollout_floor(self, trainer: Any, shape: Shape, prompt: int) -> float:
        """Weights, and keys and values of each prompt once and of each row's own tokens, read at every step."""
        text = trainer.model.config.get_text_config()
        size = trainer.model.dtype.itemsize
        layers = backbone(trainer.model).language_model.layers
        weights = sum(p.numel() for p in layers.parameters() if p.ndim == 2) * size
        weights += text.vocab_size * text.hidden_size * size  # the head; of the embedding only a few rows are read
        per_token = (
            2 * text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
        )
        tokens = shape.prompts * (prompt + shape.group * shape.new_tokens / 2)
        decode = shape.new_tokens * (weights + per_token * size * tokens) / self._recorder.rates.bytes_per_s
        counts = world.shared_counts(prompt, [])
        return decode + shape.prompts * world.forward_flops(trainer.model, *counts) / self._recorder.rates.flops

    def step(self, shape: Shape) -> None:
        """Rollouts, rewards of a listener that is another model of the same size, reference, update, optimiser."""
        if not self._recorder.has_time(f"step: {self._arm}, visual_tokens {shape.visual_tokens}"):
            return
        self._shared = None
        gc.collect()
        listener = world.build_model(self._options.size, self._processor, self._recorder.device, seed=1)
        if self._arm == OURS:
            facade = open_facade(listener, self._processor, self._folder)
            random_text = patch.object(rewards, "parse_or_none", _parse)  # it is no description
            with serving(facade) as client, random_text:
                reward = ListenerReward(client, ListenerRewardConfig(), requests=int(self._recorder.device == "cuda"))
                self._train(shape, self._trainer(shape, [reward], gradient_checkpointing="auto"), 3)
            self._step_floor(shape)
        else:
            reward = ReferenceReward(Baselines(listener, self._processor, self._folder), self._options.step_pairs)
            self._train(shape, self._trainer(shape, [reward]), self._options.stock_steps, reward)

    def _train(self, shape: Shape, trainer: Any, steps: int, listener: "ReferenceReward | None" = None) -> None:
        trainers.never_ends(trainer)
        trainer.args.max_steps, trainer.args.save_strategy = steps, "no"
        clock = StepTimes(self._recorder.synchronize)
        trainer.add_callback(clock)
        if self._recorder.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
        facts: dict[str, Any] = {"visual_tokens": shape.visual_tokens, "times": [round(t, 4) for t in clock.seconds]}
        if self._recorder.device == "cuda":
            facts["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if self._arm == OURS:
            facts |= {
                "groups_a_pass": trainer.args.per_device_train_batch_size // shape.group,
                "checkpointing": trainer.args.gradient_checkpointing,
            }
        measured = clock.seconds[1:] or clock.seconds
        arm = self._arm if self._arm == OURS else "stock TRL, reference-style listener without gc"
        facts |= {name: round(value, 4) for name, value in clock.parts.items()}
        missing = listener.missing_s / steps if listener else 0.0
        if listener:
            facts |= {"extrapolated_s": missing, "pairs_timed": listener.timed, "pairs_not_asked": listener.left_out}
        self._recorder.add("step", arm, statistics.median(measured) + missing, **facts)

    def _step_floor(self, shape: Shape) -> None:
        """Sum of the parts' floors."""
        find = partial(self._recorder.seconds, visual_tokens=shape.visual_tokens)
        listener = find("listener", "floor, photos seen before")
        parts = [find("rollouts", "floor"), find("update", "floor"), find("reference", "floor"), listener]
        if any(seconds is None for seconds in parts):
            return
        writing, update, reference, listening = (float(seconds or 0) for seconds in parts)
        listened = self._options.games * self._options.candidates * self._options.descriptions
        pairs = shape.prompts * shape.group * shape.candidates
        shorter = shape.new_tokens / min(COMPLETION, self._options.completion)  # completions of updates are longer
        floor = writing + shape.prompts * update * shorter + reference * shorter + listening * pairs / listened
        self._recorder.add("step", "floor (sum of parts)", floor, visual_tokens=shape.visual_tokens)


class StepTimes(TrainerCallback):
    """Seconds of each step, and of its parts where the trainer tells them."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize, self._started = synchronize, 0.0
        self.seconds: list[float] = []
        self.parts: dict[str, float] = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._synchronize()
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        self._synchronize()
        self.seconds.append(time.perf_counter() - self._started)

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        """Keep the last step's parts."""
        self.parts |= {name: value for name, value in (logs or {}).items() if name.startswith("seconds/")}


class ReferenceReward:
    """The listener's reward as the reference asks for it: one generation for every pair.

    Args:
        baselines: The listener.
        most: Pairs that are asked; the seconds of all others are extrapolated. ``None``: all are asked.
    """

    __name__ = "listener"

    def __init__(self, baselines: Baselines, most: int | None = None) -> None:
        self._baselines, self._most = baselines, most
        self._seconds = 0.0
        self.timed = 0
        """Pairs that were asked."""
        self.left_out = 0
        """Pairs that were not."""

    @property
    def missing_s(self) -> float:
        """Seconds that the pairs left out would have taken."""
        return self._seconds / max(1, self.timed) * self.left_out

    def __call__(
        self, completions: list[Any], candidates: list[list[str]], category_word: list[str], **_: Any
    ) -> list[float]:
        """P(yes) of the target among all candidates' P(yes); 0 for what is not asked."""
        found = []
        for completion, photos, word in zip(completions, candidates, category_word, strict=True):
            if self._most is not None and self.timed >= self._most:
                self.left_out += len(photos)
                found.append(0.0)
                continue
            started = time.perf_counter()
            text = _parse(completion[-1]["content"]).detailed
            question = self._baselines.question(word, text)
            values = self._baselines.one_by_one([(photo, question) for photo in photos], clean=False)
            found.append(values[0] / sum(values))
            self._seconds, self.timed = self._seconds + time.perf_counter() - started, self.timed + len(photos)
        return found


def _parse(text: str) -> Description:
    number = stable_seed(0, text) % 1_000_000
    return Description(thinking="-", coarse="A photo of a mug.", detailed=world.description(number, 60))


def _no_reward(completions: list[Any], **_: Any) -> list[float]:
    return [float(number % 2) for number in range(len(completions))]


def _set_checkpointing(trainer: Any, is_on: bool) -> None:
    model = trainer.model
    if is_on:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.activation_checkpointing_disable()
        model.disable_input_require_grads()
    trainer.args.gradient_checkpointing = is_on
