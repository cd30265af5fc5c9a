"""How fast a catalog is made: against plain reading, hashing and decoding of the same files by the same cores.

    python -m infra.bench.data_catalog --images 20000 --size 224

Plain: each of as many processes as there are cores reads its files, hashes them with sha256 and decodes them with
Pillow, and nothing else. Ours: the whole stage, from listing the folders to the files of its result, the search for
look-alikes and the contact sheet included. Both arms are run alternately on the same files, which are in memory after
the first pass; the ratio is that of the medians.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data import memory
from lewis_core.data.catalog import build_catalog
from lewis_core.reporting import NullReporter

CATEGORIES, PHOTOS = 20, 20


def write_photos(task: tuple[Path, int, int, int]) -> None:
    """Write one category: concepts of twenty photos, half for training."""
    root, category, concepts, size = task
    rng = np.random.default_rng(category)
    for concept in range(concepts):
        for photo in range(PHOTOS):
            split = "train" if photo < PHOTOS // 2 else "test"
            path = root / split / f"category{category:02d}" / f"c{concept:04d}" / f"{photo}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8))
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)


def read_plainly(paths: list[str]) -> int:
    """Read, hash and decode files; returns how many."""
    for path in paths:
        data = Path(path).read_bytes()
        hashlib.sha256(data).hexdigest()
        Image.open(io.BytesIO(data)).load()
    return len(paths)


def time_plain(paths: list[str], pool: ProcessPoolExecutor) -> float:
    """Seconds of the plain arm; its processes run already."""
    started = time.perf_counter()
    chunks = [paths[start : start + 64] for start in range(0, len(paths), 64)]
    assert sum(pool.map(read_plainly, chunks)) == len(paths)
    return time.perf_counter() - started


def time_ours(root: Path, cache: Path, workers: int) -> float:
    """Seconds of the stage; the processes it starts are part of it."""
    with tempfile.TemporaryDirectory() as output:
        started = time.perf_counter()
        runtime = Runtime(num_workers=workers)
        build_catalog("bench", Path(output), CatalogConfig(), root, runtime, NullReporter(), cache_dir=cache)
        return time.perf_counter() - started


def main() -> None:
    """Print one JSON object of numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=224, help="pixels of each side")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    memory.SETTLED_NS = 0  # the files have just been written
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="lewis-bench-") as folder,
        ProcessPoolExecutor(arguments.workers, mp_context=context) as pool,
    ):
        root, concepts = Path(folder) / "photos", max(1, arguments.images // (CATEGORIES * PHOTOS))
        list(pool.map(write_photos, [(root, category, concepts, arguments.size) for category in range(CATEGORIES)]))
        paths = sorted(str(path) for path in root.rglob("*.jpg"))
        time_plain(paths, pool)  # fills the page cache
        plain, cold, warm = [], [], []
        for number in range(arguments.repeats):
            plain.append(time_plain(paths, pool))
            cold.append(time_ours(root, Path(folder) / f"cache{number}", arguments.workers))
            warm.append(time_ours(root, Path(folder) / f"cache{number}", arguments.workers))
        rates = {name: len(paths) / statistics.median(times) for name, times in (("plain", plain), ("catalog", cold))}
        print(
            json.dumps(
                {
                    "images": len(paths),
                    "size": arguments.size,
                    "mean_bytes": round(sum(Path(path).stat().st_size for path in paths) / len(paths)),
                    "workers": arguments.workers,
                    "load": [round(value, 2) for value in os.getloadavg()],
                    "plain_s": [round(value, 2) for value in plain],
                    "catalog_s": [round(value, 2) for value in cold],
                    "again_s": [round(value, 2) for value in warm],
                    "plain_per_s": round(rates["plain"]),
                    "catalog_per_s": round(rates["catalog"]),
                    "ratio": round(rates["catalog"] / rates["plain"], 3),
                    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
