"""Random weights → the three embedded pocket models; about ten minutes on one large GPU.

Settings are those of :class:`PocketModelsSettings`; only departures from the shipped models' own need be given::

    output_dir = "runs/pocket-models"

    [base]
    learn_seconds = 600
"""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from prefect import flow, task
from pydantic import ValidationError

from flows.settings import apply_override
from lewis_core.errors import ConfigError
from lewis_core.pocket.training.config import PocketBuildConfig
from lewis_core.records import JsonObject
from tasks.processes import process_scope, run_process


class PocketModelsSettings(PocketBuildConfig):
    """How the pocket models are made, and where they go."""

    output_dir: Path = Path("runs/pocket-models")
    """Gets ``base``, ``listener`` and ``clip``."""


def load_pocket_settings(path: Path, overrides: Sequence[str] = ()) -> PocketModelsSettings:
    """Read a settings file.

    Raises:
        ConfigError: If it is missing, not TOML, or has unknown keys or impossible values.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        for override in overrides:
            apply_override(values, override)
        return PocketModelsSettings.model_validate(values)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigError(f"settings file {path} cannot be used: {error}") from error


@task(name="build-pocket-models")
def build_pocket_models(config: PocketModelsSettings) -> JsonObject:
    """Run :mod:`lewis_core.pocket.training.build` in a process of its own, which forks before it uses the GPU."""
    output_dir = config.output_dir.absolute()
    output_dir.mkdir(parents=True, exist_ok=True)
    settings = output_dir / "settings.json"
    settings.write_text(config.model_dump_json(exclude={"output_dir"}, indent=1), encoding="utf-8")
    argv = [sys.executable, "-m", "lewis_core.pocket.training.build", str(settings), str(output_dir)]
    run_process("build-pocket-models", argv, output_dir / "build.log")
    return {"output_dir": str(output_dir), "log": str(output_dir / "build.log")}


@flow(name="build-pocket")
def build_pocket(config: PocketModelsSettings) -> JsonObject:
    """Make the embedded pocket models from scratch."""
    with process_scope():
        return build_pocket_models(config)
