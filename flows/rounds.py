"""Steps of training a listener, and of rounds in which speaker and listener are trained in turn."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from flows import questions, steps, training
from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import ModelRef
from lewis_core.config.listener_training import TrainListenerConfig
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.errors import ConfigError
from tasks.run import PipelineRun
from tasks.training_launch import check_machines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """What one round made."""

    number: int
    speaker: ModelRef
    speaker_result: ArtifactRef
    listener: ModelRef
    """The one that the speaker was trained against."""
    listener_result: ArtifactRef | None
    """The listener's own training after that."""


def listener_config(run: PipelineRun) -> TrainListenerConfig:
    """Settings of listener training.

    Raises:
        ConfigError: If there are none.
    """
    config = run.config.listener_training
    if config is None:
        raise ConfigError(
            "setting listener_training is missing: add a section [listener_training] with [listener_training.model]; "
            "deployments/settings/pocket_iterate.toml has one"
        )
    return config


def check_rounds(config: PipelineConfig) -> None:
    """Check, before anything is computed, that every machine of the rounds' trainings reaches their listeners.

    Raises:
        ConfigError: If not.
    """
    services, rounds = config.run.services, config.iterate.rounds
    roles = [role_of_listener(number) for number in range(1, rounds + 1)]
    check_machines(config.training, os.environ, services, roles)
    if config.listener_training is not None and (rounds > 1 or config.iterate.train_last_listener):
        check_machines(config.listener_training, os.environ, services)
    if steps.LISTENER in services and not services.keys() & set(roles):
        logger.warning(
            "run.services.%s is not asked in rounds, whose listeners differ: they are %s, and the flow starts those "
            "that run.services does not name",
            *(steps.LISTENER, ", ".join(roles)),
        )


def role_of_listener(number: int) -> str:
    """Role of the listener that a round's speaker asks."""
    return f"{steps.LISTENER}-{number}"


def train_listener(
    run: PipelineRun,
    photos: steps.Photos,
    games: ArtifactRef,
    config: TrainListenerConfig,
    speaker: ModelRef,
    label: str = "",
) -> ArtifactRef:
    """Train a listener on questions about the photos of games.

    Args:
        run: The run.
        photos: Where they are.
        games: On concepts that are trained on.
        config: Of the listener's training.
        speaker: Whose descriptions are asked about, if the questions are about descriptions.
        label: What tells this call from others.
    """
    rows_config = run.config.dataset.model_copy(update={"role": "listener", "embed_images": False})
    rows = questions.ask(run, photos, games, config, rows_config, speaker, "training", label)
    held_out = questions.ask_held_out(run, photos, config, rows_config, speaker, label)
    check_machines(config, os.environ, run.config.run.services)
    run.stage(pipeline.CHECK_LISTENER_TRAINING, label=label, dataset=rows, config=config)
    run.stop_services()
    adapter = run.stage(pipeline.TRAIN_LISTENER, label=label, dataset=rows, config=config, held_out_dataset=held_out)
    training.publish(run, pipeline.TRAIN_LISTENER, adapter, config, label)
    return adapter


def play_rounds(run: PipelineRun, photos: steps.Photos) -> list[Round]:
    """Train speaker and listener in turn; each starts where it stood."""
    games = steps.training_games(run, photos)
    prompts = run.config.training.model.prompts
    dataset = run.stage(pipeline.BUILD_DATASET, games=games, prompts=prompts, config=run.config.dataset)
    speaker, listener = run.config.training.model, run.config.training.listener
    of_listener = listener_config(run)
    rounds: list[Round] = []
    for number in range(1, run.config.iterate.rounds + 1):
        label = f"round {number}"
        config = run.config.training.model_copy(update={"model": speaker, "listener": listener})
        training.check_speaker(run, dataset, config, role_of_listener(number), label)
        service = run.service(role_of_listener(number), listener)
        held_out = run.service(steps.INDEPENDENT, config.held_out_listener) if config.held_out_listener else None
        result = run.stage(
            pipeline.TRAIN_SPEAKER, label=label, service=service, held_out=held_out, dataset=dataset, config=config
        )
        run.stop_services()
        run.name_result(training.name_of(run, config), steps.trained_folder(result))
        speaker = steps.trained_model(run.config.training.model, result)
        is_last = number == run.config.iterate.rounds and not run.config.iterate.train_last_listener
        made = None
        if not is_last:
            own = of_listener.model_copy(update={"model": listener})
            made = train_listener(run, photos, games, own, speaker, label)
        rounds.append(Round(number, speaker, result, listener, made))
        if made is not None:
            listener = steps.trained_model(listener, made)
        logger.info("round %d: %s", number, summarize(rounds[-1]))
    return rounds


def summarize(one: Round) -> dict[str, object]:
    """Numbers of a round."""
    names = ("steps", "first_accuracy", "last_accuracy", "first_reward", "last_reward")
    told: dict[str, object] = {"round": one.number, "speaker_adapter": str(one.speaker.adapter or one.speaker.path)}
    told |= {f"speaker_{name}": one.speaker_result.summary.get(name) for name in names}
    if one.listener_result is not None:
        held_out = ("held_out_accuracy_before", "held_out_accuracy_after", "held_out_yes_after", "held_out_p_value")
        told |= {f"listener_{name}": one.listener_result.summary.get(name) for name in (*names, *held_out)}
    return told


def table(rounds: Sequence[Round]) -> list[dict[str, object]]:
    """Rows for a table of all rounds, with the same columns."""
    rows = [summarize(one) for one in rounds]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]
