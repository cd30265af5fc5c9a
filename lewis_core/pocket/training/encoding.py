"""Exercises to token ids, in batches of fixed shape.

A training step always has the same shape, so that it can be recorded once as a CUDA graph: rows
are grouped by length, and a fixed number of answer tokens of each group is supervised.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lewis_core.pocket.tasks import TASKS, Exercise
from lewis_core.pocket.training.assets import NUM_VISUAL
from lewis_core.pocket.world import Facts

IGNORED = -100
TASK_NAMES = tuple(TASKS)
Ids = NDArray[np.int64]


class Group(NamedTuple):
    """Rows of one padded length: how many of each task, and how many tokens are supervised."""

    length: int
    rows_by_task: Mapping[str, int]
    num_supervised: int
    has_image: bool = True


GROUPS: Mapping[str, Group] = {
    "short": Group(64, {"list": 112, "open": 64}, 2560),
    "speak": Group(128, {"speak": 96}, 4200),
    "match": Group(104, {"match": 336, "recognise": 96}, 864),
    "vqa": Group(112, {"vqa": 64}, 128),
    "identify": Group(320, {"identify": 36}, 72),
    "text": Group(112, {"vqa_text": 48, "judge_state": 12, "judge_location": 12}, 144, False),
}
LOSS_WEIGHTS: Mapping[str, float] = {
    "list": 1.0,
    "open": 0.3,
    "speak": 0.6,
    "match": 1.0,
    "recognise": 0.3,
    "identify": 0.4,
    "vqa": 0.3,
    "vqa_text": 0.3,
    "judge_state": 0.1,
    "judge_location": 0.1,
}


class GroupBatch(NamedTuple):
    """One group of a step; R rows of L tokens, S supervised tokens.

    ``ids`` (R, L), ``images`` (R,) rows of the step's images, ``positions`` (S,) into the flattened
    hidden states, ``targets`` (S,), ``weights`` (S,) that sum to the tasks' loss weights, and
    ``tasks`` (S,) indices of :data:`TASK_NAMES`. Unused supervised slots have weight 0.
    """

    ids: Ids
    images: Ids
    positions: Ids
    targets: Ids
    weights: NDArray[np.float32]
    tasks: Ids


class StepBatch(NamedTuple):
    """One training step: indices of its images in the stream, and its groups by name."""

    image_indices: Ids
    groups: dict[str, GroupBatch]


class ExerciseEncoder:
    """Turns exercises into the token ids that the processor's chat template would give."""

    def __init__(self, tokenizer_file: Path) -> None:
        """Read a ``tokenizer.json``."""
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        image = "<|vision_start|>" + "<|image_pad|>" * NUM_VISUAL + "<|vision_end|>"
        self.head_with_image = self.encode("<|im_start|>user\n" + image)
        self.head_without_image = self.encode("<|im_start|>user\n")
        self.middle = self.encode("<|im_end|>\n<|im_start|>assistant\n")
        self.end = self.encode("<|im_end|>")
        self.pad = self.encode("<|endoftext|>")[0]
        self.yes, self.no = self.encode("yes")[0], self.encode("no")[0]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_exercises(self, exercises: Sequence[Exercise]) -> list[tuple[list[int], list[int]]]:
        """Return the ids of prompts and answers, answers with the end token."""
        texts = [text for exercise in exercises for text in exercise[:2]]
        encoded = [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        pairs = []
        for row, exercise in enumerate(exercises):
            head = self.head_with_image if exercise.has_image else self.head_without_image
            prompt = [*head, *encoded[2 * row], *self.middle]
            pairs.append((prompt, [*encoded[2 * row + 1], *self.end]))
        return pairs

    def pad_batch(self, exercises: Sequence[Exercise]) -> tuple[Ids, Ids]:
        """Return right-padded ids and labels ``(B, L)``; labels ignore all but the answers."""
        pairs = self.encode_exercises(exercises)
        length = max(len(prompt) + len(answer) for prompt, answer in pairs)
        ids = np.full((len(pairs), length), self.pad, np.int64)
        labels = np.full((len(pairs), length), IGNORED, np.int64)
        for row, (prompt, answer) in enumerate(pairs):
            end = len(prompt) + len(answer)
            ids[row, :end] = prompt + answer
            labels[row, len(prompt) : end] = answer
        return ids, labels


class _GroupWriter:
    """Fills the arrays of one group."""

    def __init__(self, group: Group, num_rows: int, num_supervised: int, pad: int) -> None:
        self.length, self.capacity = group.length, num_supervised
        ids = np.full((num_rows, group.length), pad, np.int64)
        empty = [np.zeros(num_supervised, np.int64) for _ in range(3)]
        weights = np.zeros(num_supervised, np.float32)
        images = np.zeros(num_rows, np.int64)
        self.batch = GroupBatch(ids, images, empty[0], empty[1], weights, empty[2])
        self.row = self.filled = 0

    def add(self, prompt: list[int], answer: list[int], image: int) -> None:
        """Write one row; answer tokens beyond the capacity are not supervised."""
        batch, row = self.batch, self.row
        batch.ids[row, : len(prompt) + len(answer)] = prompt + answer
        batch.images[row] = image
        kept = min(len(answer), self.capacity - self.filled)
        start = row * self.length + len(prompt) - 1
        batch.positions[self.filled : self.filled + kept] = start + np.arange(kept)
        batch.targets[self.filled : self.filled + kept] = answer[:kept]
        self.row, self.filled = row + 1, self.filled + kept

    def close_task(self, task: str, start: int) -> None:
        """Weight the tokens written since ``start`` so that the task's loss is a mean."""
        count = max(1, self.filled - start)
        self.batch.weights[start : self.filled] = LOSS_WEIGHTS[task] / count
        self.batch.tasks[start : self.filled] = TASK_NAMES.index(task)


def build_step(
    encoder: ExerciseEncoder,
    rng: np.random.Generator,
    facts_of: Callable[[int], Facts],
    image_range: tuple[int, int],
    num_images: int,
    scale: float = 1.0,
) -> StepBatch:
    """Make one training step of fixed shape.

    Args:
        encoder: Tokenizer and chat layout.
        rng: Draws images and exercises.
        facts_of: Facts of an image of the stream, by index.
        image_range: First and one past the last index to draw from.
        num_images: Images of the step; several rows share one.
        scale: Of the number of rows.

    Returns:
        The step; its shapes depend on ``num_images`` and ``scale`` only.
    """
    indices = rng.integers(*image_range, num_images).astype(np.int64)
    facts = [facts_of(int(index)) for index in indices]
    groups = {}
    for name, group in GROUPS.items():
        rows_by_task = {t: max(1, int(n * scale)) for t, n in group.rows_by_task.items()}
        capacity = int(group.num_supervised * scale) + 64
        writer = _GroupWriter(group, sum(rows_by_task.values()), capacity, encoder.pad)
        for task, num_rows in rows_by_task.items():
            start = writer.filled
            images = [int(image) for image in rng.integers(0, num_images, num_rows)]
            exercises = [TASKS[task](rng, facts[image]) for image in images]
            pairs = encoder.encode_exercises(exercises)
            for image, (prompt, answer) in zip(images, pairs, strict=True):
                while len(prompt) + len(answer) > group.length:
                    redrawn = [TASKS[task](rng, facts[image])]
                    prompt, answer = encoder.encode_exercises(redrawn)[0]  # noqa: PLW2901
                writer.add(prompt, answer, image)
            writer.close_task(task, start)
        groups[name] = writer.batch
    return StepBatch(indices, groups)
