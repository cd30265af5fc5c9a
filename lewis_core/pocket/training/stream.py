"""An endless stream of random things: renderers fill a pool of pixels, writers make the batches.

All processes are forked before the first CUDA call. They share a memory-mapped file of pixels and
a few counters; batches come through a queue.
"""

import multiprocessing as mp
import queue
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import numpy as np
import torch

from lewis_core.pocket.render import render
from lewis_core.pocket.training.assets import IMAGE_SIZE
from lewis_core.pocket.training.config import StreamConfig
from lewis_core.pocket.training.probe import ATTRIBUTES, attribute_labels
from lewis_core.pocket.world import (
    Facts,
    Identity,
    Scene,
    photo_facts,
    random_identity,
    random_scene,
)
from lewis_core.seeding import stable_rng

FORK = mp.get_context("fork")
QUEUE_SIZE = 32
MakeBatch = Callable[[np.random.Generator, Callable[[int], Facts], tuple[int, int]], Any]


def stream_item(seed: int, index: int) -> tuple[Identity, Scene]:
    """Draw the thing and scene of one photo of the stream; equal in every process."""
    rng = stable_rng(seed, "stream", index)
    identity = random_identity(rng)
    return identity, random_scene(rng, identity.category)


def stream_facts(seed: int, index: int) -> Facts:
    """Return what is true of one photo of the stream."""
    return photo_facts(*stream_item(seed, index))


class PixelPool:
    """Renders a stream's photos in the background; chunk 0 is for validation.

    Use it as a context manager; leaving it stops the renderers and removes the files.
    """

    def __init__(self, config: StreamConfig) -> None:
        """Start rendering."""
        self.config = config
        self.num_total = config.num_images // config.chunk * config.chunk + config.chunk
        self.num_chunks = self.num_total // config.chunk
        stem = f"pocket-{config.seed}-{time.time_ns()}"
        self.files = [config.scratch_dir / f"{stem}.{kind}" for kind in ("pixels", "labels")]
        self.pixels, self.labels = self._map("w+")
        self.done = [FORK.Value("i", 0) for _ in range(self.num_chunks)]
        self.processes = [
            FORK.Process(target=self._render_share, args=(worker,), daemon=True)
            for worker in range(config.num_renderers)
        ]
        for process in self.processes:
            process.start()

    def _map(self, mode: Any) -> "tuple[np.memmap[Any, Any], np.memmap[Any, Any]]":
        shape = (self.num_total, IMAGE_SIZE, IMAGE_SIZE, 3)
        pixels = np.memmap(self.files[0], np.uint8, mode, shape=shape)
        return pixels, np.memmap(self.files[1], np.int16, mode, shape=(self.num_total, len(ATTRIBUTES)))

    def _render_share(self, worker: int) -> None:
        torch.set_num_threads(1)
        pixels, labels = self._map("r+")
        chunk = self.config.chunk
        for index in range(self.num_chunks):
            first, end = index * chunk + worker, (index + 1) * chunk
            for row in range(first, end, self.config.num_renderers):
                item = stream_item(self.config.seed, row)
                pixels[row] = np.asarray(render(*item, IMAGE_SIZE))
                labels[row] = attribute_labels(*item)
            with self.done[index].get_lock():
                self.done[index].value += 1

    def is_chunk_ready(self, index: int) -> bool:
        """Tell whether all photos of a chunk are rendered."""
        return bool(self.done[index].value == self.config.num_renderers)

    def __enter__(self) -> "PixelPool":
        return self

    def __exit__(self, *_: object) -> None:
        stop_processes(self.processes)
        for file in self.files:
            file.unlink(missing_ok=True)


class DevicePool:
    """The pool's finished chunks on the training device."""

    def __init__(self, pool: PixelPool, device: str) -> None:
        """Reserve the memory."""
        self.pool, self.device, self.num_loaded = pool, device, 0
        shape = (pool.num_total, IMAGE_SIZE, IMAGE_SIZE, 3)
        self.pixels = torch.empty(shape, dtype=torch.uint8, device=device)
        self.labels = torch.zeros((pool.num_total, len(ATTRIBUTES)), dtype=torch.long, device=device)
        self.num_trainable = torch.zeros((), device=device)
        """Photos to train on so far, as a tensor that recorded steps read."""

    def load_ready(self) -> None:
        """Copy chunks that have been finished since the last call, in order."""
        chunk = self.pool.config.chunk
        while self.num_loaded < self.pool.num_chunks and self.pool.is_chunk_ready(self.num_loaded):
            rows = slice(self.num_loaded * chunk, (self.num_loaded + 1) * chunk)
            self.pixels[rows] = torch.from_numpy(self.pool.pixels[rows]).to(self.device)
            labels = self.pool.labels[rows].astype(np.int64)
            self.labels[rows] = torch.from_numpy(labels).to(self.device)
            self.num_loaded += 1
            self.num_trainable.fill_(float((self.num_loaded - 1) * chunk))

    def wait_for(self, num_chunks: int) -> None:
        """Block until that many chunks, validation included, are on the device."""
        while self.num_loaded < min(num_chunks, self.pool.num_chunks):
            time.sleep(0.05)
            self.load_ready()

    def images(self, indices: torch.Tensor) -> torch.Tensor:
        """Return photos as float ``(N, 3, S, S)`` of 0..255."""
        return self.pixels.index_select(0, indices).permute(0, 3, 1, 2).float()


class Feeder:
    """Processes that make batches of exercises once they are told which photos exist."""

    def __init__(self, config: StreamConfig, name: str, make_batch: MakeBatch) -> None:
        """Fork the writers; they idle until :meth:`open`."""
        self.config, self.name, self.make_batch = config, name, make_batch
        self.queue: Any = FORK.Queue(QUEUE_SIZE)
        self.limit: Synchronized[int] = FORK.Value("i", 0)
        self.stopped: Synchronized[int] = FORK.Value("i", 0)
        self.processes = [
            FORK.Process(target=self._write, args=(worker,), daemon=True) for worker in range(config.num_writers)
        ]
        for process in self.processes:
            process.start()

    def open(self, num_total: int) -> None:
        """Let the writers draw from photos ``chunk`` to ``num_total``."""
        self.limit.value = num_total

    def _write(self, worker: int) -> None:
        torch.set_num_threads(1)
        rng, cache = stable_rng(self.config.seed, self.name, worker), dict[int, Facts]()

        def facts_of(index: int) -> Facts:
            if index not in cache:
                cache[index] = stream_facts(self.config.seed, index)
            return cache[index]

        while not self.limit.value and not self.stopped.value:
            time.sleep(0.05)
        while not self.stopped.value:
            self._put(self.make_batch(rng, facts_of, (self.config.chunk, self.limit.value)))

    def _put(self, batch: Any) -> None:
        while not self.stopped.value:
            try:
                self.queue.put(batch, timeout=1)
            except queue.Full:
                continue
            return

    def get(self) -> Any:
        """Return the next batch."""
        return self.queue.get(timeout=120)

    def __enter__(self) -> "Feeder":
        return self

    def close(self) -> None:
        """Stop the writers; safe to call twice."""
        self.stopped.value = 1
        stop_processes(self.processes)
        self.processes = []

    def __exit__(self, *_: object) -> None:
        self.close()


def stop_processes(processes: "list[Any]") -> None:
    """Terminate processes started here."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=5)
