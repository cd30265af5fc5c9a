"""The process that is asked by :mod:`infra.bench.load`: one model, behind the product's service and the reference's.

python -m infra.bench.load_service FOLDER SIZE DEVICE
"""

import asyncio
import json
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Any

VISUAL_TOKENS = {"tiny": 4, "pocket": 16, "2b": 256, "7b": 256}


def serve(folder: Path, size: str, device: str) -> None:
    """Load one model, put both services around it, write their ports down, and serve until killed."""
    if device == "cpu":
        import torch

        torch.set_num_threads(1)  # the other core asks
    facade, baselines = load(size, device, folder / "photos")
    from lewis_core.listener.__main__ import bind
    from lewis_core.listener.server import make_server
    from lewis_core.listener.service import create_app

    sockets = [bind("127.0.0.1", 0) for _ in range(2)]
    server = make_server(create_app(lambda: facade, model_name=size), drain_s=1.0)
    other = make_reference(baselines)
    for one, socket in zip((server, other), sockets, strict=True):
        threading.Thread(target=one.run, kwargs={"sockets": [socket]}, daemon=True).start()
    while not (server.started and other.started):
        time.sleep(0.01)
    facts = {"ports": [socket.getsockname()[1] for socket in sockets], "hardware": hardware(device)}
    (folder / "ready.tmp").write_text(json.dumps(facts))
    (folder / "ready.tmp").rename(folder / "ready.json")
    while True:
        time.sleep(0.5)
        if device == "cuda":
            import torch

            (folder / "cuda").write_text(str(torch.cuda.memory_reserved() >> 20))


def load(size: str, device: str, photos: Path) -> tuple[Any, Any]:
    """The model, as the product and as the reference use it."""
    from infra.bench import world
    from infra.bench.listener import Baselines, open_facade

    if size != "pocket":
        processor = world.build_processor(VISUAL_TOKENS[size])
        model = world.build_model(size, processor, device)
    else:
        from lewis_core.config.base import ModelRef, Runtime
        from lewis_core.models.loading import load_model

        ref = ModelRef(path="pocket:listener", prompts="concise", dtype="float32", max_pixels=12544, min_pixels=12544)
        model, processor = load_model(ref, Runtime(device="cpu", torch_threads=1))
    return open_facade(model, processor, photos), Baselines(model, processor, photos)


def make_reference(baselines: Any) -> Any:
    """A service in the reference's style: ``/batch_score``, one request at a time, each pair by a generation."""
    import uvicorn
    from fastapi import FastAPI, HTTPException

    app, free = FastAPI(), asyncio.Semaphore(1)

    @app.post("/batch_score")
    async def batch_score(body: dict[str, Any]) -> dict[str, Any]:
        try:
            await asyncio.wait_for(free.acquire(), 300)
        except TimeoutError as error:
            raise HTTPException(503) from error
        try:
            pairs = [(path, one["question"]) for one in body["batch"] for path in one["candidate_paths"]]
            return {"results": await asyncio.to_thread(baselines.one_by_one, pairs, True)}
        finally:
            free.release()

    return uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))


def hardware(device: str) -> str:
    """Name of what computes."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    serve(Path(sys.argv[1]), *sys.argv[2:4])
