"""How each stage is treated: GPUs, retries, tags, time limits. All of it is here.

A retry is kept for what it can help: a model service that went away, which is started again first, and a process that
was killed. A stage that failed for another reason would fail again; the same command, later, goes on where it stopped.
When a cached result is good is said by the stage's identity (:mod:`lewis_core.stages`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect.client.schemas import State

from lewis_core import pipeline
from lewis_core.config.grpo import GrpoConfig
from lewis_core.config.pipeline import RunConfig
from lewis_core.errors import KilledError, ListenerBusyError, ListenerUnavailableError
from lewis_core.stages import Stage
from tasks.processes import is_closing

SERVICE_RETRIES_S = (2.0, 10.0, 30.0)
"""Pauses before a stage asks a model service again, or training goes on from its last checkpoint."""
GRACE_S = 10.0
"""Seconds between asking a stage that has nothing to save to end, and making it."""
ON_A_GPU = frozenset(
    stage.name
    for stage in (
        pipeline.EMBED_IMAGES,
        pipeline.TRAIN_SPEAKER,
        pipeline.TRAIN_LISTENER,
        pipeline.DESCRIBE_CONCEPTS,
        pipeline.INDEX_DATABASE,
        pipeline.JUDGE_DESCRIPTIONS,
        pipeline.REFINE_DESCRIPTIONS,
        pipeline.COMPARE_VISUALLY,
    )
)
"""Stages that compute on a GPU if there is one; all others ask a service, or need none."""
_TRAININGS = frozenset((pipeline.TRAIN_SPEAKER.name, pipeline.TRAIN_LISTENER.name))


@dataclass(frozen=True)
class Policy:
    """How a stage is treated."""

    tags: tuple[str, ...] = ()
    """In Prefect, to filter and to limit by."""
    retry_delays_s: tuple[float, ...] = ()
    """Pauses before further attempts; none: a failure is final."""
    is_on_gpu: bool = False
    """Whether it computes on GPUs."""

    def num_gpus(self, arguments: Mapping[str, object]) -> int:
        """GPUs that it takes on this machine: one, or one for each training process."""
        config = arguments.get("config")
        if not self.is_on_gpu:
            return 0
        return config.num_processes // config.distributed.num_machines if isinstance(config, GrpoConfig) else 1


def policy_of(stage: Stage) -> Policy:
    """How a stage is treated."""
    is_on_gpu, asks = stage.name in ON_A_GPU, bool(stage.asks)
    tags = {"isolated": stage.isolated, "gpu": is_on_gpu, "model-service": asks}
    return Policy(
        tags=tuple(name for name, is_so in tags.items() if is_so),
        retry_delays_s=SERVICE_RETRIES_S if asks or stage.name in _TRAININGS else (),
        is_on_gpu=is_on_gpu,
    )


def timeout_of(stage: Stage, config: RunConfig) -> float | None:
    """Seconds that a stage may take; ``None``: as long as it needs."""
    return config.stage_timeouts_s.get(stage.name, config.stage_timeout_s)


def grace_of(stage: Stage, config: RunConfig) -> float:
    """Seconds between asking a stage to end and making it: training saves its last finished step."""
    return config.training_grace_s if stage.name in _TRAININGS else GRACE_S


def training_of(stage: Stage, arguments: Mapping[str, object]) -> GrpoConfig | None:
    """Settings of a stage that trains, whose processes and machines are several; ``None``: it is another one."""
    config = arguments.get("config")
    return config if isinstance(config, GrpoConfig) and stage.name in _TRAININGS else None


def can_retry(_task: object, _task_run: object, state: State[Any]) -> bool:
    """Whether another attempt can help: the service went away or the process was killed, and the flow goes on."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, ListenerUnavailableError | ListenerBusyError | KilledError) and not is_closing()
