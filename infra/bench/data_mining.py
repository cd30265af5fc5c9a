"""How fast look-alikes are mined: against bare matrix products, and against the reference's algorithm.

    OPENBLAS_NUM_THREADS=1 python -m infra.bench.data_mining --images 100000
    OPENBLAS_NUM_THREADS=1 python -m infra.bench.data_mining --images 2000 --per-concept 10 20 40 80 --encode

All times are processor time, which others on the machine disturb least; with one thread it is what the clock would say
on an idle machine. ``wall_s`` is the clock's time of the whole.

Ours: everything from embeddings to the lines of ``candidates.jsonl``. Bare: the one product that no exact method can
do without (every image with every concept's mean, or with every image), in the same blocks, without looking at the
result. Reference: for every query, one query of the mean index, then every image of eight classes compared one by one
in Python; then the query and every sibling embedded again, one image a call, to find the other view. Its index search
is one product of numpy here. With ``--encode`` it embeds with the pocket world's CLIP model, some 5000 times smaller
than the published system's, and ours embeds every image once; without, embedding is free.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lewis_core.config.base import Runtime
from lewis_core.config.data import EncoderConfig, MiningConfig
from lewis_core.records import Concept, ImageRecord, save_jsonl
from lewis_core.retrieval.encoder import ClipEncoder
from lewis_core.retrieval.mining import mine_rows
from lewis_core.retrieval.nearest import blocks, concept_means
from lewis_core.retrieval.pictures import Negatives, Pictures
from lewis_core.retrieval.strategies import LOOK_ALIKES, Sources
from lewis_core.retrieval.vectors import Matrix

CANDIDATE_CLASSES = 8
PHOTO = Image.new("RGB", (112, 112), (200, 30, 30))


def make_pictures(num_images: int, per_concept: int, dimensions: int, seed: int = 0) -> Pictures:
    """Concepts as noisy points on a sphere, all of one category."""
    rng = np.random.default_rng(seed)
    num_concepts = num_images // per_concept
    centres = rng.standard_normal((num_concepts, dimensions), dtype=np.float32)
    vectors = np.repeat(centres, per_concept, axis=0)
    vectors += rng.standard_normal(vectors.shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    images = [
        ImageRecord(path=f"thing/c{index // per_concept:06d}/{index}.jpg", sha256=f"{index:064x}", width=1, height=1)
        for index in range(len(vectors))
    ]
    concepts = [
        Concept(
            category="thing",
            category_word="thing",
            name=f"c{number:06d}",
            train=tuple(images[number * per_concept : (number + 1) * per_concept]),
        )
        for number in range(num_concepts)
    ]
    labels = np.repeat(np.arange(num_concepts), per_concept)
    return Pictures(tuple(concepts), tuple(images), labels, vectors)


def mine_like_reference(
    vectors: Matrix, labels: Any, query: int, means: Matrix, distractors: int, embed: Callable[[int], Any]
) -> tuple[list[int], int]:
    """The reference's step 3 for one query, plainly: its distractors, best first, and its hardest other view.

    Args:
        vectors: Embeddings, shape ``(N, D)``.
        labels: Class of each image, ascending.
        query: Index of the query.
        means: Means of the classes, not normalised, shape ``(C, D)``.
        distractors: How many are kept.
        embed: Embeds one image again.

    Returns:
        Images.
    """
    scores = means @ vectors[query]
    nearest = np.argsort(-scores, kind="stable")[:CANDIDATE_CLASSES]
    found: list[tuple[float, int]] = []
    for label in nearest.tolist():
        if label == labels[query]:
            continue
        best, best_score = -1, -np.inf
        for image in np.flatnonzero(labels == label).tolist():
            score = float(np.dot(vectors[query], vectors[image]))
            if score > best_score:
                best, best_score = image, score
        found.append((best_score, best))
    found.sort(key=lambda pair: -pair[0])
    again, worst, worst_score = embed(query), -1, np.inf
    for image in np.flatnonzero(labels == labels[query]).tolist():
        if image != query and (score := float(np.dot(again, embed(image)))) < worst_score:
            worst, worst_score = image, score
    return [image for _, image in found[:distractors]], worst


def time_reference(pictures: Pictures, num_queries: int, embed: Callable[[int], Any]) -> float:
    """Seconds a query, over queries spread evenly."""
    means = concept_means(pictures).astype(np.float32)
    queries = np.linspace(0, len(pictures.images) - 1, num_queries).astype(int).tolist()
    started = time.process_time()
    for query in queries:
        mine_like_reference(pictures.vectors, pictures.labels, query, means, 2, embed)
    return (time.process_time() - started) / num_queries


def time_ours(pictures: Pictures, config: MiningConfig, file: Path) -> float:
    """Seconds from embeddings to written lines."""
    started = time.process_time()
    save_jsonl(file, mine_rows(pictures, config))
    return time.process_time() - started


def time_choices(pictures: Pictures, config: MiningConfig) -> float:
    """Seconds from embeddings to the choice of every query's distractors, before anything is written."""
    nothing = Pictures((), (), np.zeros(0, np.intp), pictures.vectors[:0])
    negatives = Negatives((), np.zeros(len(pictures.concepts) + 1, np.intp), pictures.vectors[:0])
    started = time.process_time()
    Sources(pictures, nothing, negatives, config).choice(LOOK_ALIKES)
    return time.process_time() - started


