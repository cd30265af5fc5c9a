"""Embed a database's texts, so that a query photo can be compared with what was written about each concept."""

import json
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import Runtime
from lewis_core.config.data import EncoderConfig
from lewis_core.errors import EvaluationError
from lewis_core.records import Database, DatabaseEntry, JsonObject, load_record
from lewis_core.reporting import Reporter, track
from lewis_core.retrieval.encoder import ClipEncoder, Encoder
from lewis_core.retrieval.vectors import load_embeddings, save_vectors

FALLBACKS_FILE = "fallbacks.json"


def index_database(
    database: ArtifactRef,
    embeddings: ArtifactRef,
    output_dir: Path,
    config: EncoderConfig,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Write ``text_embeddings.safetensors`` (C, D), ``concepts.json`` (ids, row order) and ``fallbacks.json``.

    The last names every concept whose description is missing, and what was embedded instead (``completion`` or
    ``category_word``).

    Args:
        database: ``describe-concepts`` artifact.
        embeddings: ``embed-images`` artifact that the texts will be compared with.
        output_dir: Folder to write to.
        config: The encoder that made ``embeddings``.
        runtime: Device, batch size.
        reporter: Receives progress.

    Returns:
        Number of concepts, and of those indexed by something else than a description.

    Raises:
        EvaluationError: If the database is empty, or the embeddings were made by another encoder.
        ModelError: If the encoder cannot be loaded.
    """
    content = load_record(database.file("database.json"), Database)
    if not content.entries:
        raise EvaluationError(f"the database of speaker {content.speaker!r} is empty; describe concepts first")
    matrix, _ = load_embeddings(embeddings)
    sources = [choose_text(entry) for entry in content.entries]
    encoder: Encoder = ClipEncoder(config, runtime)
    texts = track([text for text, _ in sources], len(sources), "texts", reporter)
    vectors = encoder.encode_texts(list(texts))
    if vectors.shape[1] != matrix.shape[1]:
        raise EvaluationError(
            f"encoder {config.model!r} makes {vectors.shape[1]} dimensions, the images have {matrix.shape[1]}; "
            "use the encoder that embedded the images"
        )
    concepts = [entry.concept for entry in content.entries]
    save_vectors(output_dir / "text_embeddings.safetensors", output_dir / "concepts.json", vectors, concepts)
    pairs = zip(concepts, sources, strict=True)
    fallbacks = {concept: source for concept, (_, source) in pairs if source != "description"}
    (output_dir / FALLBACKS_FILE).write_text(json.dumps(fallbacks, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
    return {"concepts": len(concepts), "without_description": len(fallbacks)}


def choose_text(entry: DatabaseEntry) -> tuple[str, str]:
    """Choose what is embedded for a concept.

    Returns:
        The text and its source: ``description``; ``completion`` when that cannot be parsed; ``category_word`` when the
        speaker wrote nothing at all.
    """
    options = ((entry.text, "description"), (entry.completion, "completion"))
    for text, source in options:
        if text.strip():
            return text, source
    return entry.category_word, "category_word"
