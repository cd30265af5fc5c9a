"""Identification: options, modes, controls, and what broken models score."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from lewis_core.config.evaluation import IdentificationConfig, StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.identification import aggregate, identify
from lewis_core.evaluation.io import build_subjects
from lewis_core.evaluation.options import Index, build_queries
from lewis_core.evaluation.records import Prediction
from lewis_core.listener.schemas import ChoiceAnswer, Question
from lewis_core.prompts import CONCISE
from lewis_core.records import Catalog, Database
from lewis_core.testing import FakeModel, make_catalog, make_database

STATISTICS = StatisticsConfig(resamples=200)
CATALOG = make_catalog({"mug": 5, "bag": 5})


def number(text: str) -> int:
    found = re.search(r"(?:secret|K)(\d\d)", text)
    assert found
    return int(found.group(1))


def describe(silent: tuple[int, ...] = (), catalog: Catalog = CATALOG) -> Database:
    texts = {c.id: None if number(c.id) in silent else f"The mark is K{number(c.id):02d}." for c in catalog.concepts}
    return make_database(catalog, texts)


def index(confused: dict[int, int] | None = None, catalog: Catalog = CATALOG) -> Index:
    """Concept n lies at angle n / 10; ``confused`` moves the test photos of a concept to another one's angle."""

    def direction(at: float) -> list[float]:
        return [math.cos(at / 10), math.sin(at / 10)]

    rows, images = {}, []
    for concept in catalog.concepts:
        own = number(concept.id)
        for photo in (*concept.train, *concept.test):
            rows[photo.sha256] = len(images)
            images.append(direction((confused or {}).get(own, own) if photo in concept.test else own))
    texts = [direction(number(concept.id)) for concept in catalog.concepts]
    text_rows = {concept.id: row for row, concept in enumerate(catalog.concepts)}
    return Index(np.array(images, dtype=np.float32), rows, np.array(texts, dtype=np.float32), text_rows)


def reads(image: str | None, question: Question) -> int:
    """Choose the option with the photo's own mark; A when there is none."""
    letters = {int(mark): letter for letter, mark in re.findall(r"([A-Z]): [^:]*?K(\d\d)", question.prompt)}
    return ord(letters.get(number(str(image)), "A")) - ord("A")


def knows(image: str, text: str) -> float:
    return 0.9 if number(image) == number(text) else 0.2


def ask(
    model: FakeModel, database: Database | None = None, vectors: Index | None = None, **settings
) -> list[Prediction]:
    config = IdentificationConfig(**settings)
    return identify(build_subjects(database or describe(), CATALOG), vectors or index(), model, CONCISE, config)


def values(predictions: list[Prediction]) -> dict[str, float | None]:
    return {m.name: m.value for m in aggregate(predictions, IdentificationConfig(), STATISTICS)}


def test_a_perfect_model_is_right_everywhere_and_the_controls_are_not() -> None:
    found = values(ask(FakeModel(knows, reads)))
    for name in ("ranking_accuracy", "ranking_mrr", "accuracy_oracle", "accuracy_retrieval", "recall_at_k"):
        assert found[name] == 1, name
    assert found["accuracy_given_hit"] == 1
    # without marks to read it says A every time: as good as the always-A control
    assert found["control_no_description"] == found["control_always_a_oracle"]
    assert found["control_wrong_description"] == found["control_always_a_oracle"]
    assert found["invalid_rate_oracle"] == 0
    # .9 against two of .05: entropy, and lead of the best
    assert found["margin_oracle"] == pytest.approx(0.85)
    assert found["entropy_oracle"] == pytest.approx(-0.9 * math.log(0.9) - 2 * 0.05 * math.log(0.05))


