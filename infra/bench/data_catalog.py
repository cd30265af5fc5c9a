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
from typing import NamedTuple

from PIL import Image

CATEGORIES, PHOTOS = 20, 20


def write_photos(task: tuple[Path, int, int, int]) -> None:
    """Write one category: concepts of twenty photos, half for training."""
    import numpy as np

    root, category, concepts, size = task
    rng = np.random.default_rng(category)
    for concept in range(concepts):
        for photo in range(PHOTOS):
            split = "train" if photo < PHOTOS // 2 else "test"
            path = root / split / f"category{category:02d}" / f"c{concept:04d}" / f"{photo}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8))
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)


def read_plainly(paths: list[str]) -> float:
    """Read, hash and decode files; returns the processor time it took."""
    started = time.process_time()
    for path in paths:
        data = Path(path).read_bytes()
        hashlib.sha256(data).hexdigest()
        Image.open(io.BytesIO(data)).load()
    return time.process_time() - started


class Times(NamedTuple):
    """Seconds."""

    wall: float
    processor: float
    """Of all processes together."""


def time_plain(paths: list[str], pool: ProcessPoolExecutor) -> Times:
    """Time the plain arm; its processes run already."""
    started = time.perf_counter()
    chunks = [paths[start : start + 64] for start in range(0, len(paths), 64)]
    processor = sum(pool.map(read_plainly, chunks))
    return Times(time.perf_counter() - started, processor)


def used_processor() -> float:
    """Processor time of this process and of those that it has started and waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def time_ours(root: Path, cache: Path, workers: int) -> Times:
    """Time the stage; the processes it starts are part of it.

    What only this arm needs is imported here: the processes of the plain arm import the main module.
    """
    from lewis_core.config.base import Runtime
    from lewis_core.config.data import CatalogConfig
    from lewis_core.data.catalog import build_catalog
    from lewis_core.reporting import NullReporter

    with tempfile.TemporaryDirectory() as output:
        started, used = time.perf_counter(), used_processor()
        runtime = Runtime(num_workers=workers)
        build_catalog("bench", Path(output), CatalogConfig(), root, runtime, NullReporter(), cache_dir=cache)
        return Times(time.perf_counter() - started, used_processor() - used)


def summarise(images: int, plain: list[Times], ours: list[Times]) -> dict[str, object]:
    """Rates and their ratio, by the clock and by processor time (which others on the machine disturb less)."""
    summary: dict[str, object] = {}
    for index, clock in enumerate(Times._fields):
        middle = [statistics.median(times[index] for times in arm) for arm in (plain, ours)]
        summary |= {
            f"plain_{clock}_s": [round(times[index], 2) for times in plain],
            f"catalog_{clock}_s": [round(times[index], 2) for times in ours],
            f"plain_images_per_{clock}_s": round(images / middle[0]),
            f"catalog_images_per_{clock}_s": round(images / middle[1]),
            f"ratio_{clock}": round(middle[0] / middle[1], 3),
        }
    return summary


def main() -> None:
    """Print one JSON object of numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=224, help="pixels of each side")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    from lewis_core.data import catalog, memory

    del catalog  # imported before anything is timed
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
        facts = {
            "images": len(paths),
            "size": arguments.size,
            "mean_bytes": round(sum(Path(path).stat().st_size for path in paths) / len(paths)),
            "workers": arguments.workers,
            "load": [round(value, 2) for value in os.getloadavg()],
            **summarise(len(paths), plain, cold),
            "again_wall_s": [round(times.wall, 2) for times in warm],
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
