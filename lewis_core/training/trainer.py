"""TRL's GRPO trainer for speakers: rows name photos, groups stay whole, outages of the listener stop all processes.

Loss, advantages, optimiser, logging and checkpoints are TRL's own, and so are rollouts and log-probabilities here:
every completion carries its prompt and its image, which is slow, and works wherever TRL does.
:class:`~lewis_core.training.shared_prefix.SharedPrefixTrainer` computes each prompt once. The methods overridden are
private to TRL: a test pins their signatures.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import DistributedType, gather_object, is_peft_model
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

from lewis_core.errors import CheckpointError
from lewis_core.rewards.hacks import DEGENERATE, HACKS, find_hacks
from lewis_core.rewards.trl import ListenerReward, completion_text, game_of
from lewis_core.training import checkpoints
from lewis_core.training.clock import StepClock
from lewis_core.training.groups import check_groups, clear_level_groups, photos_of
from lewis_core.training.journal import Journal
from lewis_core.training.meeting import Meeting, hold
from lewis_core.training.order import EpochSampler
from lewis_core.training.processes import shards_weights
from lewis_core.training.prompts import prompt_text, prompt_tokens
from lewis_core.training.samples import sample_rows

if TYPE_CHECKING:
    GRPOTrainer: Any  # TRL's own annotations leave open what is always set once the trainer is built
else:
    from trl import GRPOTrainer

logger = logging.getLogger(__name__)
MAX_FAILED_SAVES = 3
"""So many checkpoints in a row that cannot be written end training."""
Row = dict[str, Any]
Photos = tuple[str, ...]
"""References of a prompt's photos, in order."""


class SpeakerTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO of a model whose data set names photos in the column ``query``, or several in ``photos``.

    Args:
        load: Photo reference → RGB image.
        may_checkpoint: When memory runs out in an update, repeat it with gradient checkpointing, and go on so.
        arguments: As for :class:`trl.GRPOTrainer`; ``per_device_train_batch_size`` must be a multiple of
            ``num_generations``.

    Raises:
        ValueError: If groups of completions would be spread over micro-batches.
    """

    _buffered_inputs: Any  # TRL's: micro-batches of the current generation
    reward_funcs: list[Any]  # TRL's
    temperature: float  # of rollouts; TRL's
    generation_config: Any  # of TRL's own rollouts

    def __init__(self, *, load: Callable[[str], Image.Image], may_checkpoint: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.load_photo = self._load = load
        self._may_checkpoint = may_checkpoint
        self._rows: list[Row] = []  # the data set's rows of the current generation batch
        self._prompt_of_row: list[int] = []  # of the rows that are computed now
        self._queries: list[Photos] = []  # those of each distinct prompt of the current generation batch
        self._generated_at = -1  # TRL's step of the current generation batch
        self._clock = StepClock()
        self.meeting = Meeting(may_stop=lambda: self.state.global_step % self.num_iterations == 0)
        """Where processes stop together; between two updates from the same completions they do not."""
        self._last_step, self._failed_saves = checkpoints.LastStep(), 0
        self.add_callback(self._last_step)
        self.journals: list[Journal] = []
        """Files whose rows have to be on the disk before a checkpoint counts."""
        self._listener = next((f for f in self.reward_funcs if isinstance(f, ListenerReward)), None)
        self._image_token: int = self.model.config.image_token_id
        size = self.args.per_device_train_batch_size
        if size % self.num_generations:
            raise ValueError(f"per_device_train_batch_size ({size}) must be a multiple of num_generations")

    # Data ------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        """As in TRL, except that a run which goes on finds the order of its epoch."""
        rows = self.train_dataset if dataset is None else dataset
        size = self.args.generation_batch_size // self.num_generations
        repeats = self.num_iterations * self.args.steps_per_generation
        updates = max(1, len(rows) // size * repeats // self.args.gradient_accumulation_steps)
        return EpochSampler(
            epoch=lambda: self.state.global_step // updates,
            data_source=rows,
            mini_repeat_count=self.num_generations,
            batch_size=size,
            repeat_count=repeats,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    # Generation ------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        """Remember what each row is about, and which prompt each row of the answer belongs to."""
        with self.meeting.before_next():
            self._size = self.num_generations if self.model.training else self.num_generations_eval
            check_groups(inputs, self._size)
        self._rows = inputs
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        output["prompt_of_row"] = torch.tensor(self._prompt_of_row)
        first, mode = self.accelerator.process_index * len(inputs), "train" if self.model.training else "eval"
        level = clear_level_groups(output, self._rewards, self._size, first, self._logs["advantages"])
        self._metrics[mode]["frac_reward_zero_std"][-1] = level
        return output

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Tokenize prompts, one of a kind each, with the image's placeholder repeated as the processor does."""
        texts: list[str] = []
        self._queries, self._prompt_of_row = [], []
        numbers: dict[tuple[Photos, str], int] = {}
        for messages, row in zip(prompts, self._rows, strict=True):
            key = photos_of(row), prompt_text(self.processing_class, messages, **self.chat_template_kwargs)
            if key not in numbers:
                numbers[key] = len(numbers)
                self._queries.append(key[0])
                texts.append(key[1])
            self._prompt_of_row.append(numbers[key])
        with self.meeting.before_next():
            ids = self._tokenize(texts, self._queries)
        if shards_weights():  # rollouts are collectives then
            self.meeting.meet()
        return [ids[number] for number in self._prompt_of_row], None, {}

    def _tokenize(self, texts: Sequence[str], queries: Sequence[Photos]) -> list[list[int]]:
        merged = self.processing_class.image_processor.merge_size**2
        sizes = [(self._pixels([query])["image_grid_thw"].prod(-1) // merged).tolist() for query in queries]
        return [
            prompt_tokens(self.processing_class, text, of_photos) for text, of_photos in zip(texts, sizes, strict=True)
        ]

    def _pixels(self, queries: Sequence[Photos]) -> dict[str, Tensor]:
        """Pixels and grids of some prompts' photos, as the processor makes them."""
        photos = [self._load(photo) for query in queries for photo in query]
        found = self.processing_class.image_processor(images=photos, return_tensors="pt")
        return {name: found[name] for name in ("pixel_values", "image_grid_thw")}

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], Any]:
        """As in TRL, with the photos."""
        queries = [self._queries[number] for number in self._prompt_of_row]
        images = [[self._load(photo) for photo in query] for query in queries] if self.use_vllm else None
        of_images = [[int(token == self._image_token) for token in ids] for ids in prompt_ids]
        fields = {} if self.use_vllm else {**self._pixels(queries), "mm_token_type_ids": of_images}
        with self._together("rollout"):
            completions, logps = super()._generate_single_turn(prompt_ids, images, fields, num_generations)
        self._clock.count("rollout", sum(map(len, completions)))
        return completions, logps

    @contextmanager
    def greedy(self) -> Iterator[None]:
        """While the block runs, completions are the likeliest ones, whoever writes them."""
        kept = self.temperature, self.generation_config
        self.temperature, self.generation_config = 0.0, copy.deepcopy(self.generation_config)
        self.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None, min_p=None)
        try:
            yield
        finally:
            self.temperature, self.generation_config = kept

    # Rewards ---------------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: list[Row], prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> Tensor:
        """Wait for the listener first, so that an outage seen by one process stops all of them at the same point."""
        with self.meeting.before_next():
            self._watch_texts(inputs, prompts, completions)
        with self._together("listener_wait"):
            if (listener := self._listener) is not None:
                columns = [[row[name] for row in inputs] for name in ("candidates", "category_word")]
                self.meeting.unless_stopped(lambda: listener.ask(completions, *columns), waits=listener.waits)
        failures: list[Exception] = []
        rewards_of, self.reward_funcs = self.reward_funcs, [hold(f, failures) for f in self.reward_funcs]
        try:  # all processes come to TRL's collective, and learn of failures after it
            self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = rewards_of
        self.meeting.meet(failures[0] if failures else None)
        return cast("Tensor", self._rewards)

    @contextmanager
    def _together(self, part: str, *, meets: bool = True) -> Iterator[None]:
        """Do a part of the step alone, and meet the other processes after it; after a failure in any case."""
        with self.meeting.before_next(), self._clock.measure(part):
            yield
        if meets:
            with self._clock.measure("meeting"):  # until the slowest process is there
                self.meeting.meet()

    def _watch_texts(self, inputs: list[Row], prompts: list[Any], completions: list[Any]) -> None:
        """Keep what completions are about; log which share of descriptions cheats, by the way they do it."""
        self._log_completion_extra("photos", [list(photos_of(row)) for row in inputs])
        if "candidates" not in inputs[0]:
            return
        columns = {name: [row.get(name) for row in inputs] for name in ("query", "candidates", "category_word")}
        games = [game_of({"prompts": prompts, **columns}, row) for row in range(len(inputs))]
        found = [find_hacks(completion_text(text), game) for text, game in zip(completions, games, strict=True)]
        for hack in HACKS:
            self._log_metric(f"hacks/{hack}", sum(hack in one for one in found) / len(found))
        self._log_metric("hacks/degenerate", sum(not one.isdisjoint(DEGENERATE) for one in found) / len(found))
        self._log_completion_extra("noticed", [", ".join(sorted(one)) for one in found])
        self._log_completion_extra("candidates", columns["candidates"])

    def take_latencies(self) -> list[float]:
        """Seconds of each request to the listener since the last call."""
        return self._listener.take_latencies() if self._listener is not None else []

    def samples(self) -> list[Row]:
        """Completions of the last step with their rewards, advantages and what rewards logged beside them."""
        return sample_rows(self._logs)

    # Log-probabilities -----------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """As in TRL, without its shuffle of rows, which would tear groups apart; a repeated step generates nothing."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        steps = self.args.steps_per_generation
        is_due = self._step % (steps * self.num_iterations) == 0 and self._step != self._generated_at
        if is_due or self._buffered_inputs is None:
            output = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs, self._generated_at = split_tensor_dict(output, steps), self._step
        inputs: dict[str, Any] = self._buffered_inputs[self._step % steps]
        return inputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._prompt_of_row = inputs["prompt_of_row"].tolist()
        loss: Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, Any]:
        """As in TRL, with the photos."""
        queries = [self._queries[number] for number in self._prompt_of_row]
        fields = self._pixels(queries)
        part = "update" if torch.is_grad_enabled() else "reference"
        with self._together(part, meets=torch.is_grad_enabled()):  # before what the update exchanges
            found: tuple[Tensor, Tensor | None, Any] = super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **{name: value.to(input_ids.device) for name, value in fields.items()},
                num_images=[len(query) for query in queries],
                mm_token_type_ids=(input_ids == self._image_token).long(),
            )
        self._clock.count(part, int(attention_mask.sum()))
        return found

    # Steps -----------------------------------------------------------------------------------------------------

    def _run_epoch(self, **arguments: Any) -> None:
        """As in transformers, which would make one step more when it goes on from the last one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**arguments)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As in TRL, timed; an update that runs out of memory is repeated with checkpointing where that is allowed."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        before = [p.grad.clone() if p.grad is not None else None for p in trained] if self._may_checkpoint else []
        with self._clock.measure("update"):
            try:
                loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            except torch.OutOfMemoryError:
                if not self._may_checkpoint:
                    raise
                for parameter, gradient in zip(trained, before, strict=True):
                    parameter.grad = gradient
                loss = self._repeat_with_checkpointing(model, inputs, num_items_in_batch)
            if loss.is_cuda:
                torch.cuda.synchronize()
        return loss

    def _repeat_with_checkpointing(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        logger.warning("out of memory: the update is repeated with gradient checkpointing, which stays on")
        self._may_checkpoint = False
        self.args.gradient_checkpointing = True
        plain = self.accelerator.unwrap_model(self.model)
        plain.enable_input_require_grads()
        plain.activation_checkpointing_enable({"use_reentrant": False})
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """As in transformers; an update with a gradient that is not finite is left out."""
        norm = super()._clip_grad_norm(model)
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED and not math.isfinite(float(norm)):
            logger.warning("the gradient of step %d is not finite; its update is left out", self.state.global_step + 1)
            self.model.zero_grad(set_to_none=True)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with where the step's time went."""
        if "loss" in logs:
            logs.update(self._clock.take())
        super().log(logs, start_time)
        del self.state.log_history[:-1]  # every checkpoint would hold it all, and the journals have it

    # Checkpoints -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as TRL does, whole or not at all; a full disk does not end training unless it stays full."""
        failure = self._try_to_save(model, trial)
        if failure:
            checkpoints.prune(Path(self.args.output_dir), kept=1)  # makes room
            failure = self._try_to_save(model, trial)
        if not failure:
            self._failed_saves = 0
            return
        self._failed_saves += 1
        message = f"checkpoint {self.state.global_step} cannot be written ({failure})"
        if self._failed_saves >= MAX_FAILED_SAVES:
            raise CheckpointError(
                f"{message}, and neither could the {self._failed_saves - 1} before it; make room below "
                f"{self.args.output_dir} and run the same command: training goes on from its last checkpoint"
            )
        logger.error("%s; training goes on and tries again at the next one", message)

    def _try_to_save(self, model: Any, trial: Any) -> str:
        """Write and seal a checkpoint; returns what kept some process from it, else an empty text."""
        folder, failure = self.checkpoint_folder(), ""
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            if (found := checkpoints.write_failure(error)) is None:
                raise
            failure = found
        failures = [text for text in gather_object([failure]) if text]
        if self.accelerator.is_main_process and not failures:
            try:
                for journal in self.journals:
                    journal.flush(durable=True)
                checkpoints.seal(folder)
                checkpoints.prune(folder.parent)
            except OSError as error:
                failure = str(error)
        failures += [text for text in gather_object([failure]) if text]
        if failures and self.accelerator.is_main_process:
            checkpoints.remove(folder)
        self.accelerator.wait_for_everyone()
        return failures[0] if failures else ""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As in transformers, but for whole models: by their names in files, it would find none of their weights."""
        if is_peft_model(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            checkpoints.load_whole(self.model, Path(resume_from_checkpoint))

    def checkpoint_folder(self) -> Path:
        """Where the checkpoint of the current step is, or would be."""
        return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

    def save_last_step(self) -> None:
        """Save the state after the last finished step, if a step was finished and it is not saved yet."""
        self.model.zero_grad()
        self._last_step.rewind(self.state)
        if self.state.global_step and not checkpoints.is_sealed(self.checkpoint_folder()):
            self._save_checkpoint(self.model, None)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no model card: the artifact's manifest says more."""
