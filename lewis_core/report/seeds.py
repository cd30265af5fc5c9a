"""Several seeds of one recipe as a table: mean, spread, interval, and each seed's own value."""

from dataclasses import dataclass

from lewis_core.report import labels
from lewis_core.report.charts import speaker_style
from lewis_core.report.load import ReportData
from lewis_core.report.tables import Difference, describe_difference


@dataclass(frozen=True)
class SeedRow:
    """One number of several seeds."""

    name: str
    mean: str
    deviation: str
    interval: str
    values: tuple[tuple[str, str], ...]
    """Of each seed: CSS class and value."""
    difference: Difference | None


@dataclass(frozen=True)
class SeedTable:
    """One group of seeds."""

    group: str
    speakers: tuple[tuple[str, str], ...]
    """CSS class and name."""
    rows: tuple[SeedRow, ...]


def seed_tables(data: ReportData) -> tuple[SeedTable, ...]:
    """Make a table for each group of seeds."""
    slots = {speaker.name: speaker.slot for speaker in data.speakers}
    tables = []
    for seeds in data.seeds:
        styles = [speaker_style(slots.get(name, 0)) for name in seeds.speakers]
        rows = tuple(
            SeedRow(
                name=f"{labels.EVALUATION_TITLES[metric.evaluation]}: "
                f"{labels.metric_name(metric.evaluation, metric.metric)}"
                + (f" ({metric.answering})" if metric.answering not in {"", "listener"} else ""),
                mean=labels.format_value(metric.metric, metric.mean),
                deviation=labels.format_spread(metric.metric, metric.deviation),
                interval=labels.format_interval(metric.metric, metric.low_seeds, metric.high_seeds),
                values=tuple(
                    (style, labels.format_value(metric.metric, value))
                    for style, value in zip(styles, metric.values, strict=True)
                ),
                difference=describe_difference(metric.test) if metric.test else None,
            )
            for metric in seeds.metrics
        )
        tables.append(SeedTable(seeds.group, tuple(zip(styles, seeds.speakers, strict=True)), rows))
    return tuple(tables)
