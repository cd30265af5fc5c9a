"""Result files of the reference are read and scored as our own; what it misread is read rightly."""

import json
from pathlib import Path

import pytest

from lewis_core.errors import EvaluationError
from lewis_core.evaluation.exchange.__main__ import main
from lewis_core.evaluation.exchange.results import concept_of, load_results
from lewis_core.evaluation.records import EvaluationResult, Prediction
from lewis_core.records import load_jsonl, load_record

ROOT = "data/PerVA"


def write(path: Path, rows: list[dict[str, object]], **config: object) -> Path:
    path.write_text(json.dumps({"config": config, "metrics": {"accuracy": 0}, "results": rows}))
    return path


def identified(photo: str, solution: str, response: str, correct: bool, **more: object) -> dict[str, object]:
    retrieved = [f"{ROOT}/train_/bag/{name}/0.jpg" for name in ("alx", "bkq", "fse")]
    return {
        "image_path": f"{ROOT}/test_/bag/{photo}", "problem": "…", "solution": solution, "solution_desc": "…",
        "ret_paths": retrieved, "response": response, "pred_name": "", "correct": correct, **more,
    }  # fmt: skip


def test_identification_with_misses_names_and_answers_that_were_misread(tmp_path: Path) -> None:
    rows = [
        identified("alx/1.jpg", "alx", '{"Reasoning": "…", "Answer": "A"}', True),
        identified("alx/2.jpg", "alx", "A.", False),  # the reference read "A." and counted it as wrong
        identified("bkq/1.jpg", "bkq", "The answer is: B", False),  # it read "is B"
        identified("bkq/2.jpg", "bkq", "bkq", True),  # a name counts as well
        identified("zzz/1.jpg", "zzz", '{"Answer": "C"}', False),  # not retrieved
        identified("fse/1.jpg", "fse", "", False),  # a failed batch
        identified("fse/2.jpg", "fse", "I cannot tell.", False),
        identified("fse/3.jpg", "fse", "?", True, pred_name="fse"),
    ]
    file = write(tmp_path / "results.json", rows, db_type="ours", model_type="original_7b", gt_present=False)
    assert main([str(tmp_path / "out"), str(file)]) == 0
    found = load_jsonl(tmp_path / "out/predictions.jsonl", Prediction)
    assert [p.answered for p in found] == [0, 0, 1, 1, 2, None, None, 2]
    assert [p.is_correct for p in found] == [True, True, True, True, False, False, False, True]
    assert (found[0].concept, found[0].category, found[0].expected, found[4].expected) == ("bag/alx", "bag", 0, None)
    result = load_record(tmp_path / "out/metrics.json", EvaluationResult)
    assert (result.speaker, result.answering, result.failed, result.invalid) == ("ours", "original_7b", 1, 1)
    assert result.value("accuracy_retrieval") == pytest.approx(5 / 8)
    assert result.value("recall_at_k") == pytest.approx(7 / 8)
    assert result.value("accuracy_given_hit") == pytest.approx(5 / 6)  # answered items whose truth was retrieved
    assert result.value("invalid_rate_retrieval") == pytest.approx(1 / 7)
    assert not any(name.startswith(("entropy", "margin")) for name in (m.name for m in result.metrics))


def test_confidence_of_the_analysis_mode_is_taken_over_and_gt_present_is_the_oracle(tmp_path: Path) -> None:
    confidence = {"probabilities": {"A": 0.6, "B": 0.2, "C": 0.0}, "entropy": 1, "margin": 0.4, "predicted_letter": "A"}
    rows = [identified(f"{name}/1.jpg", name, "A", name == "alx", confidence=confidence) for name in ("alx", "bkq")]
    found = load_results([write(tmp_path / "a.json", rows, gt_present=True)])
    assert found.predictions[0].tags == {"mode": "oracle"}
    assert found.predictions[0].probabilities == pytest.approx((0.75, 0.25, 0.0))


def recognised(photo: str, reference: str, solution: str, response: str, correct: bool) -> dict[str, object]:
    return {
        "query_path": f"{ROOT}/test_/{photo}/1.jpg", "question": "…", "ref_path": f"{ROOT}/train_/{reference}/0.jpg",
        "problem": "…", "solution": solution, "response": response, "pred": "", "correct": correct,
    }  # fmt: skip


