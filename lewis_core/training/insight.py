"""What a step cost: shares of its time, the listener's latency, memory and utilisation of the GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from lewis_core.models.features import backbone
from lewis_core.training.clock import PARTS_OF_SHARE

PEAK_TFLOPS = {
    "H200": 989.0,
    "H200 NVL": 835.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "A40": 150.0,
    "RTX A6000": 155.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "L4": 121.0,
    "A10": 125.0,
    "V100": 125.0,
    "T4": 65.0,
}
"""Dense bfloat16 (or float16) tera-operations a second by name of the GPU, as their makers state them."""


def peak_flops(device_name: str) -> float | None:
    """Operations a second that a GPU could do; ``None`` if it is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    """
    names = sorted(PEAK_TFLOPS, key=len, reverse=True)
    found = next((name for name in names if name in device_name), None)
    return PEAK_TFLOPS[found] * 1e12 if found else None


def step_flops(tokens: Mapping[str, float], parameters: float, *, trains_all: bool) -> float:
    """Operations that a step needs, whatever is computed again: two for each weight and token, four for its gradient.

    Attention's own operations, the vision tower and prefills of rollouts are left out, so the number errs on the low
    side. An adapter's step needs no gradient of the frozen weights: two operations instead of four.

    Args:
        tokens: Tokens by part of the step: ``rollout``, ``reference``, ``update``.
        parameters: Weights of the language model and its head.
        trains_all: Whether these weights are trained.
    """
    backward = 4 if trains_all else 2
    forward_only = tokens.get("rollout", 0.0) + tokens.get("reference", 0.0)
    return parameters * (2 * forward_only + (2 + backward) * tokens.get("update", 0.0))


@dataclass(frozen=True)
class Utilisation:
    """What is needed to say how busy this process' GPU was."""

    parameters: float
    trains_all: bool
    peak: float | None
    """Operations a second that the GPU could do; ``None``: no GPU, or an unknown one."""


def utilisation_of(model: Any, *, trains_all: bool) -> Utilisation:
    """Count a model's weights and look its GPU up."""
    language = backbone(model).language_model
    count = sum(getattr(p, "ds_numel", p.numel()) for name, p in language.named_parameters() if "lora_" not in name)
    device = backbone(model).device
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return Utilisation(float(count), trains_all, peak)


def derive(logs: Mapping[str, Any], step_s: float, latencies_s: Sequence[float], how: Utilisation) -> dict[str, float]:
    """Say what a step cost.

    Args:
        logs: What the trainer logged, with ``seconds/…`` and ``tokens_per_s/…``.
        step_s: Seconds of the step.
        latencies_s: Seconds of each request to the listener.
        how: Model and GPU.

    Returns:
        ``share/<part>`` of the step's time, ``latency/mean_s`` and ``latency/max_s`` of the listener, and on a GPU
        ``gpu/peak_memory_gib`` of the step and ``gpu/mfu``.
    """
    found = {f"share/{part}": logs.get(f"seconds/{part}", 0.0) / step_s for part in PARTS_OF_SHARE if step_s > 0}
    tokens = {part: logs.get(f"tokens_per_s/{part}", 0.0) * logs.get(f"seconds/{part}", 0.0) for part in PARTS_OF_SHARE}
    if step_s > 0:
        found["tokens_per_s/step"] = sum(tokens.values()) / step_s
    if latencies_s:
        found |= {"latency/mean_s": fmean(latencies_s), "latency/max_s": max(latencies_s)}
    if how.peak is not None and step_s > 0:
        flops = step_flops(tokens, how.parameters, trains_all=how.trains_all)
        found["gpu/mfu"] = flops / (step_s * how.peak)
    if torch.cuda.is_available():
        found["gpu/peak_memory_gib"] = torch.cuda.max_memory_allocated() / (1 << 30)
        torch.cuda.reset_peak_memory_stats()
    return found
