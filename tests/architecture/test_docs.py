"""What the documents tell people to type is accepted, and the settings that they speak of exist."""

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.settings import read_values, validate_as
from infra.bench.distributed import PART
from lewis_core.config.base import FrozenConfig
from lewis_core.config.pipeline import PipelineConfig, PrepareDataConfig, ProcessDescriptionsConfig, RunSettings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "infra/docs").glob("*.md"))]
KINDS: dict[str, type[RunSettings]] = {
    "prepare-data": PrepareDataConfig,
    "process-descriptions": ProcessDescriptionsConfig,
}
RECIPE = ROOT / "deployments/settings/perva_7b.toml"
"""Where a page names no settings of the project."""
SECTIONS = {*PipelineConfig.model_fields, *ProcessDescriptionsConfig.model_fields}
FILES = (".py", ".md", ".html", ".json", ".toml", ".jsonl")


def commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Flows' commands and rows of recipes with ``--set``: the text, and its overrides."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            for text in line.split("|"):
                overrides = tuple(re.findall(r"--set ([\w.]+=[^\s`…]+)", text))
                if overrides:
                    yield text, overrides


def configs_in(annotation: Any) -> list[type[FrozenConfig]]:
    """Settings that a value of a type may be, or hold."""
    if isinstance(annotation, type) and issubclass(annotation, FrozenConfig):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, typing.Annotated):
        return [kind for inner in typing.get_args(annotation) for kind in configs_in(inner)]
    return []


def exists(name: str) -> bool:
    """Whether there is a setting of a full name; keys of a table that people fill themselves may be any."""
    kinds: list[type[FrozenConfig]] = [PipelineConfig, ProcessDescriptionsConfig]
    for key in name.split("."):
        holders = [kind for kind in kinds if key in kind.model_fields]
        if kinds and not holders:
            return False
        kinds = [inner for kind in holders for inner in configs_in(kind.model_fields[key].annotation)]
    return True


@pytest.mark.parametrize(("text", "overrides"), sorted(set(commands())))
def test_commands_in_the_documents_are_accepted(text: str, overrides: tuple[str, ...]) -> None:
    named = re.search(r"deployments/settings/\w+\.toml", text)
    flow = re.search(r"-m flows ([a-z-]+)", text)
    values = read_values(ROOT / named[0] if named else RECIPE, overrides)
    assert validate_as(KINDS.get(flow[1] if flow else "", PipelineConfig), values)


def test_parts_of_the_benchmark_of_several_gpus_exist() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    parts = [part for text in texts for part in re.findall(r"-m infra\.bench\.distributed ((?:[\w:+]+ )+)--", text)]
    assert parts
    assert all(PART.fullmatch(name) for found in parts for name in found.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_the_documents_exist(page: Path) -> None:
    names = re.findall(rf"(?<![\w./-])((?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+)", page.read_text(encoding="utf-8"))
    assert [name for name in names if not name.endswith(FILES) and not exists(name)] == []