def test_recognition_by_hand_over_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [
        recognised("bag/alx", "bag/alx", "yes", '{"Answer": "yes"}', True),
        recognised("bag/bkq", "bag/bkq", "yes", "<yes>", False),  # the reference read "<yes>"
        recognised("bag/bkq", "bag/alx", "no", "The nose differs, so I do not know.", False),  # no "no" in it
    ]
    second = [
        recognised("mug/fse", "bag/alx", "no", "No.", True),
        recognised("bag/alx", "bag/bkq", "no", "yes", False),
        recognised("mug/fse", "mug/fse", "yes", "", False),
    ]
    files = [write(tmp_path / f"{n}.json", rows, category="bag") for n, rows in enumerate((first, second))]
    assert main([str(tmp_path / "out"), *map(str, files), "--speaker", "R2P"]) == 0
    result = load_record(tmp_path / "out/metrics.json", EvaluationResult)
    # yes: 2 of 3 (one failed); no: 1 of 3 (one yes, one invalid)
    assert result.value("recall") == pytest.approx(2 / 3)
    assert result.value("negative_accuracy") == pytest.approx(1 / 3)
    assert result.value("weighted_accuracy") == pytest.approx(1 / 2)
    assert result.value("precision") == pytest.approx(2 / 3)
    assert result.value("negative_accuracy_hard") == 0
    assert result.value("negative_accuracy_easy") == 1
    text = capsys.readouterr().out
    assert "recognition: 6 items, 3 concepts, 1 failed, 1 invalid" in text
    assert "by the reference's count: 0.3333; by ours: 0.5000 (1 items are judged differently)" in text
    assert "1 of 6 items could not be asked" in text


def test_all_pairs(tmp_path: Path) -> None:
    rows = [
        {
            "query_path": f"data/YoLLaVA/test/{name}/1.png", "name": name, "concept_name": described, "problem": "…",
            "solution": "yes" if name == described else "no", "response": "yes" if described == "bo" else "no",
            "prediction": "", "correct": True,
        }
        for name in ("bo", "mam")
        for described in ("bo", "mam")
    ]  # fmt: skip
    found = load_results([write(tmp_path / "pairs.json", rows, category="all")])
    assert found.kind == "pairs"
    assert [(p.concept, p.tags["described"], p.tags["negatives"], p.is_correct) for p in found.predictions] == [
        ("all/bo", "all/bo", "none", True),
        ("all/bo", "all/mam", "easy", True),
        ("all/mam", "all/bo", "easy", False),
        ("all/mam", "all/mam", "none", False),
    ]


def test_questions_with_their_options(tmp_path: Path) -> None:
    def asked(number: int, solution: str, response: object) -> dict[str, object]:
        problem = f"What colour is bo {number} in Image 1? {{'A': 'red', 'B': 'dark blue'}} Answer with A or B."
        return {
            "image_path": "data/YoLLaVA/test/bo/1.png", "problem": problem, "solution": solution, "ret_path": "r",
            "response": response, "pred": "", "correct": False,
        }  # fmt: skip

    rows = [asked(0, "A", "A"), asked(1, "B.", "dark blue"), asked(2, "A", ["B"]), asked(3, "A", "A or B")]
    found = load_results([write(tmp_path / "vqa.json", rows)])
    assert found.predictions[0].options == ("red", "dark blue")
    assert [p.answered for p in found.predictions] == [0, 1, 1, None]
    assert [p.is_correct for p in found.predictions] == [True, True, False, False]


@pytest.mark.parametrize(
    ("path", "concept"),
    [
        ("data/PerVA/test_/bag/alx/1.jpg", "bag/alx"),
        ("/home/x/data/YoLLaVA/test/bo/0.png", "all/bo"),
        ("bo/0.png", "all/bo"),
        ("/train/data/PerVA/train_/tro_bag/alx/laion/1.jpg", "alx/laion"),
    ],
)
def test_concepts_are_read_from_paths(path: str, concept: str) -> None:
    assert concept_of(path) == concept


def test_what_cannot_be_taken_over_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    good = identified("alx/1.jpg", "alx", "A", True)
    wrong: list[tuple[object, str]] = [
        ([1], "expected a JSON object, found a list"),
        ({"results": 3}, "a list 'results' of rows"),
        ({"results": []}, "found no rows at all"),
        ({"results": [{"a": 1}]}, "a row with the keys a is of no known kind"),
        ({"results": [good, good]}, "test_/bag/alx/1.jpg is there twice"),
        ({"results": [{**good, "ret_paths": ["x/a/1.jpg"]}]}, "expected two retrieved concepts or more"),
        ({"results": [recognised("bag/a", "bag/a", "maybe", "yes", True)]}, "row 0: cannot be read: 'solution'"),
        (
            {"results": [good, recognised("bag/a", "bag/a", "yes", "yes", True)]},
            "of one evaluation, found identification",
        ),
    ]
    for content, expected in wrong:
        (tmp_path / "file.json").write_text(json.dumps(content))
        assert main([out, str(tmp_path / "file.json")]) == 2, expected
        assert expected in capsys.readouterr().err
    (tmp_path / "file.json").write_text("{")
    assert main([out, str(tmp_path / "file.json")]) == 2
    assert "is not a JSON file: line 1" in capsys.readouterr().err
    with pytest.raises(EvaluationError):
        load_results([])