def test_a_retrieval_miss_is_not_the_models_mistake() -> None:
    # photos of mug 0 lie at mug 4: of the five mugs, retrieval finds 4, 3, 2
    found = ask(FakeModel(knows, reads), vectors=index({0: 4}))
    missed = [p for p in found if p.tags["mode"] == "retrieval" and number(p.concept) == 0]
    assert [p.expected for p in missed] == [None, None]
    assert all({number(option) for option in p.options} == {4, 3, 2} for p in missed)
    oracle = [p for p in found if p.tags["mode"] == "oracle" and number(p.concept) == 0]
    assert all({number(option) for option in p.options} == {4, 3, 0} for p in oracle)  # the worst of three gives way
    numbers = values(found)
    # one of ten concepts is missed
    assert numbers["recall_at_k"] == numbers["accuracy_retrieval"] == pytest.approx(0.9)
    assert numbers["accuracy_given_hit"] == numbers["accuracy_oracle"] == 1


def test_always_a_scores_chance_and_position_b_nothing() -> None:
    catalog = make_catalog({"mug": 60}, num_test=5)
    database = make_database(catalog, {c.id: f"The mark is K{number(c.id):02d}." for c in catalog.concepts})
    config = IdentificationConfig(controls=False)
    found = identify(build_subjects(database, catalog), index(catalog=catalog), FakeModel(knows), CONCISE, config)
    numbers = {m.name: m.value for m in aggregate(found, config, STATISTICS)}
    # 300 queries, one in three; standard error √(1/3 · 2/3 / 300) = .027
    assert numbers["accuracy_oracle"] == pytest.approx(1 / 3, abs=0.082)
    assert numbers["accuracy_oracle"] == numbers["control_always_a_oracle"]
    assert numbers["accuracy_oracle_position_a"] == 1
    assert numbers["accuracy_oracle_position_b"] == numbers["accuracy_oracle_position_c"] == 0
    places = Counter(p.expected for p in found if p.tags["mode"] == "oracle")
    assert min(places[index] for index in range(3)) > 70  # each about 100


def test_a_listener_that_always_says_yes_ranks_nothing_first() -> None:
    found = values(ask(FakeModel(says_yes=lambda image, text: 0.99), controls=False))
    assert found["ranking_accuracy"] == 0
    assert found["ranking_mrr"] == pytest.approx(1 / 5)  # last of five


def test_the_same_text_for_all_is_never_right() -> None:
    database = make_database(CATALOG, {concept.id: "It is nice." for concept in CATALOG.concepts})
    model = FakeModel(says_yes=lambda image, text: 0.7)
    assert values(ask(model, database, controls=False))["ranking_accuracy"] == 0
    assert model.asked.count("A photo of a mug. It is nice.") == 10  # five mugs, one text, ten photos


def test_ranking_uses_all_descriptions_of_the_category() -> None:
    ranking = [p for p in ask(FakeModel(knows, reads)) if p.tags["mode"] == "ranking"]
    assert len(ranking) == 10 * 2
    for prediction in ranking:
        assert len(prediction.options) == 5
        assert sum(prediction.probabilities) == pytest.approx(1)
        # odds 9 for its own text, .25 for the four others
        assert max(prediction.probabilities) == pytest.approx(9 / (9 + 4 * 0.25))


def test_silence_wins_nothing_and_stays_among_the_options() -> None:
    found = ask(FakeModel(knows, reads), describe(silent=(0,)))
    own = [p for p in found if number(p.concept) == 0]
    failed = [p for p in own if p.error and p.answered is None]
    assert {p.tags["mode"] for p in failed} == {"ranking", "oracle", "retrieval"}
    assert {p.tags["mode"] for p in own if p.error is None} == {"no_description", "wrong_description"}
    numbers = values(found)
    assert numbers["ranking_accuracy"] == numbers["accuracy_oracle"] == pytest.approx(0.9)
    assert numbers["ranking_accuracy_described"] == numbers["accuracy_oracle_described"] == 1
    # mug 1's neighbours are still 0 and 2: its task did not become easier
    others = [p for p in found if number(p.concept) == 1 and p.tags["mode"] == "oracle"]
    assert all({number(option) for option in p.options} == {0, 1, 2} for p in others)


