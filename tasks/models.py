"""Models and adapters that the settings name by an address: MLflow's registry, or the hub. They become folders here.

``models:/lewis-speaker@champion`` (or ``models:/lewis-speaker/3``) may stand for an adapter (``adapter = …``) or for
the whole model (``path = …``): an adapter's own settings say which base it belongs to. An adapter may also be a hub id.
"""

import logging
import re
from pathlib import Path
from typing import TypeVar, cast

from lewis_core.config.base import FrozenConfig, ModelRef
from lewis_core.errors import ModelError, TrackingError
from lewis_core.models.adapters import check_adapter, find_adapters

logger = logging.getLogger(__name__)
REGISTRY = re.compile(r"models:/{1,3}(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SettingsT = TypeVar("SettingsT", bound=FrozenConfig)


def is_address(text: object) -> bool:
    """Whether a path or adapter in the settings is an address of the registry."""
    return str(text).startswith("models:/")


def resolve_models(settings: SettingsT, uri: str, folder: Path) -> SettingsT:
    """Replace addresses in settings by folders, downloading what is not here.

    Args:
        settings: A model, or settings that hold models.
        uri: MLflow's tracking URI.
        folder: Where downloads go.

    Returns:
        The settings; what has no address stays as it is.

    Raises:
        ModelError: If an address is malformed, or what it leads to is no model.
        TrackingError: If the registry cannot be asked, or has no such version.
    """

    def resolve(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(resolve, value))
        return resolve_models(value, uri, folder) if isinstance(value, FrozenConfig) else value

    if isinstance(settings, ModelRef):
        return cast(SettingsT, resolve_model(settings, uri, folder))
    changes = {}
    for name in type(settings).model_fields:
        found, made = getattr(settings, name), resolve(getattr(settings, name))
        if made is not found and made != found:
            changes[name] = made
    return settings.model_copy(update=changes) if changes else settings


def resolve_model(ref: ModelRef, uri: str, folder: Path) -> ModelRef:
    """Replace the addresses of one model; see :func:`resolve_models`."""
    if is_address(ref.path):
        place = download(ref.path, uri, folder)
        if (place / "config.json").is_file():
            ref = ref.model_copy(update={"path": str(place)})
        else:
            adapter = _adapter_in(place, ref.path)
            base = check_adapter(adapter)
            if not base:
                raise ModelError(
                    f"{ref.path}: the adapter's settings do not name its base; give path and adapter apart"
                )
            ref = ref.model_copy(update={"path": base, "adapter": adapter})
    if ref.adapter is not None and is_address(ref.adapter):
        return ref.model_copy(update={"adapter": _adapter_in(download(str(ref.adapter), uri, folder), ref.adapter)})
    if ref.adapter is not None and not ref.adapter.expanduser().is_dir() and HUB_ID.fullmatch(str(ref.adapter)):
        return ref.model_copy(update={"adapter": fetch_adapter(str(ref.adapter))})
    return ref


def _adapter_in(place: Path, address: object) -> Path:
    found = find_adapters(place)
    if len(found) != 1:
        raise ModelError(
            f"{address} leads to {place}, which holds {len(found)} adapters; expected one, or a whole model"
        )
    check_adapter(found[0])
    return found[0]


def download(address: str, uri: str, folder: Path) -> Path:
    """Bring a registered version here, once.

    Raises:
        ModelError: If the address is malformed.
        TrackingError: If the registry cannot be asked, or has no such version.
    """
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    parts = REGISTRY.fullmatch(address)
    if parts is None:
        raise ModelError(f"{address} is no address of a model; expected models:/name@alias or models:/name/version")
    try:
        version = parts["version"]
        if version is None:
            version = str(MlflowClient(uri).get_model_version_by_alias(parts["name"], parts["alias"]).version)
        place = folder / f"{parts['name']}-{version}"
        if not place.is_dir():
            logger.info("downloading %s, version %s", address, version)
            unfinished = place.with_name(f".{place.name}")
            unfinished.mkdir(parents=True, exist_ok=True)
            found = download_artifacts(
                artifact_uri=f"models:/{parts['name']}/{version}", dst_path=str(unfinished), tracking_uri=uri
            )
            Path(found).rename(place)
    except Exception as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise TrackingError(
            f"{address} cannot be brought from the registry at {uri} ({reason}); check the name, the alias, and "
            "run.tracking.uri or MLFLOW_TRACKING_URI"
        ) from error
    return place


def fetch_adapter(hub_id: str) -> Path:
    """Bring an adapter from the hub, or from its cache here.

    Raises:
        ModelError: If it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["adapter_config.json", "adapter_model.safetensors"]))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the adapter {hub_id} is no folder here and cannot be fetched from the hub "
            f"({str(error).splitlines()[0]}); download it elsewhere and give its folder"
        ) from error
