"""The GPU kernels in Triton's interpreter, against the same written plainly."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

PROGRAM = """
import json
import torch
from torch.nn import functional as F
from lewis_core.models import adapter_kernels, drawing_kernels, kernels, product_kernels
from lewis_core.models.adapted import AdaptedMlp
from lewis_core.models.decoding import draw

torch.manual_seed(0)
found = {}


def compare(name, ours, plain, *inputs):
    one, other = ours(*inputs), plain(*inputs)
    gradient = torch.randn_like(other)
    pairs = zip(torch.autograd.grad(one, inputs, gradient), torch.autograd.grad(other, inputs, gradient))
    found[name] = max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in [(one, other), *pairs])


def rotate(x):
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


both = lambda turn: lambda x: torch.cat(turn(x[:, :3], x[:, 3:-2]), 1)  # parts of one tensor, with strides
ours, plain = both(lambda q, k: kernels.Rotate.apply(q, k, cos, sin)), both(lambda *x: tuple(map(rotate, x)))
for size in (16, 64, 72, 80):
    angles = torch.randn(5, size // 2)
    cos, sin = (torch.cat([x, x], -1) for x in (angles.cos(), angles.sin()))
    compare(f"rotation of {size}", ours, plain, torch.randn(5, 7, size, requires_grad=True))
wide = torch.randn(9, 2, 301, requires_grad=True)
gated = lambda x: F.silu(x[:, 0]) * x[:, 1]
compare("gate", lambda x: kernels.Gate.apply(x[:, 0], x[:, 1]), gated, wide)
whole = torch.randn(2, 3, 4, 301).requires_grad_()
compare("gate of whole rows", kernels.Gate.apply, lambda x, y: F.silu(x) * y, *whole)
x, other, weight = torch.randn(2, 3, 40), torch.randn(2, 3, 50)[..., :40], torch.randn(40)
for added in (None, other):
    total, out = kernels.add_norm(x, added, weight, 1e-6)
    expected = x if added is None else x + other
    assert torch.equal(total, expected)
    found[f"norm {added is None}"] = (out - F.rms_norm(expected, (40,), weight, 1e-6)).abs().max().item()
    out = kernels.add_norm(x + 3, added, weight, 1e-6, weight.flip(0))[1]
    expected = F.layer_norm(expected + 3, (40,), weight, weight.flip(0), 1e-6)
    found[f"norm with bias {added is None}"] = (out - expected).abs().max().item()
wide = 3 * torch.randn(7, 293)
expected = wide * torch.sigmoid(1.702 * wide)
assert kernels.quick_gelu_(wide) is wide
found["QuickGELU"] = (wide - expected).abs().max().item()

repeats, size, length, room = 3, 16, 150, 128
for prompts, groups, slots, at in ((2, 2, 1, 0), (2, 1, 2, 70), (1, 1, 24, 1)):
    rows = prompts * slots
    query = torch.randn(rows, groups * repeats, size)
    key, value = torch.randn(rows, groups, size), torch.randn(rows, groups + 1, size)[:, :groups]
    prompt = tuple(torch.randn(2, prompts, groups, length, size))
    own = tuple(torch.randn(2, prompts, groups, slots, room, size))
    hidden = torch.zeros(prompts, length)
    hidden[0, :140] = torch.finfo(torch.float32).min
    out = kernels.decode(query, key, value, prompt, own, hidden, torch.tensor([at]), 0.25)
    stored = [x[..., at, :].transpose(1, 2).reshape(rows, groups, size) for x in own]
    assert torch.equal(stored[0], key) and torch.equal(stored[1], value)
    keys, values = (
        torch.cat([x[:, :, None].expand(-1, -1, slots, -1, -1), y[..., : at + 1, :]], 3) for x, y in zip(prompt, own)
    )
    mask = F.pad(hidden, (0, at + 1))[:, None, None, None]
    folded = query.view(prompts, slots, groups, repeats, size).transpose(1, 2)
    weights = (folded @ keys.transpose(3, 4) * 0.25 + mask).softmax(-1)
    expected = (weights @ values).transpose(1, 2).reshape_as(out)
    found[f"decoding, {slots} slots, token {at}"] = (out - expected).abs().max().item()

rank, width = 16, 72
for count in (3, 70, 300):
    rows, after = torch.randn(count, 2 * (width + rank) + 5)[:, :-5], torch.randn(2 * width, 2 * rank) / 4
    after[:width, rank:] = after[width:, :rank] = 0
    gate, up = (rows[:, : 2 * width] + rows[:, 2 * width :] @ after.T).split(width, 1)
    gated = adapter_kernels.gate(rows, after, rank)
    found[f"gate with adapters, {count} rows"] = (gated - F.silu(gate) * up).abs().max().item()

width = 330
shapes = [(width, 24), (width,), (rank, 24), (width, rank)] * 2 + [(24, width), (24,), (rank, width), (24, rank)]
tensors = [torch.randn(shape) / 4 for shape in shapes]
for number in (2, 3, 6, 7, 10, 11):
    tensors[number].requires_grad_()
tensors[9] = None  # bias of the last layer


def mlp(x, *adapters):
    def linear(x, at):
        weight, bias = tensors[at : at + 2]
        return F.linear(x, weight, bias) + 1.5 * F.linear(F.linear(x, tensors[at + 2]), tensors[at + 3])

    return linear(F.silu(linear(x, 0)) * linear(x, 4), 8)


adapters = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
for count in (3, 290):
    x = torch.randn(1, count, 24, requires_grad=True) / 4
    compare(f"mlp, {count} rows", lambda x, *_: AdaptedMlp.apply(x, 1.5, *tensors), mlp, x, *adapters)

heads, groups, size = 3, 2, 32
outputs = (heads + 2 * groups) * size
bounds = [0, heads * size, (heads + groups) * size, outputs]
for count, turns in ((3, 3), (70, 70), (4, 1)):
    rows, after = torch.randn(count, outputs + 3 * rank), torch.zeros(outputs, 3 * rank)
    for part, (start, end) in enumerate(zip(bounds, bounds[1:])):
        after[start:end, part * rank : (part + 1) * rank] = torch.randn(end - start, rank)
    angles = torch.randn(turns, size // 2)
    cos, sin = (torch.cat([x, x], -1) for x in (angles.cos(), angles.sin()))
    whole = (rows[:, :outputs] + rows[:, outputs:] @ after.T).view(count, -1, size).split([heads, groups, groups], 1)
    made = adapter_kernels.heads(rows, after, rank, cos, sin, (heads, groups, size))
    for name, one, other in zip("qkv", made, (rotate(whole[0]), rotate(whole[1]), whole[2])):
        found[f"{name} with adapters, {count} rows"] = (one - other).abs().max().item()

for count, width, parts in ((3, 70, 1), (64, 150, 2), (20, 64, 3)):
    x, weight = torch.randn(count, 768 + 8)[:, :768], torch.randn(width + 16, 768) / 28
    bias, after = torch.randn(width + 16) if parts == 1 else None, torch.randn(width, 16)
    sums = product_kernels.multiply(x, weight, bias, product_kernels.Plan(parts, 3))
    expected = F.linear(x, weight, bias)
    assert len(sums) == parts
    found[f"product of {count} rows"] = (sums.sum(0) - expected).abs().max().item()
    joined = expected[:, :width] + expected[:, width:] @ after.T
    found[f"{parts} parts and an adapter"] = (product_kernels.join(sums, after) - joined).abs().max().item()

rows, length, step = 6, 5, 2
drawing_kernels.PART = 64
for vocabulary, draws in ((301, True), (64, True), (17, True), (301, False)):
    logits = 4 * torch.randn(rows, vocabulary + 3)[:, :-3]
    hidden = torch.zeros(vocabulary, dtype=torch.bool)
    hidden[:2] = hidden[-1] = True  # a part of its own in the vocabulary of 301
    warmth = torch.tensor([0.0, 0.5, 1.0, 2.0, 1.0, 1.0]) * draws
    chances = torch.rand(rows, length, dtype=torch.float64)
    chances[2, step], chances[3, step] = 0.0, 1 - 2**-53
    scaled = (logits / torch.where(warmth > 0, warmth, 1.0)[:, None]).masked_fill(hidden, -torch.inf)
    expected = torch.where(warmth > 0, draw(scaled.softmax(-1), chances[:, step : step + 1]), scaled.argmax(-1))
    state = drawing_kernels.Rows(
        warmth, chances, torch.tensor([9, 3, 9, 9, 9, 9]), torch.full((rows, length), -1), torch.zeros(rows, length),
        torch.full((rows,), step), torch.tensor([False] * 5 + [True]), torch.full((rows,), -1), torch.arange(rows),
    )
    ends = expected[:1].clone()
    drawing_kernels.choose(logits, hidden, ends, torch.tensor([step]), state, draws=draws)
    expected[5] = 0  # a row that has ended
    assert torch.equal(state.newest, expected) and torch.equal(state.tokens[:, step], expected), (state, expected)
    assert (state.tokens[:, [0, 1, 3, 4]] == -1).all() and not state.logps[:, [0, 1, 3, 4]].any()
    assert state.lengths.tolist() == [3] * 5 + [2] and state.positions.tolist() == [1, 2, 3, 4, 5, 6]
    over = (expected == ends) | torch.tensor([False, True, False, False, False, True])
    assert torch.equal(state.done, over) and state.done.dtype == torch.bool
    wanted = scaled.log_softmax(-1).gather(1, expected[:, None])[:5, 0]
    found[f"log-probabilities of {vocabulary}, {draws}"] = (state.logps[:5, step] - wanted).abs().max().item()
print(json.dumps(found))
"""


def test_kernels_compute_what_is_written_plainly() -> None:
    """In a process of its own: the interpreter is chosen when Triton is loaded."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == 38
    assert max(found.values()) < 1e-5, found