def test_an_answer_outside_of_the_letters_is_invalid_and_wrong() -> None:
    class Mumbles(FakeModel):
        def choose(self, items):
            answers = super().choose(items)
            return [[ChoiceAnswer(log_probs=a.log_probs, captured_mass=0.2) for a in row] for row in answers]

    found = ask(Mumbles(knows, reads))
    assert all(p.answered is None and p.error is None for p in found if p.tags["mode"] == "oracle")
    numbers = values(found)
    assert (numbers["invalid_rate_oracle"], numbers["accuracy_oracle"]) == (1, 0)
    assert numbers["ranking_accuracy"] == 1


def test_options_do_not_depend_on_rank_or_truth_and_modes_agree() -> None:
    subjects = build_subjects(describe(), CATALOG)
    queries = {
        q.mode: q for q in build_queries(subjects[1], subjects[1].photos[0], subjects, index(), IdentificationConfig())
    }
    assert queries["oracle"].options == queries["retrieval"].options  # a hit: the same question, asked once
    again = build_queries(subjects[1], subjects[1].photos[0], subjects[::-1], index(), IdentificationConfig())
    assert again[0].options == queries["retrieval"].options
    shown = {option.id for option in queries["wrong_description"].options}
    told = {f"secret{number(text):02d}" for text in queries["wrong_description"].texts}
    assert not told & {concept.partition("/")[2] for concept in shown}
    assert queries["no_description"].texts == ("", "", "")


def test_questions_with_the_same_words_are_put_once() -> None:
    model = FakeModel(knows, reads)
    ask(model, controls=False)
    prompts = [text for text in model.asked if "Which description" in text]
    assert len(prompts) == 10 * 2  # retrieval hits everywhere, so the oracle's question is the same


def test_fewer_queries_on_request_and_items_are_unique() -> None:
    found = ask(FakeModel(knows, reads), max_queries_per_concept=1)
    assert Counter(p.tags["mode"] for p in found) == dict.fromkeys(
        ("ranking", "oracle", "retrieval", "no_description", "wrong_description"), 10
    )
    assert len({p.item for p in found}) == len(found)


def test_a_foreign_index_is_refused() -> None:
    vectors = index()
    with pytest.raises(EvaluationError, match="text index does not hold"):
        ask(FakeModel(), vectors=Index(vectors.images, vectors.image_rows, vectors.texts, {}))
    with pytest.raises(EvaluationError, match="has no embedding"):
        ask(FakeModel(), vectors=Index(vectors.images, {}, vectors.texts, vectors.text_rows))


def test_a_concept_that_has_the_same_picture_is_no_option() -> None:
    mug, other = CATALOG.concept("cat-mug/secret00"), CATALOG.concept("cat-mug/secret01")
    copy = other.test[0].model_copy(update={"sha256": mug.test[0].sha256})
    changed = other.model_copy(update={"test": (copy, other.test[1])})
    catalog = CATALOG.model_copy(update={"concepts": tuple(changed if c is other else c for c in CATALOG.concepts)})
    subjects = build_subjects(describe(catalog=catalog), catalog)
    found = identify(subjects, index(catalog=catalog), FakeModel(knows, reads), CONCISE, IdentificationConfig())
    ranked = {p.image: p.options for p in found if p.tags["mode"] == "ranking"}
    # five mugs, less the one that has the same picture; the other photos keep all five
    assert {path: len(options) for path, options in ranked.items() if "mug" in path} == {
        photo.path: 4 if photo.sha256 == mug.test[0].sha256 else 5
        for concept in catalog.concepts
        if "mug" in concept.id
        for photo in concept.test
    }
    for prediction in found:
        if prediction.image == mug.test[0].path:
            assert other.id not in prediction.options
        if prediction.image == copy.path:
            assert mug.id not in prediction.options
