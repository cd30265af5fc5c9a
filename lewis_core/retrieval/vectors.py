"""Embeddings on disk: a safetensors matrix and a JSON list that names its rows. Numpy only."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lewis_core.artifacts import ArtifactRef
from lewis_core.errors import ArtifactError

TENSOR = "embeddings"
DECIMALS = 6
"""Similarities are rounded before they are ranked, so that the last bits of a product decide nothing."""
Matrix = NDArray[np.float32]
"""Rows of L2-normalised embeddings, shape ``(N, D)``."""


def save_vectors(matrix_file: Path, names_file: Path, matrix: Matrix, names: Sequence[str]) -> None:
    """Write a matrix ``(N, D)`` and the names of its rows.

    Raises:
        ValueError: If the counts differ.
    """
    from safetensors.numpy import save_file

    if len(matrix) != len(names):
        raise ValueError(f"{len(matrix)} rows, but {len(names)} names")
    save_file({TENSOR: np.ascontiguousarray(matrix, dtype=np.float32)}, matrix_file)
    names_file.write_text(json.dumps(list(names), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def load_vectors(ref: ArtifactRef, matrix_name: str, names_name: str) -> tuple[Matrix, list[str]]:
    """Read what :func:`save_vectors` wrote.

    Raises:
        ArtifactError: If the artifact lacks a file, or matrix and names do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    matrix_file = ref.file(matrix_name)
    try:
        matrix: Matrix = load_file(matrix_file)[TENSOR]
        names = json.loads(ref.file(names_name).read_text(encoding="utf-8"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"{matrix_file.parent}: not an artifact of embeddings: {error}") from error
    if matrix.ndim != 2 or len(matrix) != len(names):
        raise ArtifactError(f"{matrix_file}: shape {matrix.shape}, but {len(names)} names in {names_name}")
    return matrix, names


def load_embeddings(ref: ArtifactRef) -> tuple[Matrix, dict[str, int]]:
    """Read an ``embed-images`` artifact.

    Returns:
        The matrix ``(N, D)``, and the row of each image by its sha256.
    """
    matrix, names = load_vectors(ref, "embeddings.safetensors", "images.json")
    return matrix, {sha256: row for row, sha256 in enumerate(names)}


def load_text_index(ref: ArtifactRef) -> tuple[Matrix, dict[str, int]]:
    """Read an ``index-database`` artifact.

    Returns:
        The matrix ``(C, D)``, and the row of each concept by its id.
    """
    matrix, names = load_vectors(ref, "text_embeddings.safetensors", "concepts.json")
    return matrix, {concept: row for row, concept in enumerate(names)}