def time_product(pictures: Pictures, keys: Matrix) -> float:
    """Seconds of the bare product."""
    started = time.process_time()
    for part in blocks(len(pictures.images), len(keys)):
        pictures.vectors[part] @ keys.T
    return time.process_time() - started


def make_embed(pictures: Pictures, encode: bool) -> Callable[[int], Any]:
    """Embed an image again: with a model, one image a call; or look the embedding up."""
    if not encode:
        return lambda image: pictures.vectors[image]
    encoder = ClipEncoder(EncoderConfig(model="pocket:clip", batch_size=1), Runtime(device="cpu"))
    photo = encoder.prepare_image(PHOTO)

    def embed(image: int) -> Any:
        encoder.encode_images([photo])
        return pictures.vectors[image]

    return embed


def time_encoding(num_images: int) -> float:
    """Seconds to embed every image once, in batches, decoding left out as in the other arm."""
    encoder = ClipEncoder(EncoderConfig(model="pocket:clip"), Runtime(device="cpu"))
    photo = encoder.prepare_image(PHOTO)
    started = time.process_time()
    encoder.encode_images(photo for _ in range(num_images))
    return time.process_time() - started


def measure(num_images: int, per_concept: int, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Time all arms on the same embeddings."""
    pictures = make_pictures(num_images, per_concept, options.dimensions)
    pictures.shared  # noqa: B018 # found once, while the pictures are gathered
    config = MiningConfig(strategy=options.strategy, positive="hardest")
    begun = time.perf_counter()
    keys = pictures.vectors if options.strategy == "nearest-image" else concept_means(pictures).astype(np.float32)
    products, choices, ours = [], [], []
    for _ in range(options.repeats):
        products.append(time_product(pictures, keys))
        choices.append(time_choices(pictures, config))
        ours.append(time_ours(pictures, config, folder / "candidates.jsonl"))
    encoding = time_encoding(num_images) if options.encode else 0.0
    middle = statistics.median(ours) + encoding
    reference = time_reference(
        pictures, min(options.reference_queries, num_images), make_embed(pictures, options.encode)
    )
    return {
        "images": num_images,
        "per_concept": per_concept,
        "strategy": options.strategy,
        "ours_s": [round(value, 3) for value in ours],
        "our_encoding_s": round(encoding, 3),
        "ours_us_per_image": round(1e6 * middle / num_images, 1),
        "choices_s": [round(value, 3) for value in choices],
        "bare_product_s": [round(value, 3) for value in products],
        "product_share": round(statistics.median(products) / statistics.median(choices), 3),
        "reference_s": round(reference * num_images, 2),
        "times_reference": round(reference * num_images / middle, 1),
        "wall_s": round(time.perf_counter() - begun, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def main() -> None:
    """Print one JSON object of numbers for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--per-concept", type=int, nargs="+", default=[20])
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--strategy", choices=("hard", "nearest-image"), default="hard")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference-queries", type=int, default=40, help="queries that the reference is timed on")
    parser.add_argument("--encode", action="store_true", help="the reference embeds with a model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lewis-bench-") as folder:
        for per_concept in options.per_concept:
            print(json.dumps(measure(options.images, per_concept, options, Path(folder)), indent=1), flush=True)


if __name__ == "__main__":
    main()
