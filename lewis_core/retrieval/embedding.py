"""Embed every photo of a catalog once; copies of one picture share a row."""

from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import Runtime
from lewis_core.config.data import EncoderConfig
from lewis_core.data.images import load_rgb
from lewis_core.records import Catalog, ImageRecord, JsonObject, load_record
from lewis_core.reporting import Reporter, track
from lewis_core.retrieval.encoder import ClipEncoder, Encoder, prefetch
from lewis_core.retrieval.vectors import Matrix, load_embeddings, save_vectors

__all__ = ["distinct_images", "embed_images", "encode_pictures", "load_embeddings"]


def embed_images(
    catalog: ArtifactRef,
    output_dir: Path,
    config: EncoderConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Write ``embeddings.safetensors`` (N, D) and ``images.json`` (the sha256 of each row's picture).

    Args:
        catalog: ``build-catalog`` artifact; its train and test photos are embedded, negatives are not.
        output_dir: Folder to write to.
        config: The encoder.
        data_root: Folder of photos.
        runtime: Device, batch size, workers.
        reporter: Receives progress.

    Returns:
        Numbers of pictures and of dimensions.

    Raises:
        ImageError: If a photo is missing or was changed since the catalog was built.
        ModelError: If the encoder cannot be loaded.
    """
    images = distinct_images(load_record(catalog.file("catalog.json"), Catalog))
    matrix = encode_pictures(images, ClipEncoder(config, runtime), data_root, runtime, reporter)
    save_vectors(
        output_dir / "embeddings.safetensors", output_dir / "images.json", matrix, [image.sha256 for image in images]
    )
    return {"images": len(images), "dimensions": int(matrix.shape[1])}


def distinct_images(catalog: Catalog) -> list[ImageRecord]:
    """One record for each different picture among a catalog's photos, sorted by sha256."""
    by_sha256: dict[str, ImageRecord] = {}
    for concept in catalog.concepts:
        for image in (*concept.train, *concept.test):
            by_sha256.setdefault(image.sha256, image)
    return [by_sha256[sha256] for sha256 in sorted(by_sha256)]


def encode_pictures(
    images: list[ImageRecord], encoder: Encoder, data_root: Path, runtime: Runtime, reporter: Reporter
) -> Matrix:
    """Decode photos in threads, ahead of the encoder, and embed them in order; shape ``(N, D)``."""

    def prepare(image: ImageRecord) -> object:
        return encoder.prepare_image(load_rgb(data_root, image))

    prepared = prefetch(images, prepare, runtime.num_workers, ahead=2 * runtime.batch_size)
    return encoder.encode_images(track(prepared, len(images), "images", reporter))
