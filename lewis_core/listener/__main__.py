"""Serve one model: ``python -m lewis_core.listener --model pocket:listener --image-root photos --port 9000``.

Exit status: 0 after SIGTERM or Ctrl-C, 2 for wrong arguments, 3 when the model cannot be loaded, 70 when it can no
longer be run, 98 when the port is taken. The service listens on loopback unless told otherwise, and beyond loopback
only with a token. SIGTERM drains it; SIGHUP makes it read its tokens and ``--model`` again and exchange the model.
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
from lewis_core.correlation import JsonLines, set_run
from lewis_core.data.limits import MAX_IMAGE_PIXELS
from lewis_core.errors import ConfigError, LewisError
from lewis_core.listener.access import Access, parse_tokens, read_token_file
from lewis_core.listener.limits import ServiceLimits
from lewis_core.threads import WAITING

if TYPE_CHECKING:
    from lewis_core.models.images import ImageFolder
    from lewis_core.models.protocol import AnsweringModel

logger = logging.getLogger("lewis_core.listener")
LOAD_FAILED, BROKEN, PORT_TAKEN = 3, 70, 98
LIMITS = ("max_body_bytes", "max_images", "max_rows", "max_waiting", "max_wait_s", "deadline_s", "max_call_s")
"""Limits that can be set on the command line, under their own names."""
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
    parser.add_argument(
        "--image-root",
        required=True,
        type=Path,
        action="append",
        help="folder that image references are relative to; repeat it to allow more folders",
    )
    parser.add_argument(
        "--catalog", type=Path, help="catalog.json of the first folder, for references by content: sha256:<digest>"
    )
    parser.add_argument(
        "--max-image-pixels", type=int, default=MAX_IMAGE_PIXELS, help="larger images are refused before decoding"
    )
    parser.add_argument("--port", required=True, type=int, help="0 takes a free one, which is logged")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--token-file", type=Path, help="file of bearer tokens that clients may send, one a line")
    parser.add_argument("--token-env", metavar="NAME", help="environment variable that holds such lines")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode images")
    parser.add_argument("--batch-size", type=int, default=64, help="completions that are written together")
    parser.add_argument("--batch-tokens", type=int, help="tokens of one forward pass that scores or answers")
    parser.add_argument("--vision-cache-mib", type=int, default=2048, help="memory for vision features of images")
    parser.add_argument(
        "--prompt-cache-mib",
        type=int,
        help="memory for keys and values of photos; by default a quarter of what is free on a GPU, and none on a CPU",
    )
    parser.add_argument("--compile-layers", action="store_true", help="compile norms and MLPs: pays in long runs")
    parser.add_argument("--drain-s", type=float, default=20.0, help="longest wait for answers after SIGTERM")
    for name in LIMITS:
        field = ServiceLimits.model_fields[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float if name.endswith("_s") else int,
            default=field.default,
            help=(field.description or "").partition("\n")[0],
        )
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    parser.add_argument("--log-format", default="text", choices=("text", "json"), help="json: one object a line")
    parser.add_argument("--run-id", default="", help="the run that it works for; part of every JSON log line")
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


def read_tokens(file: Path | None, variable: str | None, host: str) -> tuple[str, ...]:
    """Read the tokens; beyond loopback there has to be one.

    Args:
        file: File of tokens.
        variable: Name of an environment variable of tokens; both together are admitted.
        host: Where the service listens.

    Raises:
        ConfigError: If they are needed and missing, empty or too short.
    """
    tokens = read_token_file(file) if file else ()
    if variable:
        tokens += parse_tokens(os.environ.get(variable, ""), f"the environment variable {variable}")
    if not tokens and not _is_loopback(host):
        raise ConfigError(f"--host {host} can be reached from other machines; it needs a --token-file (or --token-env)")
    return tokens


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
    set_run(args.run_id, service=args.model if len(args.model) < 80 else "")
    logging.basicConfig(level=args.log_level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if args.log_format == "json":
        logging.getLogger().handlers[0].setFormatter(JsonLines())
    for name in ("httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for variable, value in WAITING.items():
        os.environ.setdefault(variable, value)
    try:
        ref, access = read_model_ref(args.model, args.engine), Access(_tokens(args))
        for root in args.image_root:
            if not root.is_dir():
                raise ConfigError(f"the image root {root} is not a folder")
        images = open_images(args)
        limits, runtime = read_limits(args, ref), read_runtime(args)
        listening = bind(args.host, args.port)
    except LewisError as error:
        logger.error("%s", error)
        return 2
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "address already in use; end what listens there, or give another --port" if taken else error.strerror
        logger.error("cannot listen on %s port %d: %s", args.host, args.port, reason)
        return PORT_TAKEN if taken else 2
    return _serve(args, ref, images, access, limits, runtime, listening)


def open_images(args: argparse.Namespace) -> "ImageFolder":
    """The folders that image references may lead to.

    Raises:
        DataError: If the catalog cannot be read.
    """
    from lewis_core.models.images import ImageFolder
    from lewis_core.records import Catalog, load_record

    catalog = load_record(args.catalog, Catalog) if args.catalog else None
    first, *others = args.image_root
    return ImageFolder(first, others, catalog, max_pixels=args.max_image_pixels)


def read_limits(args: argparse.Namespace, ref: ModelRef) -> ServiceLimits:
    """The service's limits.

    Raises:
        ConfigError: If one is impossible.
    """
    given = {name: getattr(args, name) for name in LIMITS}
    try:
        return ServiceLimits(**given, image_tokens=max(1, ref.max_pixels // PIXELS_PER_TOKEN))
    except ValueError as error:
        raise ConfigError(f"impossible limits: {error}") from error


def read_runtime(args: argparse.Namespace) -> Runtime:
    """How the model runs.

    Raises:
        ConfigError: If a setting is impossible.
    """
    try:
        return Runtime(
            device=args.device,
            num_workers=args.workers,
            torch_threads=args.threads,
            batch_size=args.batch_size,
            batch_tokens=args.batch_tokens,
            vision_cache_mib=args.vision_cache_mib,
            prompt_cache_mib=args.prompt_cache_mib,
            compile_layers=args.compile_layers,
        )
    except ValueError as error:
        raise ConfigError(f"impossible settings: {error}") from error


def _tokens(args: argparse.Namespace) -> tuple[str, ...]:
    return read_tokens(args.token_file, args.token_env, args.host)


def _serve(
    args: argparse.Namespace,
    ref: ModelRef,
    images: "ImageFolder",
    access: Access,
    limits: ServiceLimits,
    runtime: Runtime,
    listening: socket.socket,
) -> int:
    from lewis_core.listener.server import make_server
    from lewis_core.listener.service import create_app

    failures: list[int] = []

    def load(chosen: ModelRef = ref) -> "AnsweringModel":
        from lewis_core.models.vlm import open_model

        return open_model(chosen, runtime, images)

    def fail(error: BaseException) -> None:
        failures.append(LOAD_FAILED if worker.generation == 1 and not worker.was_ready else BROKEN)
        server.should_exit = True

    def read_again() -> None:
        try:
            access.replace(_tokens(args))
            chosen = read_model_ref(args.model, args.engine)
        except LewisError as error:
            logger.error("nothing was exchanged: %s", error)
            return
        logger.info("tokens were read again; loading %s", chosen.path)
        worker.reload(lambda: load(chosen))

    app = create_app(load, model_name=ref.path, access=access, limits=limits, on_failure=fail)
    worker = app.state.worker
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has stopped
        signal.signal(number, _ignore)
    server = make_server(app, drain_s=args.drain_s, on_hangup=read_again)
    signal.signal(signal.SIGHUP, server.hang_up)
    logger.info("listening on http://%s:%d, loading %s", args.host, listening.getsockname()[1], ref.path)
    server.run(sockets=[listening])
    logger.info("stopped")
    return failures[0] if failures else 0


def _ignore(number: int, frame: FrameType | None) -> None:
    """Let the process end by itself, with its own exit status."""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    if any(
        thread.name in ("model", "loader") for thread in threading.enumerate()
    ):  # busy in native code, which would abort
        logging.shutdown()
        os._exit(exit_status)
    sys.exit(exit_status)
