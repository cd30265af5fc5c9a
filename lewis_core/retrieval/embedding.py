"""Embed every photo of a catalog once; copies of one picture share a row, and what is in the store is not computed."""

import logging
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from lewis_core.artifacts import ArtifactRef, digest_file, digest_json
from lewis_core.config.base import Runtime
from lewis_core.config.data import EncoderConfig
from lewis_core.data import images as reading
from lewis_core.data.images import load_rgb
from lewis_core.models.files import encoder_identity
from lewis_core.prefetch import prefetch
from lewis_core.records import Catalog, ImageRecord, JsonObject, load_record
from lewis_core.reporting import Reporter, track
from lewis_core.retrieval import encoder as encoding
from lewis_core.retrieval import pixels
from lewis_core.retrieval.encoder import ClipEncoder, iter_batches
from lewis_core.retrieval.store import EmbeddingStore
from lewis_core.retrieval.vectors import Matrix, load_embeddings, save_vectors

__all__ = ["distinct_images", "embed_images", "encode_pictures", "load_embeddings"]
logger = logging.getLogger(__name__)
_PART = 4096
"""Pictures after which embeddings are kept, so that a killed run loses no more."""
_LIBRARIES = ("torch", "open-clip-torch", "pillow", "numpy")


def embed_images(
    catalog: ArtifactRef,
    output_dir: Path,
    config: EncoderConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
    with_negatives: bool = False,
    cache_dir: Path | None = None,
) -> JsonObject:
    """Write ``embeddings.safetensors`` (N, D) and ``images.json`` (the sha256 of each row's picture).

    Args:
        catalog: ``build-catalog`` artifact.
        output_dir: Folder to write to.
        config: The encoder.
        data_root: Folder of photos.
        runtime: Device, workers.
        reporter: Receives progress.
        with_negatives: Embed negatives as well as train and test photos.
        cache_dir: Keeps embeddings for other runs and stages; what it holds is not computed again, and those photos
            are not opened.

    Returns:
        Numbers of pictures and of dimensions.

    Raises:
        ImageError: If a photo is missing or was changed since the catalog was built.
        ModelError: If the encoder cannot be loaded.
    """
    images = distinct_images(load_record(catalog.file("catalog.json"), Catalog), with_negatives)
    names = [image.sha256 for image in images]
    store = None if cache_dir is None else EmbeddingStore(cache_dir / encoder_digest(config, runtime))
    found = {} if store is None else store.find(names)
    missing = [image for image in images if image.sha256 not in found]
    logger.info("%d of %d pictures are encoded, the embeddings of the others are known", len(missing), len(images))
    if missing:
        found |= _encode_missing(missing, ClipEncoder(config, runtime), data_root, runtime, reporter, store)
    matrix = np.stack([found[name] for name in names]) if names else np.zeros((0, 0), np.float32)
    save_vectors(output_dir / "embeddings.safetensors", output_dir / "images.json", matrix, names)
    return {"images": len(images), "dimensions": int(matrix.shape[1])}


def distinct_images(catalog: Catalog, with_negatives: bool = False) -> list[ImageRecord]:
    """One record for each different picture of a catalog, sorted by sha256.

    Args:
        catalog: The images.
        with_negatives: Take negatives as well as train and test photos.
    """
    by_sha256: dict[str, ImageRecord] = {}
    for concept in catalog.concepts:
        others = (*concept.hard_negative, *concept.negative) if with_negatives else ()
        for image in (*concept.train, *concept.test, *others):
            by_sha256.setdefault(image.sha256, image)
    for image in catalog.negatives if with_negatives else ():
        by_sha256.setdefault(image.sha256, image)
    return [by_sha256[sha256] for sha256 in sorted(by_sha256)]


def encoder_digest(config: EncoderConfig, runtime: Runtime) -> str:
    """What decides an embedding beside the picture: weights, precision, batch size, device, libraries, this code."""
    import torch

    from lewis_core.models.loading import resolve_device

    device = resolve_device(runtime)
    sources = [digest_file(Path(module.__file__)) for module in (encoding, pixels, reading) if module.__file__]
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    return digest_json([encoder_identity(config), hardware, versions, sources])[:24]


def _encode_missing(
    images: Sequence[ImageRecord],
    encoder: ClipEncoder,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
    store: EmbeddingStore | None,
) -> dict[str, Matrix]:
    """Encode pictures and keep the embeddings as they come."""
    found: dict[str, Matrix] = {}
    rows = track(encode_pictures(images, encoder, data_root, runtime), len(images), "images", reporter)
    for part in iter_batches(zip(images, rows, strict=True), _PART):
        names = [image.sha256 for image, _ in part]
        found |= {image.sha256: row for image, row in part}
        if store is not None:
            store.add(names, np.stack([row for _, row in part]))
    return found


def encode_pictures(
    images: Sequence[ImageRecord], encoder: ClipEncoder, data_root: Path, runtime: Runtime
) -> Iterator[Matrix]:
    """Decode photos ahead of the encoder, and embed them in order.

    Args:
        images: The photos.
        encoder: The model.
        data_root: Folder that holds them.
        runtime: Workers.

    Yields:
        One embedding each, shape ``(D,)``.
    """
    size, workers = encoder.batch_size, runtime.num_workers
    if encoder.geometry is None:

        def prepare(image: ImageRecord) -> object:
            return encoder.prepare_image(load_rgb(data_root, image))

        prepared = prefetch(images, prepare, workers, ahead=2 * size)
        encoded = encoder.encode_batches(iter_batches(prepared, size))
    else:
        feeds_gpu = encoder.feeds_gpu
        decoded = pixels.iter_pixels(images, data_root, encoder.geometry, size, workers, feeds_gpu=feeds_gpu)
        encoded = encoder.encode_batches(decoded)
    for matrix in encoded:
        yield from matrix
