"""Serve one model: ``python -m lewis_core.listener --model pocket:listener --image-root photos --port 9000``.

Exit status: 0 after SIGTERM or Ctrl-C, 2 for wrong arguments, 3 when the model cannot be loaded, 98 when the port is
taken. The service listens on loopback unless told otherwise, and beyond loopback only with a token.
"""

import argparse
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.errors import ConfigError, LewisError
from lewis_core.threads import WAITING

if TYPE_CHECKING:
    from lewis_core.models.protocol import AnsweringModel

logger = logging.getLogger("lewis_core.listener")
LOAD_FAILED, PORT_TAKEN = 3, 98
PIXELS_PER_TOKEN = 28 * 28
"""Of Qwen2-VL and Qwen2.5-VL: two by two patches of 14 by 14."""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends the process with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m lewis_core.listener", description="Serve one model over HTTP.")
    parser.add_argument(
        "--model", required=True, help="folder, hub id, pocket:<name>, or a ModelRef as JSON (text or a .json file)"
    )
    parser.add_argument(
        "--engine", choices=("shared_prefix", "plain"), help="how it runs, if not as --model says: plain is slow"
    )
    parser.add_argument("--image-root", required=True, type=Path, help="folder that image references are relative to")
    parser.add_argument("--port", required=True, type=int, help="0 takes a free one, which is logged")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--token-file", type=Path, help="file with the bearer token that clients must send")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode images")
    parser.add_argument("--batch-size", type=int, default=64, help="completions that are written together")
    parser.add_argument("--batch-tokens", type=int, help="tokens of one forward pass that scores or answers")
    parser.add_argument("--vision-cache-mib", type=int, default=2048, help="memory for vision features of images")
    parser.add_argument("--compile-layers", action="store_true", help="compile norms and MLPs: pays in long runs")
    parser.add_argument("--max-waiting", type=int, default=128, help="requests that may wait; more get 503")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser.parse_args(arguments)


def read_model_ref(text: str, engine: str | None = None) -> ModelRef:
    """Turn the ``--model`` argument into a reference, with another engine if one is given.

    Raises:
        ConfigError: If it is JSON, but not a model reference.
    """
    content = text
    if text.endswith(".json"):
        try:
            content = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{text} cannot be read: {error.strerror}") from error
    elif not text.lstrip().startswith("{"):
        prompts = "concise" if text.startswith("pocket:") else "instruct"
        content = json.dumps({"path": text, "prompts": prompts})
    try:
        ref = ModelRef.model_validate_json(content)
    except ValueError as error:
        raise ConfigError(f"--model is not a model reference: {error}") from error
    return ref.model_copy(update={"engine": engine}) if engine else ref


def read_token(path: Path | None, host: str) -> str | None:
    """Read the token; beyond loopback there has to be one.

    Raises:
        ConfigError: If it is needed and missing, or empty.
    """
    if path is None:
        if not _is_loopback(host):
            raise ConfigError(f"--host {host} can be reached from other machines; it needs a --token-file")
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"the token file {path} cannot be read: {error.strerror}") from error
    if not token:
        raise ConfigError(f"the token file {path} is empty")
    return token


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything slow begins.

    Raises:
        OSError: If it is taken, or the host is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except OSError:
        listening.close()
        raise
    return listening


def main(arguments: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit status."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=args.log_level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for name in ("httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for variable, value in WAITING.items():
        os.environ.setdefault(variable, value)
    try:
        ref, token = read_model_ref(args.model, args.engine), read_token(args.token_file, args.host)
        if not args.image_root.is_dir():
            raise ConfigError(f"the image root {args.image_root} is not a folder")
        listening = bind(args.host, args.port)
    except LewisError as error:
        logger.error("%s", error)
        return 2
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "address already in use" if taken else error.strerror
        logger.error("cannot listen on %s port %d: %s", args.host, args.port, reason)
        return PORT_TAKEN if taken else 2
    return _serve(args, ref, token, listening)


def _serve(args: argparse.Namespace, ref: ModelRef, token: str | None, listening: socket.socket) -> int:
    import uvicorn

    from lewis_core.listener.service import ServiceLimits, create_app

    failures: list[BaseException] = []

    def load() -> "AnsweringModel":
        from lewis_core.models.vlm import open_model

        runtime = Runtime(
            device=args.device,
            num_workers=args.workers,
            torch_threads=args.threads,
            batch_size=args.batch_size,
            batch_tokens=args.batch_tokens,
            vision_cache_mib=args.vision_cache_mib,
            compile_layers=args.compile_layers,
        )
        return open_model(ref, runtime, args.image_root)

    def fail(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    limits = ServiceLimits(max_waiting=args.max_waiting, image_tokens=max(1, ref.max_pixels // PIXELS_PER_TOKEN))
    app = create_app(load, model_name=ref.path, token=token, limits=limits, on_failure=fail)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has stopped
        signal.signal(number, _ignore)
    logger.info("listening on http://%s:%d, loading %s", args.host, listening.getsockname()[1], ref.path)
    server.run(sockets=[listening])
    logger.info("stopped")
    return LOAD_FAILED if failures else 0


def _ignore(number: int, frame: FrameType | None) -> None:
    """Let the process end by itself, with its own exit status."""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    if any(thread.name == "model" for thread in threading.enumerate()):  # busy in native code, which would abort
        logging.shutdown()
        os._exit(exit_status)
    sys.exit(exit_status)
