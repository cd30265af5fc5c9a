"""How training processes are started: ``accelerate launch``, on one machine or several.

On several machines the flow runs on the first. The others run ``python -m tasks.join <work folder>``, on a file system
that they share: they find there what the first one starts, and start their part of it (:mod:`tasks.join`).
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lewis_core.config.base import Runtime
from lewis_core.config.grpo import GrpoConfig
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.errors import ConfigError

DEEPSPEED = Path(__file__).resolve().parents[1] / "infra" / "deepspeed"
"""DeepSpeed's settings: a file for each strategy but ``ddp``, and one for adapters under ZeRO-2."""
RENDEZVOUS = "rendezvous"
"""Folder below the logs in which several machines meet."""
_ENDED = "ended"
"""File in it: the id of the last run that ended well."""


@dataclass(frozen=True)
class Machine:
    """This machine's place among those of a training."""

    rank: int = 0
    address: str = "127.0.0.1"
    """Of the first machine."""
    port: int = 0
    """On the first machine; 0: any, which works for one machine only."""


def this_machine(environment: Mapping[str, str], num_machines: int) -> Machine:
    """Read this machine's place from MACHINE_RANK (or SLURM_NODEID), MAIN_ADDRESS and MAIN_PORT.

    Raises:
        ConfigError: If there are several machines and the first one's address is missing.
    """
    if num_machines == 1:
        return Machine()
    address = environment.get("MAIN_ADDRESS") or environment.get("MASTER_ADDR")
    if not address:
        raise ConfigError(
            f"training.distributed.num_machines is {num_machines}: set MAIN_ADDRESS (and MAIN_PORT, else 29500) to "
            "where the first machine can be reached, and MACHINE_RANK to 0 there; see infra/docs/training.md"
        )
    rank = environment.get("MACHINE_RANK") or environment.get("SLURM_NODEID") or "0"
    port = environment.get("MAIN_PORT") or environment.get("MASTER_PORT") or "29500"
    for name, text in (("MACHINE_RANK", rank), ("MAIN_PORT", port)):
        if not text.isdecimal():
            raise ConfigError(f"{name} is {text!r}, which is no number")
    return Machine(int(rank), address, int(port))


def check_machines(
    config: GrpoConfig,
    environment: Mapping[str, str],
    services: Mapping[str, Sequence[str]],
    roles: Sequence[str] = ("listener",),
) -> None:
    """Check, before anything is started, that all machines of a training can meet, and reach its listeners.

    Args:
        config: Of the training.
        environment: Says where this machine is.
        services: Services that are started elsewhere, by role (``run.services``).
        roles: Of the listeners, one after the other.

    Raises:
        ConfigError: If not.
    """
    machines = config.distributed.num_machines
    this_machine(environment, machines)
    if machines == 1 or not isinstance(config, TrainSpeakerConfig) or config.rewards.listener.weight == 0:
        return
    if missing := [f"run.services.{role}" for role in roles if not services.get(role)]:
        raise ConfigError(
            f"training.distributed.num_machines is {machines}, and a listener that the flow starts is reached by the "
            f"first machine alone: serve it by hand and name it in {', '.join(missing)} (run.services has "
            f"{', '.join(services) or 'none'}); see infra/docs/training.md"
        )
    for role in roles:
        if near := [url for url in services[role] if _is_here_alone(url)]:
            raise ConfigError(
                f"{near[0].partition('#')[0]} in run.services.{role} is this machine alone, and {machines} machines "
                "train: name it by an address that all of them reach"
            )


def _is_here_alone(url: str) -> bool:
    return (urlsplit(url).hostname or "") in ("localhost", "::1") or "//127." in url


def accelerate_command(
    config: GrpoConfig, runtime: Runtime, entry: Sequence[str], machine: Machine, *, has_gpu: bool
) -> list[str]:
    """Command line that starts this machine's training processes.

    Args:
        config: Processes, machines, strategy.
        runtime: Threads.
        entry: Module that they run, and its arguments.
        machine: This machine's place.
        has_gpu: Whether they run on GPUs.
    """
    machines, strategy = config.distributed.num_machines, config.distributed.strategy
    here = config.num_processes // machines
    threads = runtime.torch_threads or max(1, (os.cpu_count() or 1) // here)
    options = ["--num_processes", str(config.num_processes), "--num_machines", str(machines)]
    options += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", str(threads)]
    options += ["--main_process_port", str(machine.port)]
    if machines > 1:
        options += ["--machine_rank", str(machine.rank), "--main_process_ip", machine.address]
        options += ["--rdzv_backend", "static", "--same_network"]
    if strategy != "ddp":
        options += ["--use_deepspeed", "--deepspeed_config_file", str(deepspeed_file(config))]
        options += ["--deepspeed_multinode_launcher", "standard"]
        options += ["--zero3_init_flag", str(config.distributed.shards_weights).lower()]
    else:
        options += ["--mixed_precision", "no"]
        if config.num_processes > 1:
            options.append("--multi_gpu")  # the launcher of several processes, also without GPUs
        elif not has_gpu:
            options.append("--cpu")
    return [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", *entry]


def deepspeed_file(config: GrpoConfig) -> Path:
    """DeepSpeed's settings for a strategy other than ``ddp``.

    A whole model's gradients are exchanged part by part beside the backward pass, and DeepSpeed waits for the GPU after
    it. An adapter's are one part, which is exchanged after the pass, so that nothing would be won by that wait.
    """
    strategy = config.distributed.strategy
    is_one_part = strategy == "zero2" and not config.full_finetuning
    return DEEPSPEED / ("zero2_adapter.json" if is_one_part else f"{strategy}.json")


def launcher_environment(grace_s: float) -> dict[str, str]:
    """Variables of the launcher: it gives its processes as long to end as it has itself (its own default: 30 s)."""
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(grace_s))}


@dataclass(frozen=True)
class Announcement:
    """What the first machine starts, for the others to join."""

    stage: str
    spec_file: str
    address: str
    port: int
    threads: int | None
    attempt: str
    """Different for every start of the same stage."""
    grace_s: float
    """Time between asking it to end and making it."""


def announce(folder: Path, announcement: Announcement) -> Path:
    """Tell the other machines what is started; returns the file to remove when it has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{Path(announcement.spec_file).stem}.json"
    file.with_suffix(".tmp").write_text(json.dumps(asdict(announcement)), encoding="utf-8")
    file.with_suffix(".tmp").replace(file)
    return file


def dismiss(folder: Path, run_id: str) -> None:
    """Tell the machines that have joined, if there are any, that the run has ended well."""
    if folder.is_dir():
        (folder / _ENDED).with_suffix(".tmp").write_text(run_id, encoding="utf-8")
        (folder / _ENDED).with_suffix(".tmp").replace(folder / _ENDED)


def last_ended(folder: Path) -> str | None:
    """The id of the last run that ended well; ``None``: there was none."""
    try:
        return (folder / _ENDED).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
