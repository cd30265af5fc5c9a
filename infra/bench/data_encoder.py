"""How much of a CLIP model's speed is left when it is fed from JPEG files.

    python -m infra.bench.data_encoder                                                     # ViT-L/14-336 on a GPU
    python -m infra.bench.data_encoder --model ViT-B-32-tiny --device cpu --images 64      # checks that it runs

Pure: the image tower's forward pass, again and again, on one batch that lies on the device. From files: all that the
stage ``embed-images`` does for pictures that it does not know, from reading and checking files to embeddings on the
CPU, the start of worker processes included; and the same without the time until the first batch is there. Weights are
random, photos are generated; nothing is downloaded.
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lewis_core.config.base import Runtime
from lewis_core.config.data import EncoderConfig
from lewis_core.records import ImageRecord

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 28, "layers": 1, "width": 16, "head_width": 8, "patch_size": 14},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


def write_photo(task: tuple[Path, int, int, int]) -> ImageRecord:
    """Write one photo of natural compressibility."""
    root, number, width, height = task
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    name = f"{number:06d}.jpg"
    (root / name).write_bytes(buffer.getvalue())
    return ImageRecord(path=name, sha256=hashlib.sha256(buffer.getvalue()).hexdigest(), width=width, height=height)


def write_model(name: str, folder: Path, device: str) -> None:
    """Write a model of random weights in half precision, as a folder that open_clip loads."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = TINY if name == "ViT-B-32-tiny" else open_clip.get_model_config(name)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    with torch.device(device):
        model = open_clip.CLIP(**{key: value for key, value in config.items() if key != "custom_text"})
    weights = {key: value.to("cpu", torch.float16).contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def time_pure(encoder: Any, batch_size: int, repeats: int) -> list[float]:
    """Images per second of bare forward passes."""
    import torch

    size = encoder.geometry.height, encoder.geometry.width
    pixels = torch.randn(batch_size, 3, *size, device=encoder._device, dtype=encoder._dtype)
    wait = torch.cuda.synchronize if encoder.feeds_gpu else lambda: None
    rates = []
    with torch.inference_mode():
        for _ in range(3):
            encoder._model.encode_image(pixels)
        for _ in range(repeats):
            wait()
            started = time.perf_counter()
            for _ in range(10):
                encoder._model.encode_image(pixels)
            wait()
            rates.append(10 * batch_size / (time.perf_counter() - started))
    return rates


def time_from_files(encoder: Any, images: list[ImageRecord], root: Path, workers: int) -> tuple[float, float]:
    """Images per second: of everything, and from the second batch on."""
    from lewis_core.retrieval.embedding import encode_pictures

    runtime = Runtime(num_workers=workers)
    started = time.perf_counter()
    first = 0.0
    for number, _ in enumerate(encode_pictures(images, encoder, root, runtime), 1):
        if number == encoder.batch_size:
            first = time.perf_counter()
    ended = time.perf_counter()
    return len(images) / (ended - started), (len(images) - encoder.batch_size) / (ended - first)


def main() -> None:
    """Print one JSON object of numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-L-14-336")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--photo", type=int, nargs=2, default=(640, 480), help="width and height of the photos")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lewis-bench-") as temporary:
        root = Path(temporary) / "photos"
        root.mkdir()
        tasks = [(root, number, *options.photo) for number in range(options.images)]
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            images = list(pool.map(write_photo, tasks, chunksize=64))
        from lewis_core.retrieval.encoder import ClipEncoder

        write_model(options.model, Path(temporary) / "model", options.device)
        config = EncoderConfig(
            model=f"local-dir:{temporary}/model", precision=options.precision, batch_size=options.batch_size
        )
        encoder = ClipEncoder(config, Runtime(device=options.device))
        ready = time.perf_counter()
        pure, all_of_it, later = [], [], []
        for _ in range(options.repeats):
            pure += time_pure(encoder, options.batch_size, 3)
            rate, rate_later = time_from_files(encoder, images, root, options.workers)
            all_of_it.append(rate)
            later.append(rate_later)
        print(json.dumps(report(options, images, root, pure, all_of_it, later, ready - begun), indent=1))


def report(
    options: argparse.Namespace,
    images: list[ImageRecord],
    root: Path,
    pure: list[float],
    all_of_it: list[float],
    later: list[float],
    prepared_s: float,
) -> dict[str, object]:
    """Rates, their ratios, and what they were measured on."""
    import torch

    middle = statistics.median(pure)
    return {
        "model": options.model,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "workers": options.workers,
        "images": len(images),
        "photo": list(options.photo),
        "mean_bytes": round(sum((root / image.path).stat().st_size for image in images) / len(images)),
        "pure_images_per_s": [round(rate, 1) for rate in pure],
        "from_files_images_per_s": [round(rate, 1) for rate in all_of_it],
        "after_first_batch_images_per_s": [round(rate, 1) for rate in later],
        "ratio": round(statistics.median(all_of_it) / middle, 3),
        "ratio_after_first_batch": round(statistics.median(later) / middle, 3),
        "prepared_s": round(prepared_s, 1),
    }


if __name__ == "__main__":
    main()
