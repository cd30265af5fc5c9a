"""Adapter folders that come from elsewhere: are they whole, and which model do they belong to? Imports no torch."""

import json
import struct
import time
from pathlib import Path

from lewis_core.artifacts import MANIFEST, digest_file
from lewis_core.config.base import ModelRef
from lewis_core.errors import ModelError
from lewis_core.listener.schemas import Serves
from lewis_core.models.files import adapter_folder, folder_digest, model_identity, resolve_model_path

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header."""
MAX_HEADER_BYTES = 100_000_000


def find_adapters(folder: Path) -> list[Path]:
    """Folders below a folder that hold an adapter's settings, sorted; hidden folders are still being written."""
    found = (path.parent for path in folder.rglob(SETTINGS))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def check_adapter(folder: Path) -> str:
    """Check that an adapter is whole, without loading it.

    Args:
        folder: Where it is.

    Returns:
        The name of its base model, as its settings say; empty if they say nothing.

    Raises:
        ModelError: If a file is missing, cut short or no such file at all.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{folder} is not a LoRA adapter: {SETTINGS} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{folder / SETTINGS} is not JSON: {error}") from error
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise ModelError(f"{folder / SETTINGS} has no peft_type: expected the settings of an adapter")
    check_safetensors(folder / WEIGHTS)
    return str(settings.get("base_model_name_or_path") or "")


def check_safetensors(file: Path) -> None:
    """Check that a safetensors file has as many bytes as its header promises.

    Raises:
        ModelError: If it is missing, cut short, longer, or not such a file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(LENGTH_BYTES)
            length = struct.unpack("<Q", start)[0] if len(start) == LENGTH_BYTES else MAX_HEADER_BYTES + 1
            header = json.loads(stream.read(length)) if length <= min(size, MAX_HEADER_BYTES) else None
        if header is None:
            raise ValueError("its header is cut short")
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}") from error
    expected = LENGTH_BYTES + length + max(ends, default=0)
    if size != expected:
        raise ModelError(f"{file} has {size:,} bytes; its header promises {expected:,}")


def seconds_since_change(folder: Path) -> float:
    """Seconds since anything in a folder was last written; endless for a published artifact, which never changes."""
    if (folder.parent / MANIFEST).is_file():
        return float("inf")
    newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    return max(0.0, time.time() - newest)


def adapter_digest(folder: Path) -> str:
    """Digest of an adapter's weights and settings, wherever it lies and whatever lies beside them."""
    return f"{digest_file(folder / WEIGHTS)}-{digest_file(folder / SETTINGS)[:16]}"


def describe_ref(ref: ModelRef) -> Serves:
    """Say which model a reference means, so that two of different machines can be compared."""
    adapter = adapter_folder(ref)
    return Serves(
        path=ref.path,
        revision=ref.revision,
        adapter=adapter_digest(adapter) if adapter else None,
        prompts=ref.prompts,
        min_pixels=ref.min_pixels,
        max_pixels=ref.max_pixels,
    )


def foreign_base(folder: Path, base: ModelRef) -> str:
    """Why an adapter does not belong to a model; empty if it does.

    Args:
        folder: A whole adapter.
        base: The model that it is to be put on.
    """
    named, wanted = check_adapter(folder), resolve_model_path(base.path)
    weights = _base_weights(folder)
    if weights is not None:
        if weights == model_identity(base.model_copy(update={"adapter": None}))["weights"]:
            return ""
        return f"its base has other weights than {base.path}"
    if not named:
        return f"its settings do not say which model it belongs to; expected {base.path}"
    try:
        path = resolve_model_path(named)
    except ModelError:
        path = named
    if named == base.path or path == wanted:
        return ""
    if Path(path).is_dir() and Path(wanted).is_dir() and folder_digest(Path(path)) == folder_digest(Path(wanted)):
        return ""
    return f"it belongs to {named}, not to {base.path}"


def _base_weights(folder: Path) -> object:
    """What identifies the weights of the base, from the manifest of the training that made it; ``None`` if unknown."""
    try:
        manifest = json.loads((folder.parent / MANIFEST).read_text(encoding="utf-8"))
        weights: object = manifest["arguments"]["config"]["model"]["weights"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return weights
