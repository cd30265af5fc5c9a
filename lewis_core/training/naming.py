"""The name under which people know a trained model, e.g. ``Qwen2.5-VL-7B_GRPO_lewis_PerVA_seed_23_r64_a128``."""

import re

from lewis_core.config.data import SourceConfig
from lewis_core.config.grpo import GrpoConfig
from lewis_core.config.training import TrainSpeakerConfig


def dataset_name(source: SourceConfig) -> str:
    """What the photos are called: their folder's name, or ``pocket``."""
    return "pocket" if source.type == "pocket" else source.root.expanduser().absolute().name


def trained_name(config: GrpoConfig, dataset: str) -> str:
    """Name what a training makes, from its settings alone.

    Args:
        config: Of a speaker's or a listener's training.
        dataset: What the photos are called.

    Returns:
        ``<base>_GRPO_lewis_<dataset>_seed_<seed>_r<rank>_a<alpha>``; ``_GRPO_listener_…`` for a listener, ``_full`` at
        the end where all weights are trained. Signs that file names and registries do not take become ``-``.

    Source:
        The reference's names of its result folders.
    """
    base = config.model.path.rstrip("/").rpartition("/")[2].removesuffix("-Instruct")
    game = "lewis" if isinstance(config, TrainSpeakerConfig) else "listener"
    size = "full" if config.full_finetuning else f"r{config.lora.r}_a{config.lora.alpha}"
    return re.sub(r"[^\w.-]+", "-", f"{base}_GRPO_{game}_{dataset}_seed_{config.seed}_{size}")
