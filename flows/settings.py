"""TOML settings plus overrides → one frozen model; what is wrong is said in one line."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from lewis_core.config.base import ModelRef
from lewis_core.config.data import FolderSource
from lewis_core.config.pipeline import PipelineConfig, PrepareDataConfig, ProcessDescriptionsConfig, RunSettings
from lewis_core.errors import ConfigError, ModelError
from lewis_core.models.files import adapter_folder, encoder_folder, resolve_model_path
from tasks.models import HUB_ID, is_address

SettingsT = TypeVar("SettingsT", bound=RunSettings)
SWITCHES = ("bool", "str", "int", "float")
"""What pydantic calls the plain types in a choice of types."""


def load_settings(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a settings file.

    Args:
        path: TOML file.
        overrides: ``section.key=value`` each; values are TOML, and text may go without quotes.

    Returns:
        The settings.

    Raises:
        ConfigError: If the file, the photos or a model is missing, a key is unknown or a value impossible.
    """
    config = validate(read_values(path, overrides))
    check_folders(config)
    return config


def load_data_settings(path: Path, overrides: Sequence[str] = ()) -> PrepareDataConfig:
    """Read a settings file of the flow ``prepare-data``; see :func:`load_settings`."""
    config = validate_as(PrepareDataConfig, read_values(path, overrides))
    check_folders(config)
    return config


def load_processing_settings(path: Path, overrides: Sequence[str] = ()) -> ProcessDescriptionsConfig:
    """Read a settings file of the flow ``process-descriptions``.

    Raises:
        ConfigError: If the file, the descriptions or the model is missing, a key is unknown or a value impossible.
    """
    config = validate_as(ProcessDescriptionsConfig, read_values(path, overrides))
    if not config.processing.file.expanduser().is_file():
        raise ConfigError(
            f"processing.file: there is no file {config.processing.file}; set it to a file of descriptions, e.g. "
            "--set processing.file=descriptions_base.json"
        )
    check_models(config)
    return config


def read_values(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Read a TOML file and apply overrides.

    Raises:
        ConfigError: If the file is missing or not TOML, or an override cannot be applied.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"settings file {path} cannot be read: {error.strerror}{seen_from(path)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path} is not TOML: {error}") from error
    for override in overrides:
        apply_override(values, override)
    return values


def seen_from(path: Path) -> str:
    """Where a relative path was looked for, as the end of a sentence."""
    return "" if path.is_absolute() else f" in {Path.cwd()}, where the command runs"


def check_folders(config: PrepareDataConfig) -> None:
    """Check, before anything runs, that the photos and the models on this machine are there.

    Raises:
        ConfigError: Naming the setting whose folder is missing.
    """
    if isinstance(config.source, FolderSource) and not (root := config.source.root.expanduser()).is_dir():
        raise ConfigError(
            f"source.root: there is no folder {config.source.root}{seen_from(root)}; set it to the folder of your "
            "photos"
        )
    check_models(config)
    try:
        encoder_folder(config.encoder)
    except ModelError as error:
        raise ConfigError(f"encoder.model: {error}") from error


def make_work_dir(folder: Path) -> None:
    """Make the work folder.

    Raises:
        ConfigError: If there cannot be a folder of that name.
        OSError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        raise ConfigError(f"run.work_dir: {folder} cannot be a folder here: {error.strerror}; name another") from error


def check_models(config: RunSettings) -> None:
    """Check that the models and adapters on this machine are there.

    Raises:
        ConfigError: Naming the setting whose folder is missing.
    """
    for name, ref in iter_models(config):
        try:
            path = resolve_model_path(ref.path)
        except ModelError as error:
            raise ConfigError(f"{name}.path: {error}") from error
        if path.startswith(("/", ".", "~")) and not Path(path).is_dir():
            raise ConfigError(f"{name}.path: there is no model folder {ref.path}")
        if is_address(ref.adapter) or (ref.adapter and HUB_ID.fullmatch(str(ref.adapter))):
            continue  # brought here when the run begins
        if (adapter := adapter_folder(ref)) and not adapter.is_dir():
            raise ConfigError(f"{name}.adapter: there is no adapter folder {ref.adapter}")


def iter_models(value: object, name: str = "") -> Iterator[tuple[str, ModelRef]]:
    """Find all model references in settings, with their full names."""
    if isinstance(value, ModelRef):
        yield name, value
    elif isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from iter_models(getattr(value, key), f"{name}.{key}".lstrip("."))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from iter_models(item, f"{name}.{index}")


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value, e.g. ``training.max_steps=3``.

    Raises:
        ConfigError: If it has no ``=``, or its place is not a section.
    """
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected section.key=value, e.g. training.max_steps=3")
    section = values
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {key!r} is a value, not a section")
    section[keys[-1]] = parse_value(text.strip())


