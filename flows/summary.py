"""What a person sees of a finished run: Prefect artifacts, MLflow tables, one line of JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.steps import INDEPENDENT, LISTENER, Evaluated
from lewis_core.artifacts import ArtifactRef
from lewis_core.evaluation.records import EvaluationResult
from lewis_core.records import Database, JsonObject, load_record
from lewis_core.report.labels import metric_style
from tasks.run import PipelineRun

HEADLINE = {
    "game_accuracy": ("game", LISTENER, "accuracy"),
    "independent_game_accuracy": ("game", INDEPENDENT, "accuracy"),
    "identification": ("identification", LISTENER, "ranking_accuracy"),
    "recognition_f1": ("recognition", LISTENER, "f1"),
    "vqa_accuracy": ("vqa", LISTENER, "accuracy"),
    "state_rate": ("descriptions", "", "state_rate"),
    "location_rate": ("descriptions", "", "location_rate"),
}
"""Name in the last line → evaluation, who answered, metric."""


def load_results(one: Evaluated) -> list[EvaluationResult]:
    """All numbers of one speaker."""
    return [load_record(ref.file("metrics.json"), EvaluationResult) for ref in one.results]


def headline(one: Evaluated) -> dict[str, float | None]:
    """The numbers that a run is judged by; ``None`` where nothing was measured."""
    found: dict[tuple[str, str, str], float | None] = {
        (result.evaluation, result.answering, metric.name): metric.value
        for result in load_results(one)
        for metric in result.metrics
    }
    return {name: found.get(where) for name, where in HEADLINE.items()}


def pipeline_summary(run: PipelineRun, report: ArtifactRef, evaluated: Sequence[Evaluated]) -> JsonObject:
    """What ``python -m flows`` prints as its last line."""
    return {
        **{one.speaker.name: headline(one) for one in evaluated},
        "speakers": [one.speaker.name for one in evaluated],
        "report": str(report_file(report)),
        "mlflow_run_id": run.tracker.run_id,
        "mlflow_uri": run.tracker.uri,
        **run.facts(),
    }


def report_file(report: ArtifactRef) -> Path:
    """The HTML file."""
    return report.file("report.html")


def metric_rows(evaluated: Sequence[Evaluated]) -> list[dict[str, object]]:
    """One row for each number of each speaker."""
    return [
        {
            "speaker": one.speaker.name,
            "evaluation": result.evaluation,
            "answered by": result.answering,
            "metric": metric.name,
            "value": metric.value,
            "low": metric.low,
            "high": metric.high,
            "n": metric.n,
            "note": metric.note,
        }
        for one in evaluated
        for result in load_results(one)
        for metric in result.metrics
    ]


def description_rows(evaluated: Sequence[Evaluated]) -> list[dict[str, object]]:
    """One row for each held-out concept, with every speaker's description."""
    texts: dict[str, dict[str, object]] = {}
    for one in evaluated:
        for entry in load_record(one.database.file("database.json"), Database).entries:
            row = texts.setdefault(entry.concept, {"concept": entry.concept})
            row[one.speaker.name] = entry.text or f"(no description: {entry.error})"
    names = [one.speaker.name for one in evaluated]
    return [{name: row.get(name) for name in ("concept", *names)} for row in texts.values()]


def summary_markdown(run: PipelineRun, report: ArtifactRef, evaluated: Sequence[Evaluated]) -> str:
    """Headline numbers of all speakers as a table."""
    columns = {one.speaker.name: headline(one) for one in evaluated}
    lines = [
        f"## {run.config.run.name}",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
        *(
            f"| {name.replace('_', ' ')} | "
            + " | ".join(shown(where[-1], column[name]) for column in columns.values())
            + " |"
            for name, where in HEADLINE.items()
        ),
        "",
        f"Report: `{report_file(report)}`",
        "",
        f"MLflow run: `{run.tracker.run_id}` at `{run.tracker.uri}`",
        "",
        f"Computed {len(run.wall_s)} stages, {len(run.cached)} were there already.",
    ]
    return "\n".join(lines)


def shown(metric: str, value: float | None) -> str:
    """A number in its metric's unit: ``58.3 %`` or ``0.714``; a missing one as a dash."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if metric_style(metric).unit == "percent" else f"{value:.3f}"


def rounded(rows: Sequence[Mapping[str, object]], digits: int = 4) -> list[dict[str, object]]:
    """Rows of a table for people, whose columns sixteen digits would push out of sight."""
    return [
        {name: round(value, digits) if isinstance(value, float) else value for name, value in row.items()}
        for row in rows
    ]


def publish(run: PipelineRun, report: ArtifactRef, evaluated: Sequence[Evaluated]) -> None:
    """Show results in Prefect and keep them in MLflow."""
    text = summary_markdown(run, report, evaluated)
    create_markdown_artifact(text, key="pipeline-summary", description=f"Results of {run.config.run.name}")
    rows = metric_rows(evaluated)
    create_table_artifact(rounded(rows), key="evaluation-metrics", description="All numbers, with 95 % intervals")
    create_link_artifact(report_file(report).as_uri(), link_text="HTML report", key="report")
    parent = run.tracker.parent()
    parent.table("metrics", rows)
    parent.table("descriptions", description_rows(evaluated))
    parent.artifact(report_file(report))
    for folder in ("plots", "tables"):
        for file in sorted((report.path / folder).glob("*")):
            parent.artifact(file, f"report/{folder}")
    for one in evaluated:
        numbers = {f"{one.speaker.name}/{name}": value for name, value in headline(one).items() if value is not None}
        parent.metrics(numbers)
