"""Hybrid retrieval by hand, and embeddings on disk."""

from pathlib import Path

import numpy as np
import pytest

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.errors import ArtifactError
from lewis_core.retrieval.hybrid import Fusion, Hit, hybrid_scores, min_max, retrieve, similarities, top_k, z_score
from lewis_core.retrieval.vectors import load_embeddings, load_text_index, save_vectors


def test_min_max_scales_to_zero_and_one() -> None:
    # (0.5 - 0.2) / (0.6 - 0.2) = 0.75
    assert min_max(np.array([0.2, 0.6, 0.5])).tolist() == pytest.approx([0, 1, 0.75])


def test_min_max_of_equal_values_prefers_none() -> None:
    assert min_max(np.array([0.3, 0.3])).tolist() == [0, 0]
    assert min_max(np.array([0.3])).tolist() == [0]


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        # image scales to (1, 0, 0.5), text to (0, 1, 0.75)
        pytest.param(0.5, [0.5, 0.5, 0.625], id="half"),
        pytest.param(1.0, [1, 0, 0.5], id="image-only"),
        pytest.param(0.0, [0, 1, 0.75], id="text-only"),
        pytest.param(0.25, [0.25, 0.75, 0.6875], id="quarter"),
    ],
)
def test_scores_are_mixed_after_scaling(weight: float, expected: list[float]) -> None:
    image, text = np.array([0.9, 0.7, 0.8]), np.array([0.1, 0.5, 0.4])
    assert hybrid_scores(image, text, weight).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        # image scales to (1, 0, 0.5), text to (0, 1, 0.75)
        pytest.param("max", [1, 1, 0.75], id="max"),
        pytest.param("min", [0, 0, 0.5], id="min"),
        pytest.param("product", [0, 0, 0.375], id="product"),
        pytest.param("harmonic", [0, 0, 0.6], id="harmonic"),  # 1 / (½ / 0.5 + ½ / 0.75) = 0.6
    ],
)
def test_other_ways_to_mix(fusion: Fusion, expected: list[float]) -> None:
    image, text = np.array([0.9, 0.7, 0.8]), np.array([0.1, 0.5, 0.4])
    assert hybrid_scores(image, text, 0.5, "min-max", fusion).tolist() == pytest.approx(expected)


def test_harmonic_mean_weighs_and_nothing_times_nothing_is_nothing() -> None:
    # image 0.5, text 0.75, a quarter of the image: 1 / (0.25 / 0.5 + 0.75 / 0.75) = 2/3
    assert hybrid_scores(np.array([0.5, 0.0]), np.array([0.75, 0.0]), 0.25, "none", "harmonic").tolist() == (
        pytest.approx([2 / 3, 0])
    )
    assert hybrid_scores(np.array([-0.5]), np.array([-0.5]), 0.5, "none", "product").tolist() == [0]


def test_other_scalings_by_hand() -> None:
    # mean 2, standard deviation √(2/3)
    assert z_score(np.array([1.0, 2.0, 3.0])).tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert z_score(np.array([0.3, 0.3])).tolist() == [0, 0]
    mixed = hybrid_scores(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), 0.75, "z-score")
    assert mixed.tolist() == pytest.approx([-(1.5**0.5) / 2, 0, 1.5**0.5 / 2])
    assert hybrid_scores(np.array([0.2]), np.array([0.4]), 0.5, "none").tolist() == pytest.approx([0.3])


def test_top_k_breaks_ties_by_index() -> None:
    assert top_k(np.array([0.5, 0.9, 0.5, 0.9]), 3) == [1, 3, 0]
    assert top_k(np.array([0.1, 0.2]), 5) == [1, 0]


def test_similarities_do_not_depend_on_the_last_bits() -> None:
    query = np.array([0.6, 0.8], np.float32)
    assert similarities(query, np.array([[1, 0], [0.6, 0.8]], np.float32)).tolist() == [0.6, 1.0]


def test_retrieve_by_hand() -> None:
    query = np.array([1.0, 0.0])
    references = np.array([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])  # image similarity 0.6, 0.8, 0.0 → 0.75, 1, 0
    texts = np.array([[0.8, 0.6], [0.28, 0.96], [0.6, 0.8]])  # text similarity 0.8, 0.28, 0.6 → 1, 0, 8/13
    hits = retrieve(query, references, texts, image_weight=0.5, k=2)
    # (0.75 + 1) / 2 = 0.875; (1 + 0) / 2 = 0.5; (0 + 8/13) / 2 = 0.308
    assert hits == [Hit(0, 0.875), Hit(1, 0.5)]


def test_retrieve_among_nothing_finds_nothing() -> None:
    assert retrieve(np.ones(2), np.zeros((0, 2)), np.zeros((0, 2)), 0.5, 3) == []


def publish(root: Path, matrix_name: str, names_name: str, names: list[str]) -> ArtifactRef:
    store = ArtifactStore(root)
    with store.building("kind", "key") as folder:
        matrix = np.arange(2 * len(names), dtype=np.float32).reshape(-1, 2)
        save_vectors(folder / matrix_name, folder / names_name, matrix, names)
        return store.publish(folder, "kind", "key", {}, "", {}, {})


def test_vectors_are_read_back(tmp_path: Path) -> None:
    matrix, rows = load_embeddings(publish(tmp_path / "a", "embeddings.safetensors", "images.json", ["x", "ü"]))
    assert matrix.tolist() == [[0, 1], [2, 3]]
    assert rows == {"x": 0, "ü": 1}
    index = publish(tmp_path / "b", "text_embeddings.safetensors", "concepts.json", ["bag/a"])
    assert load_text_index(index)[1] == {"bag/a": 0}


def test_names_have_to_fit_the_matrix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 rows, but 2 names"):
        save_vectors(tmp_path / "m", tmp_path / "n", np.zeros((1, 2), np.float32), ["a", "b"])
    ref = publish(tmp_path, "embeddings.safetensors", "images.json", ["x", "y"])
    (ref.path / "images.json").write_text('["x"]')
    with pytest.raises(ArtifactError, match=r"shape \(2, 2\), but 1 names in images\.json"):
        load_embeddings(ref)
    (ref.path / "embeddings.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="not an artifact of embeddings"):
        load_embeddings(ref)
