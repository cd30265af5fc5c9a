"""Products by oneDNN: torch's own numbers, where they gain; everything else is left to torch."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewis_core.models import wide_products
from lewis_core.models.wide_products import add_product_, linear, takes, widen

is_wide = pytest.mark.skipif(not wide_products._is_wide(), reason="needs a CPU of AMD's with AVX-512")


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_products, "LEAST_WEIGHT", 0)


def weights() -> dict[str, Tensor]:
    """(12, 20) in the layouts of a layer's weight, of its transpose in a gradient, and of a stack's part."""
    torch.manual_seed(0)
    return {"plain": torch.randn(12, 20), "transposed": torch.randn(20, 12).t(), "part": torch.randn(40, 20)[7:19]}


@pytest.mark.parametrize("layout", weights())
@pytest.mark.parametrize("shape", [(9, 20), (2, 3, 20), (1, 20), (0, 20)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_are_torchs(layout: str, shape: tuple[int, ...], has_bias: bool) -> None:
    weight, bias = weights()[layout], torch.randn(12) if has_bias else None
    x, strided = torch.randn(shape), torch.randn(*shape[:-1], 31)[..., 5:25]
    for rows in (x, strided):
        torch.testing.assert_close(linear(rows, weight, bias), F.linear(rows, weight, bias))
    total = torch.randn(9, 12)
    expected = total + torch.ones(9, 20) @ weight.t()
    assert add_product_(total, torch.ones(9, 20), weight) is total
    torch.testing.assert_close(total, expected)


@is_wide
def test_what_gains_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(9, 20), weights()["plain"]
    assert takes(x, weight)
    assert not takes(x.double(), weight.double())
    assert not takes(x, weight.double())
    assert not takes(torch.randn(20, 9).t(), weight)
    assert not takes(x[:1], weight)
    assert not takes(x, weight.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not takes(x, weight)
    assert not takes(x, torch.randn(12, 30)[:, :20])  # which would cost a thousand times as much
    monkeypatch.setattr(wide_products, "LEAST_WEIGHT", 12 * 20 + 1)
    assert not takes(x, weight)


@is_wide
@pytest.mark.parametrize("rows", [2, 3, 7, 16, 33, 100])
def test_a_row_does_not_depend_on_how_many_there_are(rows: int) -> None:
    """Bit for bit: a run that goes on encodes other photos together than one that was not stopped."""
    torch.manual_seed(0)
    x = torch.randn(300, 160)
    for outputs, layout in ((160, "plain"), (480, "plain"), (192, "transposed")):
        weight = torch.randn(outputs, 160) if layout == "plain" else torch.randn(160, outputs).t()
        assert takes(x, weight)
        assert torch.equal(linear(x[:rows].clone(), weight), linear(x, weight)[:rows])


def test_layers_keep_their_gradients() -> None:
    model = nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3, bias=False))
    x = torch.randn(5, 20, requires_grad=True)
    expected = model(x)
    gradients = torch.autograd.grad(expected.sum(), (x, *model.parameters()))
    assert widen(model.modules()) == 2
    assert widen(model.modules()) == 0
    again = torch.autograd.grad(model(x).sum(), (x, *model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


@is_wide
def test_layers_ask_for_them_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, compiled = nn.Linear(20, 12), nn.Sequential(nn.Linear(20, 12))
    compiled._compiled_call_impl = compiled._call_impl  # as torch does
    asked: list[int] = []
    monkeypatch.setattr(wide_products, "takes", lambda *_: asked.append(1))
    assert widen([nn.Sequential(layer, compiled), nn.ReLU()]) == 1
    layer(torch.randn(5, 20))
    assert not asked
    with torch.inference_mode():
        layer(torch.randn(5, 20))
        compiled[0](torch.randn(5, 20))
    assert len(asked) == 1


@is_wide
def test_rows_in_all_numbers_fill_no_memory() -> None:
    """Left to itself, oneDNN would keep half a megabyte for each of them, twice."""
    program = """
import psutil, torch
from lewis_core.models.wide_products import linear
torch.set_num_threads(1)
weights = [torch.randn(512, 192), torch.randn(192, 512)]
def run(counts):
    for count in counts:
        linear(linear(torch.randn(count, 192), weights[0]), weights[1])
    return psutil.Process().memory_info().rss
before = run(range(600, 700))
print((run(range(700, 1100)) - before) >> 20)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert int(run.stdout) < 150
