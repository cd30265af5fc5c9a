"""Gradients that DeepSpeed's ZeRO-2 judges one by one are joined before: the GPU waits while Python goes through them.

Before every update DeepSpeed looks into each gradient for numbers that are not finite, and takes its norm: some 15
kernels for each of the 392 tensors of an adapter of Qwen2-VL-7B, which take longer to start than to run. Joined, the
same numbers are a handful of tensors. What DeepSpeed does with them, and what comes out, stays the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

MOST = 1 << 25
"""Numbers of a joined gradient. DeepSpeed copies it to float64 for its norm: 0.25 GiB."""


class JoinGradients(TrainerCallback):
    """Has the gradients of ZeRO-2 joined from the first update on."""

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """The optimizer is DeepSpeed's now, in accelerate's wrapper."""
        join_before_steps(optimizer.optimizer)


def join_before_steps(optimizer: Any) -> None:
    """Let DeepSpeed's optimizer of ZeRO-2 find its averaged gradients joined when it steps."""
    step = optimizer.step

    def joined_step(*arguments: Any, **named: Any) -> Any:
        for group, gradients in optimizer.averaged_gradients.items():
            if gradients is not None:
                optimizer.averaged_gradients[group] = join(gradients)
        return step(*arguments, **named)

    optimizer.step = joined_step


def join(gradients: Sequence[Tensor], most: int = MOST) -> list[Tensor]:
    """Join neighbours, in their order; one with more numbers than ``most`` stays as it is.

    >>> [tensor.tolist() for tensor in join([torch.ones(1, 2), torch.zeros(1), torch.ones(4), torch.zeros(1)], most=3)]
    [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0]]
    """
    parts: list[list[Tensor]] = []
    size = 0
    for gradient in gradients:
        size += gradient.numel()
        if not parts or size > most or gradient.dtype != parts[-1][0].dtype:
            parts.append([])
            size = gradient.numel()
        parts[-1].append(gradient)
    return [torch.cat([gradient.reshape(-1) for gradient in part]) if len(part) > 1 else part[0] for part in parts]
