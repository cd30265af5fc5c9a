"""Take part in the training of a flow that runs on another machine: ``python -m tasks.join <work folder>``.

Started once on every machine but the first, with the same environment, code and file system. It waits for trainings
that the flow starts, starts this machine's processes of each, and waits for the next; a training that is started again
after a failure is joined again. It ends when it is told to, with ``--until-run-ends`` when the flow has ended well, or
after ``--idle-s`` seconds without anything to do.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lewis_core.config.base import Runtime
from lewis_core.config.grpo import GrpoConfig
from lewis_core.errors import ConfigError, LewisError, ProcessError
from lewis_core.stages import Stage
from tasks.launch import LaunchSpec, typed_arguments
from tasks.processes import process_scope, run_process
from tasks.training_launch import (
    RENDEZVOUS,
    Announcement,
    Machine,
    accelerate_command,
    last_ended,
    launcher_environment,
)

logger = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0


def waiting(folder: Path, done: set[str]) -> Announcement | None:
    """Find a training that was announced and not joined yet."""
    for file in sorted(folder.glob("*.json")):
        try:
            found = Announcement(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue  # being removed, or of another version
        if found.attempt not in done:
            return found
    return None


def join(announcement: Announcement, rank: int, device: str, logs: Path) -> None:
    """Run this machine's processes of a training.

    Raises:
        ConfigError: If this machine is none of the training's.
        ProcessError: If they fail.
    """
    spec = LaunchSpec.model_validate_json(Path(announcement.spec_file).read_text(encoding="utf-8"))
    stage = Stage(spec.stage, spec.function, isolated=True, asks=spec.asks)
    config = typed_arguments(stage, spec.arguments)["config"]
    if not isinstance(config, GrpoConfig) or not 0 < rank < config.distributed.num_machines:
        raise ConfigError(f"{spec.stage} runs on other machines than number {rank}: set MACHINE_RANK or --machine-rank")
    runtime = Runtime.model_validate({"device": device, "torch_threads": announcement.threads})
    machine = Machine(rank, announcement.address, announcement.port)
    command = accelerate_command(
        config, runtime, ["tasks.launch", announcement.spec_file], machine, has_gpu=device != "cpu"
    )
    log = logs / f"{Path(announcement.spec_file).stem}-machine-{rank}.log"
    grace_s = announcement.grace_s
    run_process(spec.stage, command, log, env=launcher_environment(grace_s), grace_s=grace_s)


def main(arguments: Sequence[str]) -> int:
    """Join what comes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tasks.join", description=__doc__)
    parser.add_argument("work_dir", type=Path, help="the run's work folder, as in the flow's settings")
    rank = os.environ.get("MACHINE_RANK") or os.environ.get("SLURM_NODEID")
    parser.add_argument("--machine-rank", type=int, default=rank, required=rank is None)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--until-run-ends", action="store_true", help="end when a run of the flow has ended well")
    parser.add_argument("--idle-s", type=float, default=float("inf"), help="end after so long without anything to do")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logs = options.work_dir.absolute() / "logs"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # its processes are asked to end then
    done: set[str] = set()
    since, before = time.monotonic(), last_ended(logs / RENDEZVOUS)
    with process_scope():
        while time.monotonic() - since < options.idle_s:
            found = waiting(logs / RENDEZVOUS, done)
            if found is None:
                if options.until_run_ends and last_ended(logs / RENDEZVOUS) != before:
                    logger.info("the run has ended well")
                    break
                time.sleep(LOOK_EVERY_S)
                continue
            done.add(found.attempt)
            logger.info("joining %s at %s:%d", found.stage, found.address, found.port)
            try:
                join(found, options.machine_rank, options.device, logs)
                logger.info("%s has ended well", found.stage)
            except ProcessError as error:
                logger.warning("%s ended with status %d; waiting for its next start", found.stage, error.code)
            except LewisError as error:
                logger.error("%s", error)
                return 1
            since = time.monotonic()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
