"""Settings of GPUs: which there are, and who shares one."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lewis_core.config.base import FrozenConfig


class GpuConfig(FrozenConfig):
    """GPUs of a machine. Two runs never use the same one; without a GPU nothing here does anything."""

    ids: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Those that runs may take; ``None``: all that are visible (CUDA_VISIBLE_DEVICES counts)."""
    services: Literal["own_if_free", "shared"] = "own_if_free"
    """Whether a model service takes a GPU of its own when one is free, or always shares one that its run has. A service
    never waits for a second GPU: if none is free, it shares."""
    max_wait_s: float | None = Field(default=None, gt=0)
    """Longest wait for GPUs that other runs have; ``None``: as long as it takes."""
    lock_dir: Path | None = None
    """Folder of the locks, the same for all runs of a machine; ``None``: ``lewis-gpus`` among temporary files."""
    limit: str | None = None
    """Name of a Prefect global concurrency limit that counts the GPUs of all machines; ``None``: none does.
    It has to exist: ``prefect gcl create NAME --limit N``."""
