"""Steps of training: what is checked first, a speaker's training, what becomes of any result."""

import os

from flows import steps
from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import ModelRef
from lewis_core.config.grpo import GrpoConfig
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.errors import ConfigError
from lewis_core.stages import Stage
from lewis_core.training.naming import dataset_name, trained_name
from tasks.run import PipelineRun
from tasks.training_launch import check_machines


def train_speaker(run: PipelineRun, dataset: ArtifactRef) -> ArtifactRef:
    """Play the game until the speaker is better: GRPO against the listener."""
    config = run.config.training
    if run.config.dataset.role != "speaker":
        raise ConfigError('a speaker is trained on games: set dataset.role = "speaker"')
    check_speaker(run, dataset, config, steps.LISTENER)
    listener = run.service(steps.LISTENER, config.listener) if config.rewards.listener.weight > 0 else None
    held_out = run.service(steps.INDEPENDENT, config.held_out_listener) if config.held_out_listener else None
    result = run.stage(pipeline.TRAIN_SPEAKER, service=listener, held_out=held_out, dataset=dataset, config=config)
    run.stop_services(keep=useful_later(run, config))
    publish(run, pipeline.TRAIN_SPEAKER, result, config)
    return result


def useful_later(run: PipelineRun, config: TrainSpeakerConfig) -> list[ModelRef]:
    """Models that evaluations ask next, and whose services have room to keep what they have read.

    Those beside the training had none (:func:`tasks.services.told_beside_training`), and are better started again.
    """
    wanted = [ref for ref in steps.evaluation_models(run) if ref in (config.listener, config.held_out_listener)]
    has_number = run.config.run.runtime.prompt_cache_mib is not None
    return [ref for ref in wanted if has_number or ref not in services_beside(run, config, steps.LISTENER)]


def services_beside(run: PipelineRun, config: TrainSpeakerConfig, role: str) -> list[ModelRef]:
    """Models that a training asks and whose services share a GPU with it; ``role`` is its listener's."""
    asked = {role: config.listener} if config.rewards.listener.weight > 0 else {}
    if config.held_out_listener is not None:
        asked[steps.INDEPENDENT] = config.held_out_listener
    return run.beside(pipeline.TRAIN_SPEAKER, {"config": config}, asked)


def check_speaker(
    run: PipelineRun, dataset: ArtifactRef, config: TrainSpeakerConfig, role: str, label: str = ""
) -> None:
    """Refuse a training that cannot work, before anything is started for it.

    Args:
        run: Whose.
        dataset: Its rows.
        config: Its settings.
        role: Of its listener.
        label: What tells this call from others.

    Raises:
        LewisError: What is wrong, and what to do.
    """
    check_machines(config, os.environ, run.config.run.services, [role])
    beside = services_beside(run, config, role)
    run.stage(pipeline.CHECK_TRAINING, label=label, dataset=dataset, config=config, beside=beside)


def name_of(run: PipelineRun, config: GrpoConfig) -> str:
    """What people call the result of a training of this run."""
    return trained_name(config, dataset_name(run.config.source))


def publish(run: PipelineRun, stage: Stage, result: ArtifactRef, config: GrpoConfig, label: str = "") -> None:
    """Let a result be found by its name in the work folder, and an adapter in the registry of models."""
    name = name_of(run, config)
    run.name_result(name, steps.trained_folder(result))
    if not config.full_finetuning:
        numbers = {key: float(value) for key, value in result.summary.items() if isinstance(value, int | float)}
        run.tracker.register_adapter(result, run.tracking_key(stage, label), numbers, name)
