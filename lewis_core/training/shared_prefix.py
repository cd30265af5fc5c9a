"""The trainer that computes each prompt once instead of once per completion.

Photos enter as vision features that are computed once and kept (the vision tower is frozen), rollouts continue one
cached prefill, log-probabilities come from packed rows (:mod:`lewis_core.models.packing`), and the listener judges a
prompt's completions while those of others are still being written. A test compares log-probabilities, loss and
gradients with those of stock TRL.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lewis_core.models.attention import use_shared_prefix
from lewis_core.models.continuation import Prompt
from lewis_core.models.features import ImageFeatures
from lewis_core.models.fusing import fuse
from lewis_core.models.packing import IGNORE, Group, batches, pack
from lewis_core.models.sampling import Sampler, Sampling, Written
from lewis_core.seeding import stable_seed
from lewis_core.training.processes import shards_weights
from lewis_core.training.prompts import prompt_tokens
from lewis_core.training.sharding import in_step
from lewis_core.training.trainer import Photos, Row, SpeakerTrainer

logger = logging.getLogger(__name__)
SCORED_TOKENS = 16_384
"""Tokens of one forward pass without gradients, at first; halved when memory runs out."""
Encode = Callable[[Sequence[str]], dict[str, ImageFeatures]]


class SharedPrefixTrainer(SpeakerTrainer):
    """GRPO of a speaker at the cost of its unique tokens.

    Args:
        encode: Photo references → vision features.
        own_rollouts: Write completions with the engine's sampler; it needs the whole model in this process.
        arguments: As for :class:`~lewis_core.training.trainer.SpeakerTrainer`.
    """

    def __init__(self, *, encode: Encode, own_rollouts: bool = True, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._encode = encode
        self._prompts: list[Prompt] = []  # distinct prompts of the current generation batch
        self._prompts_at_once: int | None = None  # of a rollout; None: all
        self._scored_tokens = SCORED_TOKENS
        self._writes_itself = own_rollouts and not self.use_vllm
        self._is_sharded = shards_weights()
        plain = self.accelerator.unwrap_model(self.model)
        self._sampler = Sampler(
            plain,
            image_token_id=self._image_token,
            pad_id=self._tokenizer.pad_token_id,
            eos_ids=self.eos_token_ids,
            banned=[self.model.config.image_token_id, self.model.config.video_token_id],
        )
        use_shared_prefix(plain)
        fuse(plain)
        if self.ref_model is not None:  # of full fine-tuning; an adapter is switched off instead
            reference = self.accelerator.unwrap_model(self.ref_model)
            use_shared_prefix(reference)
            fuse(reference)

    # Generation ------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        if self._listener is not None:
            self._listener.forget()
        return super()._generate_and_score_completions(inputs)

    def _tokenize(self, texts: Sequence[str], queries: Sequence[Photos]) -> list[list[int]]:
        features = self._encode(list(dict.fromkeys(photo for query in queries for photo in query)))
        self._prompts = []
        for text, query in zip(texts, queries, strict=True):
            images = tuple(features[photo] for photo in query)
            ids = prompt_tokens(self.processing_class, text, [len(image.tokens) for image in images])
            self._prompts.append(Prompt(ids, images))
        return [prompt.ids for prompt in self._prompts]

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], Any]:
        """Sample completions: each distinct prompt is read once, each completion has a seed of its own."""
        if not self._writes_itself:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations)
        first = self.accelerator.process_index * len(prompt_ids)
        seeds = [
            stable_seed(self.args.seed, "rollout", self.state.global_step, first + row)
            for row in range(len(prompt_ids))
        ]
        sampling = [Sampling(self.max_completion_length, self.temperature, seed) for seed in seeds]
        with self._together("rollout"):
            ids = [_with_end(one) for one in self._write(sampling)]
        self._clock.count("rollout", sum(map(len, ids)))
        return ids, None

    def _write(self, sampling: Sequence[Sampling]) -> list[Written]:
        """Write all completions together; fewer prompts at once when memory runs out."""
        written: dict[int, Written] = {}
        start = 0
        while start < len(self._prompts):
            part = range(start, min(start + (self._prompts_at_once or len(self._prompts)), len(self._prompts)))
            rows = [row for row, number in enumerate(self._prompt_of_row) if number in part]

            def finished(_: int, found: dict[int, Written], rows: Sequence[int] = rows) -> None:
                self._judge_ahead({rows[index]: one for index, one in found.items()})

            try:
                found = self._sampler.sample(
                    self._prompts[part.start : part.stop],
                    [self._prompt_of_row[row] - start for row in rows],
                    [sampling[row] for row in rows],
                    finished,
                    self.meeting.check,
                )
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self._prompts_at_once = len(part) // 2
                logger.warning("out of memory: rollouts go on with %d prompts at once", self._prompts_at_once)
                self._sampler.clear()
                if self._listener is not None:
                    self._listener.forget()
                written, start = {}, 0
                continue
            written.update(zip(rows, found, strict=True))
            start = part.stop
        return [written[row] for row in range(len(sampling))]

    def _judge_ahead(self, written: dict[int, Written]) -> None:
        """Ask the listener about a prompt's completions while others are still being written."""
        if self._listener is None:
            return
        rows = sorted(written)
        ids = [_with_end(written[row]) for row in rows]
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)  # as TRL does
        asked = [self._rows[row] for row in rows]
        self._listener.begin(rows, texts, [row["candidates"] for row in asked], [row["category_word"] for row in asked])

    # Log-probabilities -----------------------------------------------------------------------------------------

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
        """Log-probabilities (rows, completion length) and entropies from packed groups; 0 where rows are masked.

        One token is read even if all rows are masked; its numbers count for nothing.
        """
        mask = attention_mask[:, -logits_to_keep:].bool()
        completions = [ids[m].cpu() for ids, m in zip(input_ids[:, -logits_to_keep:], mask, strict=True)]
        if not any(map(len, completions)):  # all are masked: a pass all the same, as in other processes, with a graph
            completions[0] = input_ids[0, -1:].cpu()
        members: dict[int, list[int]] = {}
        for row, completion in enumerate(completions):
            if len(completion):  # masked rows are left out
                members.setdefault(self._prompt_of_row[row], []).append(row)
        groups = [
            Group.of_completions(self._prompts[number], [completions[row] for row in of_prompt])
            for number, of_prompt in members.items()
        ]
        part = "update" if torch.is_grad_enabled() else "reference"
        logps = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
        entropies = torch.zeros_like(logps)
        with self._together(part, meets=torch.is_grad_enabled()):
            self._clock.count(part, sum(group.tokens for group in groups))
            order = [row for of_prompt in members.values() for row in of_prompt]
            at = _places(order, completions, logps.device)
            read = self._read if torch.is_grad_enabled() else self._read_in_parts
            values, of_entropy = read(model, groups)
            logps, entropies = logps.index_put(at, values), entropies.index_put(at, of_entropy)
        return logps, entropies if compute_entropy else None, None

    def _read_in_parts(self, model: Any, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """As :meth:`_read`, a number of tokens at a time."""
        if self._is_sharded:  # all processes run the model equally often, and go on or stop together
            found = in_step(list(batches(groups, self._scored_tokens)), lambda batch: self._read(model, batch))
            return torch.cat([logps for logps, _ in found]), torch.cat([entropies for _, entropies in found])
        while True:
            try:
                found = [self._read(model, batch) for batch in batches(groups, self._scored_tokens)]
            except torch.OutOfMemoryError:
                if self._scored_tokens <= min(group.prompt_tokens for group in groups):
                    raise
                self._scored_tokens //= 2
                logger.warning("out of memory: %d tokens are read at once from now on", self._scored_tokens)
                continue
            return torch.cat([logps for logps, _ in found]), torch.cat([entropies for _, entropies in found])

    def _read(self, model: Any, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the completions' tokens, one after the other."""
        plain = self.accelerator.unwrap_model(self.model)
        packed = pack(plain, groups, self._image_token)
        with self.accelerator.autocast():
            out = model(**packed.forward_arguments(plain), shift_labels=packed.labels, fused_lm_head=True)
        kept = packed.labels != IGNORE
        # a reference model tells no entropy, and none is asked for
        entropy = torch.zeros_like(out.log_probs) if out.entropy is None else out.entropy
        return out.log_probs[kept].float(), entropy[kept].float()


def _with_end(written: Written) -> list[int]:
    return written.ids if written.end is None else [*written.ids, written.end]


def _places(order: Sequence[int], completions: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every completion token, for rows in packed order."""
    lengths = torch.tensor([len(completions[row]) for row in order])
    rows = torch.repeat_interleave(torch.tensor(order), lengths)
    columns = torch.cat([torch.arange(length) for length in lengths.tolist()])
    return rows.to(device), columns.to(device)
