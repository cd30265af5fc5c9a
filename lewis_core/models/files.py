"""Where a model's files are, and what identifies them. Imports no torch."""

import os
from pathlib import Path
from typing import Any

from lewis_core.artifacts import digest_file, digest_json
from lewis_core.config.base import ModelRef
from lewis_core.config.data import EncoderConfig
from lewis_core.errors import ModelError

POCKET_MODELS = Path(__file__).resolve().parent.parent / "pocket" / "models"
_CONTENT = (".safetensors", ".json", ".jinja", ".txt", ".model")


def resolve_model_path(path: str) -> str:
    """Turn ``pocket:<name>`` into the folder of the embedded checkpoint and ``~`` into the home folder.

    Other paths and hub ids stay as they are.

    Raises:
        ModelError: If there is no such embedded checkpoint.
    """
    scheme, _, name = path.partition(":")
    if scheme != "pocket":
        return os.path.expanduser(path)  # noqa: PTH111 # hub ids are no paths
    folder = POCKET_MODELS / name
    if not folder.is_dir():
        there = sorted(p.name for p in POCKET_MODELS.iterdir() if p.is_dir()) if POCKET_MODELS.is_dir() else []
        raise ModelError(
            f"no embedded checkpoint {path!r}; there are {', '.join(f'pocket:{n}' for n in there) or 'none'}"
        )
    return str(folder)


def base_folder(ref: ModelRef) -> Path:
    """Folder of a model's own files; those of a hub id are fetched if they are not here."""
    from huggingface_hub import snapshot_download

    path = Path(resolve_model_path(ref.path))
    if path.is_dir():
        return path
    return Path(snapshot_download(ref.path, revision=ref.revision, allow_patterns=["*.json", "*.safetensors"]))


def adapter_folder(ref: ModelRef) -> Path | None:
    """Folder of a model's adapter, if it has one, with ``~`` replaced by the home folder."""
    return Path(os.path.expanduser(ref.adapter)) if ref.adapter else None  # noqa: PTH111 # an unknown user is no error


def folder_digest(folder: Path) -> str:
    """Digest of a checkpoint folder's weights, settings and tokenizer files (not of what else lies there).

    Raises:
        ModelError: If the folder is missing or holds no such file.
    """
    files = sorted(p for p in folder.glob("*") if p.suffix in _CONTENT) if folder.is_dir() else []
    if not files:
        raise ModelError(f"{folder} is not a checkpoint folder: expected config.json and *.safetensors in it")
    return digest_json({p.name: digest_file(p) for p in files})


def model_identity(ref: ModelRef) -> dict[str, Any]:
    """What identifies a model: the content of local folders, or hub id and revision, and how it is run."""
    path = resolve_model_path(ref.path)
    weights = folder_digest(Path(path)) if Path(path).is_dir() else {"hub": path, "revision": ref.revision}
    adapter = adapter_folder(ref)
    how = ref.model_dump(mode="json", exclude={"path", "revision", "adapter"})
    return {"type": "ModelRef", "weights": weights, "adapter": folder_digest(adapter) if adapter else None, **how}


def encoder_folder(config: EncoderConfig) -> Path | None:
    """Folder of a CLIP model given as ``local-dir:<folder>`` or ``pocket:<name>``; ``None`` for open_clip's own names.

    Raises:
        ModelError: If the folder is missing, or holds no ``open_clip_config.json`` and safetensors weights.
    """
    path = resolve_model_path(config.model).removeprefix("local-dir:")
    if path == config.model:
        return None
    folder = Path(path).expanduser()
    if not (folder / "open_clip_config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"encoder {config.model!r}: {folder} is not an open_clip folder; "
            "expected open_clip_config.json and *.safetensors in it"
        )
    return folder


def encoder_identity(config: EncoderConfig) -> dict[str, Any]:
    """What identifies an encoder: the content of local folders and weight files, or open_clip's names."""
    folder = encoder_folder(config)
    how = {"type": "EncoderConfig", "precision": config.precision, "batch_size": config.batch_size}
    if folder is not None:
        return {"weights": folder_digest(folder), **how}
    file = Path(config.pretrained).expanduser() if config.pretrained else None
    weights = digest_file(file) if file is not None and file.is_file() else config.pretrained
    return {"model": config.model, "weights": weights, **how}
