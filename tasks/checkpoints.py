"""Checkpoints that may be evaluated: versions in the model registry, adapter folders that appear under a folder."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lewis_core.config.base import ModelRef
from lewis_core.config.reevaluation import ReevaluationConfig
from lewis_core.errors import ConfigError, ModelError
from lewis_core.models.adapters import adapter_digest, find_adapters, foreign_base, seconds_since_change
from tasks.registry import EVALUATION, PROMOTED, Registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """An adapter that somebody trained."""

    label: str
    """Name for people, e.g. ``lewis-speaker 3``."""
    origin: str
    """Where it comes from."""
    adapter: Path | None = None
    """Its folder; ``None`` if it is skipped."""
    version: str | None = None
    """Its number in the registry, if it is there."""
    skipped: str = ""
    """Why it is not evaluated."""
    is_retired: bool = False
    """Whether it was the champion once."""
    noted: str = ""
    """Which evaluation the registry knows about."""


def find_checkpoints(config: ReevaluationConfig, base: ModelRef, registry: Registry | None) -> list[Checkpoint]:
    """Find all checkpoints; those that cannot be evaluated come with the reason.

    Args:
        config: Where to look.
        base: The model that they must have been trained on.
        registry: The model registry; ``None`` if it is not asked.

    Returns:
        Registered ones by version, then the others by path; the same files are listed once.

    Raises:
        ConfigError: If the watched folder is not there.
        TrackingError: If the registry cannot be asked.
    """
    found = list(registered(registry, base)) if registry is not None else []
    known = {adapter_digest(one.adapter) for one in found if one.adapter is not None}
    for one in watched(config, base):
        if one.adapter is not None:
            digest = adapter_digest(one.adapter)
            if digest in known:
                continue
            known.add(digest)
        found.append(one)
    for one in found:
        if one.skipped:
            logger.warning("%s is skipped: %s", one.label, one.skipped)
    return found


def registered(registry: Registry, base: ModelRef) -> Iterator[Checkpoint]:
    """Versions in the registry, oldest first."""
    for version in registry.versions():
        label = f"{registry.name} {version.version}"
        origin, number = f"models:/{registry.name}/{version.version}", str(version.version)
        if reason := registry.why_not(version, base):
            yield Checkpoint(label, origin, version=number, skipped=reason)
            continue
        try:
            adapter = registry.adapter(version, base)
        except ModelError as error:
            yield Checkpoint(label, origin, version=number, skipped=str(error))
        else:
            noted = version.tags.get(EVALUATION, "")
            yield Checkpoint(label, origin, adapter, number, is_retired=PROMOTED in version.tags, noted=noted)


def watched(config: ReevaluationConfig, base: ModelRef) -> Iterator[Checkpoint]:
    """Adapter folders below the watched one; half-written ones are left alone.

    Raises:
        ConfigError: If the watched folder is not there.
    """
    if config.watch is None:
        return
    root = config.watch.expanduser().absolute()
    if not root.is_dir():
        raise ConfigError(f"reevaluation.watch: there is no folder {config.watch}; make it, or set another")
    for folder in find_adapters(root):
        label = folder.relative_to(root).as_posix() if folder != root else folder.name
        try:
            quiet_s = seconds_since_change(folder)
            if quiet_s < config.settle_s:
                wait = f"changed {quiet_s:.0f} s ago, and {config.settle_s:g} s of rest are asked for (settle_s)"
                yield Checkpoint(label, str(folder), skipped=f"it is still being written: {wait}")
            elif reason := foreign_base(folder, base):
                yield Checkpoint(label, str(folder), skipped=reason)
            else:
                yield Checkpoint(label, str(folder), folder)
        except (ModelError, OSError) as error:
            yield Checkpoint(label, str(folder), skipped=str(error))
