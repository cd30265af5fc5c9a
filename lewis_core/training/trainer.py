"""TRL's GRPO trainer, with each prompt computed once instead of once per completion.

TRL repeats a prompt, its image and its vision features for every completion. Here TRL sees text-only prompts: images
enter as features that are computed once and kept (the vision tower is frozen), rollouts continue one cached prefill,
and log-probabilities come from packed rows (:mod:`lewis_core.training.packing`). Loss, advantages, optimiser,
logging and checkpoints are TRL's own. The methods overridden here are private to TRL: a test pins their signatures,
and another compares log-probabilities, loss and gradients with those of the stock trainer.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from lewis_core.errors import ListenerUnavailableError
from lewis_core.models.continuation import Prompt
from lewis_core.models.features import ImageFeatures
from lewis_core.models.sampling import Sampler, Sampling
from lewis_core.rewards.trl import OUTAGES, ListenerReward
from lewis_core.seeding import stable_seed
from lewis_core.training.packing import IGNORE, Group, pack

if TYPE_CHECKING:
    GRPOTrainer: Any  # TRL's own annotations leave open what is always set once the trainer is built
else:
    from trl import GRPOTrainer

logger = logging.getLogger(__name__)
COMPLETE = "complete"
"""Marker file that is written into a checkpoint last."""
Encode = Callable[[Sequence[str]], dict[str, ImageFeatures]]
Row = dict[str, Any]


class SpeakerTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO of a speaker whose data set names images in the column ``query``.

    Args:
        encode: Image references → vision features.
        arguments: As for :class:`trl.GRPOTrainer`; ``per_device_train_batch_size`` must be a multiple of
            ``num_generations``.
    """

    _buffered_inputs: Any  # TRL's: micro-batches of the current generation

    def __init__(self, *, encode: Encode, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.check_groups()
        self._encode = encode
        self._queries: list[str] = []
        self._prompts: list[Prompt] = []  # distinct prompts of the current generation batch
        self._prompt_of_row: list[int] = []
        self._image_token: int = self.model.config.image_token_id
        self._banned = [self.model.config.image_token_id, self.model.config.video_token_id]
        self._sampler: Sampler | None = None

    def check_groups(self) -> None:
        """Check that no group of completions is spread over micro-batches.

        Raises:
            ValueError: If it would be.
        """
        size = self.args.per_device_train_batch_size
        if size % self.num_generations:
            raise ValueError(f"per_device_train_batch_size ({size}) must be a multiple of num_generations")

    # Generation ------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        """Remember which image each row is about, and which prompt each row of the answer belongs to."""
        self._queries = [row["query"] for row in inputs]
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        output["prompt_of_row"] = torch.tensor(self._prompt_of_row)
        return output

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Tokenize prompts, one of a kind each, with the image's placeholder repeated as the processor does."""
        features = self._encode(list(dict.fromkeys(self._queries)))
        self._prompts, self._prompt_of_row = [], []
        numbers: dict[tuple[str, str], int] = {}
        for messages, query in zip(prompts, self._queries, strict=True):
            text = self._prompt_text(messages)
            if (query, text) not in numbers:
                numbers[query, text] = len(self._prompts)
                self._prompts.append(self._prompt(text, features[query]))
            self._prompt_of_row.append(numbers[query, text])
        return [self._prompts[number].ids for number in self._prompt_of_row], None, {}

    def _prompt_text(self, messages: Sequence[Row]) -> str:
        """Render messages by the chat template, with the image in front of the first user's text."""
        contents = [_content_parts(message["content"]) for message in messages]
        first = next(index for index, message in enumerate(messages) if message["role"] == "user")
        if not any(part["type"] == "image" for part in contents[first]):
            contents[first].insert(0, {"type": "image"})
        chat = [{"role": m["role"], "content": c} for m, c in zip(messages, contents, strict=True)]
        text: str = self.processing_class.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False, **self.chat_template_kwargs
        )
        return text

    def _prompt(self, text: str, image: ImageFeatures) -> Prompt:
        token: str = self.processing_class.image_token
        expanded = text.replace(token, token * len(image.tokens), 1)
        return Prompt(self._tokenizer.encode(expanded, add_special_tokens=False), (image,))

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], None]:
        """Sample completions: each distinct prompt is read once, each completion has a seed of its own."""
        rows = range(len(prompt_ids))
        first = self.accelerator.process_index * len(prompt_ids)
        sampling = [
            Sampling(
                self.max_completion_length,
                self.temperature,
                stable_seed(self.args.seed, "rollout", self.state.global_step, first + row),
            )
            for row in rows
        ]
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
        ) as model:
            sampler = self._sampler_of(model)
            written = sampler.sample(self._prompts, self._prompt_of_row, sampling)
        return [one.ids if one.end is None else [*one.ids, one.end] for one in written], None

    def _sampler_of(self, model: Any) -> Sampler:
        if self._sampler is None:
            self._sampler = Sampler(
                model,
                image_token_id=self._image_token,
                pad_id=self._tokenizer.pad_token_id,
                eos_ids=self.eos_token_ids,
                banned=self._banned,
            )
        return self._sampler

    # Rewards ---------------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: list[Row], prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> Tensor:
        """Ask the listener first, so that an outage seen by one process stops all of them at the same point."""
        outage = ""
        if listener := next((f for f in self.reward_funcs if isinstance(f, ListenerReward)), None):
            try:
                listener.ask(
                    completions, [row["candidates"] for row in inputs], [row["category_word"] for row in inputs]
                )
            except OUTAGES as error:
                outage = str(error)
        if outages := [text for text in gather_object([outage]) if text]:
            raise ListenerUnavailableError(outages[0])
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return rewards

    def samples(self) -> list[Row]:
        """Completions of the last step with their rewards, advantages and what rewards logged beside them."""
        logs = self._logs
        columns = {
            "completion": [messages[-1]["content"] for messages in logs["completion"]],
            **{name: list(values) for name, values in logs["rewards"].items()},
            **{name: list(values) for name, values in logs["extra"].items()},
            "advantage": list(logs["advantages"]),
        }
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=False)]

    # Log-probabilities -----------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """As in TRL, without its shuffle of rows, which would tear groups apart."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            output = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(output, steps)
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
    ) -> tuple[Tensor, Tensor | None, None]:
        """Log-probabilities (rows, completion length) and entropies from packed groups; 0 after the end."""
        rows = len(input_ids)
        logps = torch.zeros(rows, logits_to_keep, device=input_ids.device)
        entropies = torch.zeros_like(logps)
        mask = attention_mask[:, -logits_to_keep:].bool()
        completions = [ids[m].cpu() for ids, m in zip(input_ids[:, -logits_to_keep:], mask, strict=True)]
        for members in self._batches(completions, batch_size or rows):
            groups = [
                Group(self._prompts[number], [completions[row] for row in of_prompt])
                for number, of_prompt in members.items()
            ]
            packed = pack(self.accelerator.unwrap_model(self.model), groups, self._image_token, 0)
            with self.accelerator.autocast():
                arguments = packed.forward_arguments(self.accelerator.unwrap_model(self.model))
                out = model(**arguments, shift_labels=packed.labels, fused_lm_head=True)
            kept = packed.labels != IGNORE
            order = [row for of_prompt in members.values() for row in of_prompt]
            at = _places(order, completions, logps.device)
            logps = logps.index_put(at, out.log_probs[kept].float())
            if compute_entropy:
                entropies = entropies.index_put(at, out.entropy[kept].float())
        return logps, entropies if compute_entropy else None, None

    def _batches(self, completions: Sequence[Tensor], size: int) -> Iterator[dict[int, list[int]]]:
        """Rows by prompt, ``size`` rows at a time; masked rows are left out."""
        for start in range(0, len(completions), size):
            members: dict[int, list[int]] = {}
            for row in range(start, min(start + size, len(completions))):
                if len(completions[row]):
                    members.setdefault(self._prompt_of_row[row], []).append(row)
            if members:
                yield members

    # Checkpoints -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save as TRL does, then mark the checkpoint as complete."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (self.checkpoint_folder() / COMPLETE).touch()
        self.accelerator.wait_for_everyone()

    def checkpoint_folder(self) -> Path:
        """Where the checkpoint of the current step is, or would be."""
        return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

    def save_last_step(self) -> None:
        """Save the state after the last finished step, if a step was finished and it is not saved yet."""
        self.model.zero_grad()
        if self.state.global_step and not (self.checkpoint_folder() / COMPLETE).is_file():
            self._save_checkpoint(self.model, None)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no model card: the artifact's manifest says more."""


def _content_parts(content: str | Sequence[Row]) -> list[Row]:
    """A message's content as parts, without the empty fields that a table of parts has."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{name: value for name, value in part.items() if value is not None} for part in content]


def _places(order: Sequence[int], completions: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every completion token, for rows in packed order."""
    lengths = torch.tensor([len(completions[row]) for row in order])
    rows = torch.repeat_interleave(torch.tensor(order), lengths)
    columns = torch.cat([torch.arange(length) for length in lengths.tolist()])
    return rows.to(device), columns.to(device)
