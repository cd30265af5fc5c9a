"""What a person sees of a re-evaluation: a leaderboard in Prefect, tags in the model registry, a message."""

import asyncio
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block

from flows.steps import Evaluated
from flows.summary import HEADLINE, headline, load_results, rounded, shown
from lewis_core.artifacts import ArtifactRef, digest_json
from lewis_core.config.evaluation import SpeakerRef
from lewis_core.evaluation.records import PairedTest
from lewis_core.records import JsonObject
from lewis_core.report.labels import metric_style
from tasks.checkpoints import Checkpoint
from tasks.registry import EVALUATION, Registry
from tasks.run import PipelineRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """A checkpoint, or the base, and how far its evaluation came."""

    label: str
    checkpoint: Checkpoint | None
    """``None`` for the base."""
    speaker: SpeakerRef | None = None
    database: ArtifactRef | None = None
    evaluated: Evaluated | None = None
    computed: int = 0
    """Stages computed for it in this run; 0: everything was there."""
    test: PairedTest | None = None
    """Against the champion."""
    error: str = ""
    """What ended its evaluation."""

    @property
    def status(self) -> str:
        """In a word."""
        if self.error:
            return "failed"
        if self.evaluated is None:
            return "skipped"
        return "evaluated now" if self.computed else "evaluated before"


def rank(standings: Sequence[Standing], number: tuple[str, str, str]) -> list[Standing]:
    """The best first, by the deciding number; who has none comes last."""

    def value(one: Standing) -> float:
        found = deciding_value(one, number)
        return float("-inf") if found is None else found

    return sorted(standings, key=value, reverse=True)


def deciding_value(one: Standing, number: tuple[str, str, str]) -> float | None:
    """The number that decides, of one checkpoint."""
    for result in load_results(one.evaluated) if one.evaluated is not None else ():
        if (result.evaluation, result.answering) == number[:2]:
            return {metric.name: metric.value for metric in result.metrics}.get(number[2])
    return None


def rows(standings: Sequence[Standing], number: tuple[str, str, str], champion: str) -> list[dict[str, object]]:
    """The leaderboard as a table."""
    return [
        {
            "checkpoint": one.label + (" (champion)" if one.label == champion else ""),
            "status": one.status,
            " ".join(filter(None, number)): deciding_value(one, number),
            "difference to the champion": one.test.difference if one.test else None,
            "p": one.test.p_value if one.test else None,
            **(headline(one.evaluated) if one.evaluated is not None else dict.fromkeys(HEADLINE)),
            "remark": one.error or (one.checkpoint.skipped if one.checkpoint else ""),
        }
        for one in rank(standings, number)
    ]


def markdown(run: PipelineRun, standings: Sequence[Standing], number: tuple[str, str, str], champion: str) -> str:
    """The leaderboard as text."""
    name = " ".join(filter(None, number))
    lines = [f"## {run.config.run.name}: checkpoints by {name}", "", f"Champion: **{champion}**", ""]
    lines += [f"| checkpoint | status | {name} | to the champion | p |", "|---|---|---|---|---|"]
    for one in rank(standings, number):
        test = one.test
        against = f"{difference(number[2], test.difference)} | {test.p_value:.4f}" if test else "– | –"
        lines.append(f"| {one.label} | {one.status} | {shown(number[2], deciding_value(one, number))} | {against} |")
    remarks = [(one.label, one.error or one.checkpoint.skipped) for one in standings if one.checkpoint]
    lines += ["", *(f"- {label}: {remark.splitlines()[0]}" for label, remark in remarks if remark)]
    return "\n".join(lines)


def difference(metric: str, value: float) -> str:
    """A signed difference: points of a share, else the metric's own unit."""
    return f"{100 * value:+.1f}" if metric_style(metric).unit == "percent" else f"{value:+.3f}"


def publish(
    run: PipelineRun,
    registry: Registry | None,
    standings: Sequence[Standing],
    number: tuple[str, str, str],
    before: str,
    champion: str,
    is_promoted: bool,
) -> None:
    """Show the leaderboard, note results in the registry, and tell people if there is something new."""
    table, text = rows(standings, number, champion), markdown(run, standings, number, champion)
    create_table_artifact(rounded(table), key="leaderboard", description=f"Checkpoints of {run.config.run.name}")
    create_markdown_artifact(text, key="leaderboard-summary", description=f"Checkpoints of {run.config.run.name}")
    run.tracker.parent().table("leaderboard", table)
    for one in standings:
        if registry is not None:
            note_results(run, registry, one)
    is_new = is_promoted or any(one.computed or one.error for one in standings if one.checkpoint is not None)
    if is_new and run.config.reevaluation.notification_block:
        news = f"{champion} took the place of {before}." if is_promoted else f"The champion is {champion}."
        notify(run.config.reevaluation.notification_block, f"{run.config.run.name}: {news}", text)


def note_results(run: PipelineRun, registry: Registry, one: Standing) -> None:
    """Write the headline numbers and what they were measured with into a version's tags, unless they are there."""
    if one.checkpoint is None or one.checkpoint.version is None or one.evaluated is None:
        return
    numbers = {f"lewis.{name}": f"{value:.4f}" for name, value in headline(one.evaluated).items() if value is not None}
    definition = digest_json(sorted(ref.key for ref in one.evaluated.results))[:12]
    if one.checkpoint.noted != definition:  # the digest comes last: a note that was cut short is written again
        made = {"lewis.evaluation_run": run.tracker.run_id or "", EVALUATION: definition}
        registry.note(one.checkpoint.version, {**numbers, **made})


def notify(block_name: str, subject: str, body: str) -> None:
    """Send a message by a Prefect notification block; a message that cannot be sent ends nothing."""
    try:
        block = cast(NotificationBlock, Block.load(block_name, _sync=True))  # type: ignore[call-arg]
        sent: object = block.notify(body, subject=subject)  # type: ignore[func-returns-value, unused-ignore]
        if inspect.iscoroutine(sent):
            asyncio.run(sent)
    except Exception as error:  # noqa: BLE001 - whatever a chat service does, the evaluation is done
        logger.warning("no message was sent by block %s (%s: %s)", block_name, type(error).__name__, error)


def standing_summary(standings: Sequence[Standing]) -> JsonObject:
    """One entry for each checkpoint, for the last line."""
    return {
        one.label: {
            "status": one.status,
            **({"reason": one.checkpoint.skipped} if one.checkpoint and one.checkpoint.skipped else {}),
            **(headline(one.evaluated) if one.evaluated is not None else {}),
        }
        for one in standings
    }
