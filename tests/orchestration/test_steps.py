"""What the steps of a flow decide from the data."""

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import analyse
from flows.questions import held_out_games
from flows.steps import Photos, has_questions
from lewis_core.artifacts import ArtifactRef
from lewis_core.config.evaluation import VqaConfig
from lewis_core.records import Splits, VqaItem
from lewis_core.testing import make_catalog, make_database, publish_files

CATALOG = make_catalog({"mug": 3})
DESCRIBED, TRAINED_ON = CATALOG.concepts[0].id, CATALOG.concepts[2].id


def ask_about(tmp_path: Path, asked: list[tuple[str, str | None]] | None) -> tuple[Photos, ArtifactRef]:
    """Photos with questions about (concept, image), and descriptions of all concepts but the last."""
    files = {"catalog.json": CATALOG.model_dump_json()}
    if asked is not None:
        items = [
            VqaItem(id=f"{concept}:0", concept=concept, image=image, question="color?", options=("a", "b"), correct=0)
            for concept, image in asked
        ]
        files["questions.jsonl"] = "".join(item.model_dump_json() + "\n" for item in items)
    catalog = publish_files(tmp_path / "store", "build-catalog", files)
    database = make_database(CATALOG, {concept.id: "It is red." for concept in CATALOG.concepts[:2]})
    described = publish_files(tmp_path / "store", "describe-concepts", {"database.json": database.model_dump_json()})
    return Photos(catalog, splits=catalog, embeddings=catalog), described


@pytest.mark.parametrize(
    ("asked", "show", "expected", "reason"),
    [
        ([(TRAINED_ON, None), (DESCRIBED, None)], "description", True, ""),
        ([(DESCRIBED, "test/a.jpg")], "both", True, ""),
        ([(DESCRIBED, None)], "both", False, "1 of 1 are about the 2 described concepts, none of these with the photo"),
        ([(TRAINED_ON, "test/a.jpg")], "description", False, "0 of 1 are about the 2 described concepts"),
        ([], "description", False, "0 of 0 are about"),
        (None, "description", False, ""),
    ],
)
def test_questions_that_cannot_be_asked_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: object, show: str, expected: bool, reason: str
) -> None:
    photos, database = ask_about(tmp_path, asked)  # type: ignore[arg-type]
    assert has_questions(photos, database, VqaConfig(show=show)) is expected  # type: ignore[arg-type]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == bool(reason), "photos without questions are nothing to warn about"
    assert all("left out" in warning and reason in warning for warning in warnings)


def test_nothing_is_asked_about_held_out_concepts_without_look_alikes(tmp_path: Path) -> None:
    catalog = publish_files(tmp_path / "store", "build-catalog", {"catalog.json": CATALOG.model_dump_json()})
    sides = Splits(training=(CATALOG.concepts[1].id, TRAINED_ON), held_out=(DESCRIBED,))
    splits = publish_files(tmp_path / "store", "split-concepts", {"splits.json": sides.model_dump_json()})
    run: Any = None  # nothing is run
    assert held_out_games(run, Photos(catalog, splits, embeddings=catalog)) is None


def test_stages_that_load_models_of_their_own_find_no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge of the second speaker would have to fit beside the listeners of the first."""
    order: list[str] = []
    run: Any = SimpleNamespace(
        stop_services=lambda: order.append("end"), tracker=SimpleNamespace(run_id=""), facts=dict
    )
    monkeypatch.setattr(analyse, "pipeline_run", lambda *_: nullcontext(run))
    for name in ("read_photos", "find_trained", "speakers", "describe"):
        monkeypatch.setattr(analyse.steps, name, lambda *_: None)
    monkeypatch.setattr(analyse.steps, "evaluate", lambda *_: ["base", "trained"])
    monkeypatch.setattr(analyse, "look_closer", lambda *_: {})
    monkeypatch.setattr(analyse, "ask_listeners", lambda *asked: order.append(f"listeners {asked[-1]}") or {})
    monkeypatch.setattr(analyse, "ask_more", lambda *asked: order.append(f"more {asked[-1]}") or {})
    analyse.analyse.fn(None)
    assert order == ["listeners base", "listeners trained", "end", "more base", "more trained"]
