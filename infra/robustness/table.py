"""Trials and measurements → Markdown, between two marks of ``infra/docs/robustness.md``."""

import json
import platform
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.bench import load
from infra.bench.load_service import hardware
from infra.robustness.trial import ROOT, SAME

PAGE = ROOT / "infra/docs/robustness.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
ORDER = (
    ("none", "nothing, every stage alone"),
    ("kill -9", "`kill -9` of a stage at a random moment"),
    ("damaged file is noticed", "every file of every result truncated, a bit flipped, deleted"),
    ("damaged input", "an input damaged behind a stage's back"),
    ("disk full", "disk full"),
    ("read-only folder", "read-only store"),
    ("clock jump", "the clock jumps by years, every 0.3 s"),
    ("flow", "`kill -9` of the flow, or of its model services"),
)


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the measured part of the page.

    Args:
        out: Folder of results.
        rows: Trials of faults.
    """
    parts = [f"{datetime.now(UTC):%Y-%m-%d}, {hardware('cpu')}, Python {platform.python_version()}."]
    parts += [
        faults(rows),
        inputs(out / "inputs.jsonl"),
        *map(loads, sorted([*out.glob("load-*.json"), *out.glob("soak-*.json")])),
    ]
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    measured = "\n\n".join(part for part in parts if part)
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def faults(rows: list[dict[str, Any]]) -> str:
    """Counts of faults."""
    head = "| fault | trials | same results in the end | of these, after an error that was named | not tried | bad |"
    lines = ["### Faults of the pipeline", "", head, "|---|---|---|---|---|---|"]
    for fault, words in ORDER:
        of_fault = [row for row in rows if row["fault"] == fault]
        if not of_fault:
            continue
        weight = Counter[str]()
        for row in of_fault:
            number = row.get("count", 1)
            weight["trials"] += number
            weight["same"] += number * (row["ok"] and row["outcome"] in (SAME, "not found"))
            weight["named"] += str(row.get("first", "")).startswith(("named", "refused"))
            weight["skipped"] += str(row["outcome"]).startswith("not tried")
            weight["bad"] += not row["ok"]
        same = f"{weight['same']} noticed" if fault == "damaged file is noticed" else weight["same"]
        named, skipped = weight["named"] or "", weight["skipped"] or ""
        lines.append(f"| {words} | {weight['trials']} | {same} | {named} | {skipped} | {weight['bad']} |")
    kills = [row for row in rows if row["fault"] == "kill -9"]
    if kills:
        stages = len({row["stage"] for row in kills})
        caught = sum(bool(row.get("left_behind")) for row in kills)
        hit = sum(bool(row.get("was_killed")) for row in kills)
        lines += [
            "",
            f"Kills: {stages} kinds of stages; {hit} were killed before their end, {caught} while they wrote.",
        ]
    return "\n".join(lines)


def inputs(file: Path) -> str:
    """Counts of bad input."""
    if not file.is_file():
        return ""
    numbers, statuses = Counter[str](), Counter[str]()
    for line in file.read_text().splitlines():
        row = json.loads(line)
        numbers[row["what"]] += row["number"]
        statuses.update(row.get("statuses", {}))
    lines = ["### Input", "", "| what | number |", "|---|---|"]
    lines += [f"| {what} | {number} |" for what, number in numbers.items()]
    shown = ", ".join(f"{status}: {number}" for status, number in sorted(statuses.items()))
    return "\n".join([*lines, "", f"Statuses of requests made from the contract: {shown}. Crashes: {statuses['500']}."])


def loads(file: Path) -> str:
    """A measurement of load."""
    found = json.loads(file.read_text())
    settings = found["settings"]
    pairs = int(settings["candidates"]) * int(settings["descriptions"])
    title = f"### Load: {settings['size']}, {found['hardware']}, {found['date']}"
    lines = [title, ""]
    facts = [f"Capacity {found['capacity_per_s']} requests/s of {pairs} pairs"]
    if "reference_capacity_per_s" in found:
        ratio = found["capacity_per_s"] / found["reference_capacity_per_s"]
        facts.append(f"the reference's style {found['reference_capacity_per_s']}, {ratio:.0f} times less")
    if found.get("goodput_kept_at_overload") is not None:
        facts.append(f"at three times the capacity {found['goodput_kept_at_overload']:.0%} of the best rate is kept")
    lines.append("; ".join(facts) + f". Deadline {settings['deadline_s']} s.")
    if found["points"]:
        lines += ["", load.table(found)]
    if soak := found.get("soak"):
        early, late = soak["rss_mib"]
        lines += ["", f"Steady load for {soak['seconds']:.0f} s: {soak['answered']} of {soak['requests']} answered, "
                  f"{soak['failed']} lost, p99 {soak['p99_ms']} ms, memory {early:.0f} MiB in the second quarter, "
                  f"{late:.0f} MiB in the last."]  # fmt: skip
    return "\n".join(lines)
