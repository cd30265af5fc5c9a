"""ZeRO-2's gradients are joined before DeepSpeed goes through them one by one."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lewis_core.training.joining import JoinGradients, join


def test_neighbours_are_joined_and_large_ones_are_not_copied() -> None:
    shapes = [(2, 3), (4,), (1, 2), (20,), (5,), (5,), (1,)]
    gradients = [torch.randn(shape) for shape in shapes]
    found = join(gradients, most=12)
    assert [tensor.numel() for tensor in found] == [12, 20, 11]
    assert found[1] is gradients[3]
    assert torch.equal(torch.cat(found), torch.cat([gradient.flatten() for gradient in gradients]))
    assert join([]) == []


def test_precisions_are_not_mixed() -> None:
    found = join([torch.ones(1), torch.ones(1, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)])
    assert [(tensor.dtype, tensor.numel()) for tensor in found] == [(torch.float32, 1), (torch.bfloat16, 3)]


def test_deepspeed_steps_on_joined_gradients() -> None:
    seen: list[tuple[dict[int, list[Tensor] | None], Any]] = []
    optimizer = SimpleNamespace(averaged_gradients={0: [torch.ones(2, 2), torch.zeros(3)], 1: None})
    optimizer.step = lambda closure=None: seen.append((dict(optimizer.averaged_gradients), closure))
    JoinGradients().on_train_begin(None, None, None, optimizer=SimpleNamespace(optimizer=optimizer))
    optimizer.step(closure="as it was")
    [(gradients, closure)] = seen
    assert closure == "as it was"
    assert gradients[1] is None
    assert gradients[0] is not None
    assert [tensor.tolist() for tensor in gradients[0]] == [[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
