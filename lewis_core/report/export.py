"""The report's tables as files: CSV for spreadsheets, JSON for programs, LaTeX for papers.

``numbers`` has every number of every speaker, ``tests`` every difference, ``seeds`` several trainings together.
Values are written in full in CSV and JSON and rounded as on the page in LaTeX, where only headline numbers are listed.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence

from lewis_core.report import labels
from lewis_core.report.load import Evaluation, ReportData
from lewis_core.report.tables import Block, is_significant, main_blocks

Row = dict[str, object]
ESCAPES = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "−": "$-$",
        "–": "--",
        "’": "'",
        labels.NO_BREAK: "~",
    }
)
HEAD = "% Needs \\usepackage{booktabs}. Made by Lewis; edit the report, not this file.\n"


def export_tables(data: ReportData) -> dict[str, str]:
    """Write all tables; returns file contents by name."""
    files = {"numbers.csv": _csv(number_rows(data)), "numbers.json": _json(number_rows(data))}
    if blocks := main_blocks(data):
        files["numbers.tex"] = latex_numbers(data, blocks)
    if data.comparisons:
        files |= {
            "tests.csv": _csv(test_rows(data)),
            "tests.json": _json(test_rows(data)),
            "tests.tex": latex_tests(data),
        }
    if data.seeds:
        files |= {
            "seeds.csv": _csv(seed_rows(data)),
            "seeds.json": _json(seed_rows(data)),
            "seeds.tex": latex_seeds(data),
        }
    return files


def number_rows(data: ReportData) -> list[Row]:
    """Every number of every speaker."""
    return [
        {
            "speaker": item.result.speaker,
            "evaluation": item.result.evaluation,
            "answering": item.result.answering,
            "metric": metric.name,
            "value": metric.value,
            "low": metric.low,
            "high": metric.high,
            "n": metric.n,
            "concepts": item.result.concepts,
            "failed": item.result.failed,
            "invalid": item.result.invalid,
            "note": metric.note,
        }
        for item in data.evaluations
        for metric in item.result.metrics
    ]


def test_rows(data: ReportData) -> list[Row]:
    """Every difference to the baseline."""
    return [
        {"baseline_speaker": comparison.baseline, "speaker": comparison.speaker, **test.model_dump()}
        for comparison in data.comparisons
        for test in comparison.tests
    ]


def seed_rows(data: ReportData) -> list[Row]:
    """Every number of several seeds together."""
    rows = []
    for seeds in data.seeds:
        for metric in seeds.metrics:
            plain = metric.model_dump(exclude={"values", "test"})
            row: Row = {"group": seeds.group, "seeds": len(seeds.speakers), **plain}
            row |= {f"value {name}": value for name, value in zip(seeds.speakers, metric.values, strict=True)}
            test = metric.test
            row |= {"difference": test.difference if test else None, "p_value": test.p_value if test else None}
            rows.append(row)
    return rows


def latex_numbers(data: ReportData, blocks: Sequence[Block]) -> str:
    """Headline numbers, one column for each speaker; stars mark clear differences to the baseline."""
    names = [speaker.name for speaker in data.speakers]
    lines = [f"{{}} & {' & '.join(map(tex, names))} \\\\", r"\midrule"]
    for block in blocks:
        cells = {row.speaker: row for row in block.rows}
        title = f"{block.title}: {block.metric}" + (f" ({block.answering})" if block.answering else "")
        texts = []
        for name in names:
            row = cells.get(name)
            if row is None:
                texts.append("--")
                continue
            star = "$^{*}$" if row.difference and row.difference.verdict in {"better", "worse", "neutral"} else ""
            interval = rf" {{\scriptsize [{tex(row.interval)}]}}" if row.interval else ""
            texts.append(f"{tex(row.value)}{star}{interval}")
        lines.append(f"{tex(title)} & {' & '.join(texts)} \\\\")
    return _tabular("l" + "r" * len(names), lines, _footnotes(data))


def latex_tests(data: ReportData) -> str:
    """Differences to the baseline with intervals and p-values."""
    lines = [r"speaker & number & difference & 95\,\% interval & $p$ & $p$ (Holm) & $n$ \\", r"\midrule"]
    for comparison in data.comparisons:
        for test in comparison.tests:
            name = labels.metric_name(test.evaluation, test.metric)
            number = f"{labels.EVALUATION_TITLES[test.evaluation]}: {name}"
            number += f" ({test.answering})" if test.answering else ""
            difference = labels.format_difference(test.metric, test.difference) + ("*" if is_significant(test) else "")
            interval = labels.format_difference_interval(test.metric, test.low, test.high)
            p_holm = "--" if test.p_holm is None else f"{test.p_holm:.3f}"
            cells = (comparison.speaker, number, difference, interval, f"{test.p_value:.3f}", p_holm, str(test.n))
            lines.append(" & ".join(map(tex, cells)) + r" \\")
    return _tabular("llrrrrr", lines, _footnotes(data))


def latex_seeds(data: ReportData) -> str:
    """Mean and spread over seeds."""
    lines = [r"group & number & mean & s.\,d. & 95\,\% interval & seeds \\", r"\midrule"]
    for seeds in data.seeds:
        for metric in seeds.metrics:
            name = (
                f"{labels.EVALUATION_TITLES[metric.evaluation]}: {labels.metric_name(metric.evaluation, metric.metric)}"
            )
            name += f" ({metric.answering})" if metric.answering else ""
            cells = (
                seeds.group,
                name,
                labels.format_value(metric.metric, metric.mean),
                labels.format_spread(metric.metric, metric.deviation),
                labels.format_interval(metric.metric, metric.low_seeds, metric.high_seeds),
                str(len(seeds.speakers)),
            )
            lines.append(" & ".join(map(tex, cells)) + r" \\")
    return _tabular("llrrrr", lines, [])


def tex(text: str) -> str:
    """Escape text for LaTeX."""
    return text.translate(ESCAPES)


def _tabular(columns: str, lines: Sequence[str], footnotes: Sequence[str]) -> str:
    body = "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"])
    notes = "".join(f"\n\\par\\footnotesize {tex(note)}" for note in footnotes)
    return f"{HEAD}{body}{notes}\n"


def _footnotes(data: ReportData) -> list[str]:
    """What a table needs beneath it: what stars mean, and which items failed."""
    notes = ["Brackets: 95 % intervals, concepts resampled."]
    if data.comparisons:
        name = data.comparisons[0].baseline
        notes.append(f"*: differs from {name}, p < 0.05 (paired permutation of concepts) and an interval without 0.")
    notes += [footnote for item in data.evaluations if (footnote := failure_note(item))]
    return notes


def failure_note(item: Evaluation) -> str:
    """Count an evaluation's failed and invalid items; empty if there are none."""
    result, total = item.result, len(item.predictions)
    if not result.failed and not result.invalid:
        return ""
    who = ", ".join(filter(None, (result.speaker, result.answering)))
    of = f" of {total:,}" if total else ""
    return (
        f"{labels.EVALUATION_TITLES[result.evaluation]} ({who}): {result.failed:,} items failed and {result.invalid:,} "
        f"answers were invalid{of}; both count as wrong."
    )


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return file.getvalue()


def _json(rows: Sequence[Mapping[str, object]]) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