def parse_value(text: str) -> object:
    """Read a TOML value; what is none is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def validate(values: Mapping[str, Any]) -> PipelineConfig:
    """Build the settings of the pipeline; see :func:`validate_as`."""
    return validate_as(PipelineConfig, values)


def validate_as(kind: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
    """Build the settings.

    Args:
        kind: The settings of which flow.
        values: As read from a file.

    Raises:
        ConfigError: Naming every wrong key in full, with a suggestion where one is near.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = {tuple(settings_only(problem["loc"])): problem for problem in error.errors()}
        problems = [explain(keys, problem, kind) for keys, problem in found.items() if not is_repeated(keys, found)]
        raise ConfigError("; ".join(problems)) from error


def settings_only(location: Sequence[int | str]) -> list[int | str]:
    """A place without the types that pydantic tried there, e.g. ``tuple[...]`` in a setting that is a switch too."""
    return [key for key in location if isinstance(key, int) or not (key in SWITCHES or key.endswith("]"))]


def is_repeated(keys: tuple[int | str, ...], found: Mapping[tuple[int | str, ...], Mapping[str, Any]]) -> bool:
    """Whether another problem says the same: one within the value, or one of the section that this value came from."""
    inner = (other for other in found if len(other) > len(keys) and other[: len(keys)] == keys)
    outer = (keys[:at] + keys[at + 1 :] for at in range(len(keys) - 1))
    return any(inner) or any(found[place]["input"] == found[keys]["input"] for place in outer if place in found)


def explain(location: Sequence[int | str], problem: Mapping[str, Any], kind: type[BaseModel] = PipelineConfig) -> str:
    """One problem as a sentence."""
    keys = [str(key) for key in location]
    if keys[:1] == ["source"] and keys[1:2] in (["folder"], ["pocket"]):
        del keys[1]  # pydantic names the chosen kind of source between its keys
    name = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], known_keys(location[:-1], kind), n=1)
        if near == [keys[-1]]:
            return f"{name} is a setting of another {keys[0]}.type than {location[1]!r}; set {keys[0]}.type as well"
        meant = [".".join([*keys[:-1], near[0]])] if near else places_of(keys[-1], kind)[:3]
        return f"unknown setting {name}" + (f"; did you mean {' or '.join(meant)}?" if meant else "")
    if problem["type"] == "missing":
        return f"setting {name} is missing"
    if problem["type"] == "model_type":
        inside = known_keys(location, kind)
        return f"{name} is a section: expected {', '.join(inside[:3])}, … in it, found {problem['input']!r}"
    found = "" if isinstance(problem["input"], Mapping) else f", found {problem['input']!r}"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}{found}"


def known_keys(location: Sequence[int | str], kind: type[BaseModel] = PipelineConfig) -> list[str]:
    """Names of the settings in a section, in the order of their declaration."""
    models: list[type[BaseModel]] = [kind]
    for key in location:
        if isinstance(key, int):
            continue
        fields = [model.model_fields[key] for model in models if key in model.model_fields]
        found = [model for field in fields for model in inner_models(field.annotation)]
        models = found or models
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def places_of(key: str, kind: type[BaseModel], section: str = "") -> list[str]:
    """Full names of all settings of a name, in the order of the file."""
    names = [f"{section}{key}"] if section and key in kind.model_fields else []
    for name, field in kind.model_fields.items():
        for model in inner_models(field.annotation):
            names += places_of(key, model, f"{section}{name}.")
    return list(dict.fromkeys(names))


def inner_models(annotation: Any) -> list[type[BaseModel]]:
    """Settings models inside a type, e.g. in ``tuple[SpeakerRef, ...]`` or ``VqaConfig | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in inner_models(part)]
