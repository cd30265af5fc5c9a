"""Score result files of the reference system anew.

    python -m lewis_core.evaluation.exchange OUT RESULTS.json [RESULTS.json …] [--speaker NAME]

RESULTS are files of one evaluation (identification, all pairs, recognition or visual questions); files of single
concepts are put together. OUT receives ``predictions.jsonl`` and ``metrics.json`` in our form. Printed are the
reference's accuracy and ours, with interval and verdict. Exit status: 0, or 2 when something is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lewis_core.config.evaluation import IdentificationConfig, StatisticsConfig
from lewis_core.errors import LewisError
from lewis_core.evaluation import identification, io, recognition, vqa
from lewis_core.evaluation.exchange.results import Imported, Kind, load_results
from lewis_core.evaluation.records import EvaluationName, EvaluationResult, Metric
from lewis_core.records import load_record

EVALUATIONS: dict[Kind, EvaluationName] = {
    "identification": "identification",
    "pairs": "recognition",
    "recognition": "recognition",
    "vqa": "vqa",
}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends the process with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m lewis_core.evaluation.exchange", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder that receives predictions.jsonl and metrics.json")
    parser.add_argument("results", type=Path, nargs="+", help="result files of one evaluation")
    parser.add_argument("--speaker", help="name in tables; else the database's type in the file's config")
    return parser.parse_args(arguments)


def score_again(imported: Imported, out: Path, speaker: str | None, statistics: StatisticsConfig) -> EvaluationResult:
    """Score imported predictions and write both.

    Args:
        imported: What was read.
        out: Folder to write to; made when needed.
        speaker: Name in tables; ``None`` takes the database's type from the file's settings.
        statistics: Intervals.

    Returns:
        The numbers.
    """
    name = speaker or str(imported.config.get("db_type") or "reference")
    answering = str(imported.config.get("model_type") or "reference")
    out.mkdir(parents=True, exist_ok=True)
    metrics = _numbers(imported, statistics)
    io.save_evaluation(out, EVALUATIONS[imported.kind], name, answering, imported.predictions, metrics, statistics)
    return load_record(out / io.METRICS, EvaluationResult)


def _numbers(imported: Imported, statistics: StatisticsConfig) -> tuple[Metric, ...]:
    if imported.kind == "identification":
        options = max(len(prediction.options) for prediction in imported.predictions)
        return identification.aggregate(imported.predictions, IdentificationConfig(num_options=options), statistics)
    if imported.kind == "vqa":
        return vqa.aggregate(imported.predictions, statistics)
    return recognition.aggregate(imported.predictions, statistics)


def describe(imported: Imported, result: EvaluationResult) -> str:
    """Numbers as text: theirs, ours, and how many items are judged differently."""
    ours = [prediction.is_correct for prediction in imported.predictions]
    changed = sum(a != b for a, b in zip(ours, imported.verdicts, strict=True))
    theirs, total = sum(imported.verdicts) / len(ours), sum(ours) / len(ours)
    lines = [
        f"{imported.kind}: {len(ours)} items, {result.concepts} concepts, {result.failed} failed, {result.invalid} "
        "invalid",
        f"right by the reference's count: {theirs:.4f}; by ours: {total:.4f} ({changed} items are judged differently)",
    ]
    for metric in result.metrics:
        value = "–" if metric.value is None else f"{metric.value:.4f}"
        interval = "" if metric.low is None or metric.high is None else f"  [{metric.low:.4f}, {metric.high:.4f}]"
        lines.append(f"  {metric.name:<34} {value:>8}{interval}" + (f"  {metric.note}" if metric.note else ""))
    return "\n".join([*lines, result.verdict, *result.warnings]) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        imported = load_results(options.results)
        result = score_again(imported, options.out, options.speaker, StatisticsConfig())
    except (LewisError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(describe(imported, result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
