"""How a stage runs: identity, cache, publish. The table of all stages is in :mod:`lewis_core.pipeline`.

A stage is a plain typed function that writes files into ``output_dir`` and returns a summary of counts::

    def build_games(candidates: list[ArtifactRef], output_dir: Path, config: GamesConfig) -> JsonObject

Its identity is the digest of its *arguments* (settings, inputs by content digest, plain values) and of the source it
runs. ``output_dir`` and :data:`RUNTIME_ARGUMENTS` are supplied when it runs, only if the function asks for them, and
are never part of the identity. The same identity is never computed twice.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, validate_call

from lewis_core.artifacts import ArtifactRef, ArtifactStore, digest_file, digest_json
from lewis_core.config.base import FrozenConfig, ModelRef
from lewis_core.config.data import EncoderConfig
from lewis_core.errors import ConfigError
from lewis_core.records import JsonObject, Record
from lewis_core.reporting import NullReporter, Reporter
from lewis_core.storage import naming_storage_errors

logger = logging.getLogger(__name__)
RUNTIME_ARGUMENTS = (
    *("output_dir", "work_dir", "cache_dir", "data_root", "runtime", "reporter"),
    *("service_url", "held_out_url"),
)
"""Where and how, never what: may differ between two runs with the same result."""
ASSETS = (".j2", ".css", ".js")
"""Files that are source although they are no modules."""
LIBRARIES = ("torch", "transformers", "trl", "peft", "open-clip-torch", "datasets", "numpy", "pillow")


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Args:
        name: Name of the task, and kind of its artifact, e.g. ``build-games``.
        function: Where the function lives, ``package.module:function``; imported when it runs.
        isolated: Whether it runs in a process of its own (anything that loads torch or runs long).
        asks: Modules behind the model service that it asks, whose source makes its result too; empty if it asks none.
    """

    name: str
    function: str
    isolated: bool = False
    asks: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Dotted name of the function's module."""
        return self.function.partition(":")[0]

    @property
    def source(self) -> str:
        """Digest of all source that makes its result: its own, and that of the model service it asks."""
        return source_digest(self.module, *self.asks)

    def load(self) -> Callable[..., JsonObject]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        function: Callable[..., JsonObject] = getattr(importlib.import_module(module), name)
        return function


def identity(value: object) -> Any:
    """Reduce an argument to what identifies it: content, never location.

    Raises:
        ConfigError: If the value has no identity (a path, an open file, a model).
    """
    if isinstance(value, ArtifactRef):
        return {"artifact": value.kind, "digest": value.digest}
    if isinstance(value, ModelRef):
        from lewis_core.models.files import model_identity

        return model_identity(value)
    if isinstance(value, EncoderConfig):
        from lewis_core.models.files import encoder_identity

        return encoder_identity(value)
    if isinstance(value, FrozenConfig) and not value.changes_result:
        return {"type": type(value).__name__}
    if isinstance(value, FrozenConfig | Record):
        fields = type(value).model_fields
        return {"type": type(value).__name__, **{name: identity(getattr(value, name)) for name in fields}}
    if isinstance(value, Mapping):
        return {str(key): identity(item) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(f"a {type(value).__name__} cannot be part of a stage's identity: {value!r}")


@functools.cache
def source_digest(*modules: str) -> str:
    """Digest the source of modules and of all modules of this package that they import, directly or not.

    Imports are read from the syntax tree, so lazy ones count as well, and so do page templates beside a module.
    """
    seen: dict[str, str] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        path = module_file(name)
        if name in seen or path is None:
            continue
        seen[name] = digest_file(path)
        assets = sorted(asset for asset in path.parent.iterdir() if asset.suffix in ASSETS)
        seen |= {asset.name: digest_file(asset) for asset in assets}
        todo.extend(_imported(ast.parse(path.read_text(encoding="utf-8"))))
    return digest_json(seen)


def _imported(tree: ast.AST) -> Iterable[str]:
    """Names of this package's modules that a syntax tree imports (``from package import module`` included)."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] == __name__.split(".")[0] and module_file(name):
                yield name


@functools.cache
def module_file(name: str) -> Path | None:
    """Find a module's source without importing it or its parents, which may load torch; ``None`` if it is none."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        place = Path(folder).joinpath(*rest)
        for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if rest and file.is_file():
                return file
    return None if rest or spec is None or spec.origin is None else Path(spec.origin)


def stage_key(stage: Stage, arguments: Mapping[str, object]) -> str:
    """Identity of a stage with these arguments: 24 hex digits."""
    content = {"stage": stage.name, "source": stage.source, "arguments": identity(dict(arguments))}
    return digest_json(content)[:24]


def find_result(stage: Stage, store: ArtifactStore, arguments: Mapping[str, object]) -> ArtifactRef | None:
    """Return the stage's finished artifact, or ``None`` if it has to run."""
    return store.find(stage.name, stage_key(stage, arguments))


def run_stage(
    stage: Stage,
    store: ArtifactStore,
    arguments: Mapping[str, object],
    runtime: Mapping[str, object] | None = None,
    reporter: Reporter | None = None,
) -> ArtifactRef:
    """Run a stage in this process unless its result is there.

    Args:
        stage: What to run.
        store: Where its artifact goes.
        arguments: What identifies it, by parameter name: settings and handles, not their JSON forms, which would be
            other identities.
        runtime: Values for :data:`RUNTIME_ARGUMENTS` other than folders and reporter; JSON forms are accepted.
        reporter: Sink for progress and metrics.

    Returns:
        Handle to the artifact, found or made.

    Raises:
        LewisError: Whatever the stage raises; nothing is published then.
    """
    function = stage.load()
    key = stage_key(stage, arguments)
    with naming_storage_errors(store.root), store.lock(stage.name, key):
        if found := store.find(stage.name, key):
            logger.info("%s: nothing to do, %s is there", stage.name, found.path)
            return found
        with store.building(stage.name, key) as folder:
            started = time.time()
            wanted = inspect.signature(function).parameters
            supplied = {
                "output_dir": folder,
                "work_dir": store.work_dir(stage.name, key),
                **({"cache_dir": store.cache_dir(stage.name)} if "cache_dir" in wanted else {}),
                "reporter": reporter or NullReporter(),
                **(runtime or {}),
            }
            supplied = {name: value for name, value in supplied.items() if name in wanted}
            call = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)
            summary = call(**arguments, **supplied)
            return store.publish(
                folder,
                stage.name,
                key,
                identity(dict(arguments)),
                stage.source,
                summary,
                provenance(started),
            )


def provenance(started: float) -> JsonObject:
    """What is worth knowing about a run and differs between runs: times, machine, library versions."""
    return {
        "started": started,
        "wall_s": time.time() - started,
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
