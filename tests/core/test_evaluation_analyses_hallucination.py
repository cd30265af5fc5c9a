"""False claims, against facts, a list, and the colours of other descriptions: every number by hand."""

import json
from pathlib import Path

import pytest

from lewis_core import pipeline
from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.analyses import HallucinationConfig
from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.descriptions.colors import colors
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.analyses.hallucination import Hallucination, load_reference
from lewis_core.evaluation.records import EvaluationResult, Prediction
from lewis_core.records import load_record
from lewis_core.stages import run_stage
from lewis_core.testing import make_catalog, make_database, publish_files

CATALOG = make_catalog({"mug": 3})
A, B, C = (concept.id for concept in CATALOG.concepts)
TEXTS: dict[str, str | None] = {
    A: "The mug is red. It has blue stripes. It is empty.",
    B: "The mug is red. The mug is red. The mug is green.",
    C: None,
}


def facts(**more: str) -> dict[str, str]:
    return {
        "category": "mug", "concept": "x", "split": "train", "color": "red", "pattern": "blue dots", "material": "wood",
        "shape": "slim", "logo": "none", "part": "green", "pose": "upright", "state": "empty", "location": "snow",
        **more,
    }  # fmt: skip


def analyse(
    root: Path,
    texts: dict[str, str | None] = TEXTS,
    facts_by_concept: dict[str, dict[str, str]] | None = None,
    evaluations: tuple[ArtifactRef, ...] = (),
    reference: dict[str, list[str]] | None = None,
) -> Hallucination:
    files = {"catalog.json": CATALOG.model_dump_json()}
    if facts_by_concept:
        photos = {c.train[0].path: facts_by_concept[c.id] for c in CATALOG.concepts}
        files["facts.json"] = json.dumps(photos)
    database = make_database(CATALOG, texts).model_dump_json()
    arguments = {
        "database": publish_files(root, "describe-concepts", {"database.json": database}),
        "catalog": publish_files(root, "build-catalog", files),
        "evaluations": list(evaluations),
        "reference": reference,
        "listed": 2,
        "statistics": StatisticsConfig(resamples=200),
    }
    found = run_stage(pipeline.ANALYSE_HALLUCINATION, ArtifactStore(root / "store"), arguments)
    return load_record(found.file("hallucination.json"), Hallucination)


def test_claims_against_the_truth_by_hand(tmp_path: Path) -> None:
    found = analyse(tmp_path, facts_by_concept={A: facts(), B: facts(color="green"), C: facts()})
    [claims] = found.claims
    values = {metric.name: metric.value for metric in claims.metrics}
    # A: red is so, blue stripes are dots, empty is so; B: red (once, however often) is green, green is so
    assert (claims.source, claims.texts, claims.left_out) == ("truth", 2, 1)
    assert values == {
        "false_claim_rate": 2 / 4, "hallucinated_rate": 1, "false_color_rate": pytest.approx(1 / 3),
        "false_pattern_rate": 1, "false_state_rate": 0,
    }  # fmt: skip
    assert [(c.attribute, c.claimed, c.true, c.count) for c in claims.confusions] == [
        ("color", "red", "green", 1), ("pattern", "blue stripes", "blue dots", 1),
    ]  # fmt: skip
    assert [claim.concept for claim in claims.false_claims] == [A, B]
    assert found.alarms == ()


def test_claims_against_a_list_by_hand(tmp_path: Path) -> None:
    texts: dict[str, str | None] = {A: "The dark grey mug has a wooden handle and stars.", B: "It is red.", C: None}
    found = analyse(tmp_path, texts, reference={A: ["gray", "wooden handle"], C: ["red"]})
    [claims] = found.claims
    values = {metric.name: metric.value for metric in claims.metrics}
    # dark grey, wooden and handle are listed, stars are not; nothing is known of B
    assert values == {"false_claim_rate": 1 / 4, "hallucinated_rate": 1}
    assert (claims.texts, claims.left_out) == (1, 2)
    assert [(claim.claimed, claim.true) for claim in claims.false_claims] == [("stars", "gray, wooden handle")]
    with pytest.raises(EvaluationError, match="covers none of the 3 described concepts"):
        analyse(tmp_path / "b", reference={"other/thing": ["red"]})


def recognition(root: Path, speaker: str = "base") -> ArtifactRef:
    def pair(concept: str, described: str, answered: int, kind: str = "hard") -> Prediction:
        expected = 0 if concept == described else 1
        return Prediction(
            item=f"{concept}|{described}|{kind}", concept=concept, category="cat-mug", options=("yes", "no"),
            expected=expected, answered=answered,
            tags={"mode": "description", "negatives": kind, "described": described},
        )  # fmt: skip

    pairs = [
        pair(A, A, 0, "positive"), pair(A, B, 0), pair(B, A, 0), pair(A, C, 0, "easy"), pair(B, C, 1), pair(C, A, 1),
        pair(C, B, 1),
    ]  # fmt: skip
    result = EvaluationResult(evaluation="recognition", speaker=speaker, answering="listener", metrics=())
    lines = "".join(pair.model_dump_json() + "\n" for pair in pairs)
    return publish_files(
        root, "evaluate-recognition", {"metrics.json": result.model_dump_json(), "predictions.jsonl": lines}
    )


def test_false_alarms_against_the_colours_by_hand(tmp_path: Path) -> None:
    texts: dict[str, str | None] = {A: "It is red.", B: "It is green and red.", C: "It is blue."}
    found = analyse(tmp_path, texts, evaluations=(recognition(tmp_path),))
    alarms = {one.negatives: one for one in found.alarms}
    # accepted: B for A and A for B (both hold red), C for A (blue and red share nothing); rejected: three, all unlike
    every = alarms["all"]
    assert (every.negatives_asked, every.false_alarms, every.with_colors, every.contradicted) == (6, 3, 3, 1)
    assert (every.mismatch_rate, every.mismatch_rate_of_rejected) == (pytest.approx(1 / 3), 1)
    assert every.items == (f"{A}|{C}|easy",)
    assert (alarms["hard"].mismatch_rate, alarms["easy"].mismatch_rate) == (0, 1)
    silent = analyse(tmp_path / "s", {A: "It is big.", B: "It is red.", C: None}, evaluations=(recognition(tmp_path),))
    assert (silent.alarms[0].false_alarms, silent.alarms[0].with_colors, silent.alarms[0].mismatch_rate) == (3, 0, None)


def test_another_speaker_s_evaluations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="the database is base's, an evaluation is trained's"):
        analyse(tmp_path, evaluations=(recognition(tmp_path, "trained"),))


def test_colours_are_whole_words() -> None:
    assert colors("A cream-colored bag with a dark grey rim and golden, covered buttons") == {"cream", "gray", "gold"}
    assert colors("A bored tiger") == frozenset()


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "attributes.json"
    assert load_reference(HallucinationConfig()) is None
    with pytest.raises(EvaluationError, match="cannot be read as a list of true attributes"):
        load_reference(HallucinationConfig(reference=path))
    path.write_text('{"a": "red"}')
    with pytest.raises(EvaluationError, match=r"expected .*concept id"):
        load_reference(HallucinationConfig(reference=path))
    path.write_text('{"a": ["red"]}')
    assert load_reference(HallucinationConfig(reference=path)) == {"a": ["red"]}
