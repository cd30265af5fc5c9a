"""Identification: whose thing is in this photo?

Three questions about every test photo, because each hides something that another one shows:

- *ranking*: yes or no for every description of the category, or of all (``pool``); which fits best? No retriever, no
  letters. It is the skip-retrieval mode of others, whose yes-or-no numbers are ``ranking_pair_…``.
- *oracle*: choose a letter among look-alikes' descriptions that are sure to hold the right one.
- *retrieval*: the same among what hybrid CLIP retrieval finds; its misses are reported as ``recall_at_k``.

Options are shuffled by seed and hold descriptions only, never names. Control arms: always A and the majority's letter;
options without text (``no_description``), with other concepts' texts (``wrong_description``), without the photo
(``no_image``); and the retriever alone (``image_only``, ``image_and_text``, ``text_only``).
A query concept without a readable description is counted as failed and is wrong, but in numbers that end in
``_described``, where it is left out.
"""

from collections.abc import Sequence
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import ModelRef
from lewis_core.config.evaluation import IdentificationConfig, Reading, StatisticsConfig
from lewis_core.evaluation import asking, io
from lewis_core.evaluation.asking import Ask
from lewis_core.evaluation.blocks import Refused
from lewis_core.evaluation.controls import always_a, majority_position
from lewis_core.evaluation.io import Subject
from lewis_core.evaluation.metrics import entropy, margin, rank_of, softmax
from lewis_core.evaluation.options import CONTROLS, Index, Query, build_queries
from lewis_core.evaluation.recognition import FORMULAS
from lewis_core.evaluation.records import Metric, Prediction
from lewis_core.evaluation.statistics import Measure, formula_measure, mean_measure, summarise
from lewis_core.listener.schemas import ScoreGame
from lewis_core.models.protocol import AnsweringModel
from lewis_core.prompts import LETTERS, PromptSet, prompt_set
from lewis_core.records import JsonObject
from lewis_core.reporting import NullReporter, Reporter
from lewis_core.retrieval.vectors import load_embeddings, load_text_index

TEXTS_PER_GAME = 128
ANY_CATEGORY = "object"
RANKING = "ranking"
CONTROL_NOTES = {
    "no_description": "letters only",
    "wrong_description": "other concepts' texts",
    "no_image": "no photo",
    "image_only": "the retriever alone, by reference photos",
    "image_and_text": "the retriever alone, by reference photos and texts",
    "text_only": "the retriever alone, by texts",
}
PAIR_METRICS = ("weighted_accuracy", "f1", "precision", "recall")
LogOdds = dict[tuple[str, str], float | Refused]
"""Log-odds of yes by photo path and description, or why there are none."""


def evaluate_identification(
    database: ArtifactRef,
    catalog: ArtifactRef,
    embeddings: ArtifactRef,
    index: ArtifactRef,
    answering: ModelRef,
    output_dir: Path,
    config: IdentificationConfig,
    statistics: StatisticsConfig,
    service_url: str,
    work_dir: Path,
    reporter: Reporter,
) -> JsonObject:
    """Ask whose thing every test photo shows.

    Args:
        database: Artifact of ``describe-concepts``.
        catalog: Artifact of ``build-catalog``.
        embeddings: Artifact of ``embed-images``.
        index: Artifact of ``index-database``, made from the same database.
        answering: The answering model; the service at ``service_url`` runs it.
        output_dir: Receives ``predictions.jsonl`` and ``metrics.json``.
        config: Options, modes, controls, seed.
        statistics: Intervals.
        service_url: Address of the model service.
        work_dir: Keeps answers until all are there.
        reporter: Receives progress and metrics.

    Returns:
        Counts and numbers.

    Raises:
        EvaluationError: If the artifacts do not belong together or nothing can be asked.
        ListenerError: If the service does not answer.
    """
    speaker, subjects = io.load_subjects(database, catalog)
    vectors = Index(*load_embeddings(embeddings), *load_text_index(index))
    with asking.connect(service_url, work_dir) as model:
        predictions = identify(subjects, vectors, model, prompt_set(answering.prompts), config, reporter)
    metrics = aggregate(predictions, config, statistics)
    reporter.log_metrics(io.numbers(metrics))
    items = [prediction for prediction in predictions if prediction.tags["mode"] not in CONTROLS]
    controls = [prediction for prediction in predictions if prediction.tags["mode"] in CONTROLS]
    return io.save_evaluation(output_dir, "identification", speaker, "listener", items, metrics, statistics, controls)


def identify(
    subjects: Sequence[Subject],
    index: Index,
    model: AnsweringModel,
    prompts: PromptSet,
    config: IdentificationConfig,
    reporter: Reporter | None = None,
) -> list[Prediction]:
    """Ask everything about every photo; returns the rankings, then the letter questions."""
    queries = [
        query
        for subject in sorted(subjects, key=lambda subject: subject.id)
        for photo in io.draw_photos(subject, config.max_queries_per_concept, config.seed, "identification")
        for query in build_queries(subject, photo, subjects, index, config)
    ]
    sink = reporter or NullReporter()
    return [*rank(subjects, model, config, sink), *_choose(queries, model, prompts, sink, config)]


def _choose(
    queries: Sequence[Query], model: AnsweringModel, prompts: PromptSet, reporter: Reporter, reading: Reading
) -> list[Prediction]:
    """Ask for letters; the retriever's own arms are answered by what it likes best."""
    asks = [
        Ask(
            query.image,
            prompts.identification(query.subject.entry.category_word, query.texts),
            tuple(LETTERS[: len(query.options)]),
        )
        for query in queries
        if query.failure is None and not query.similarities
    ]
    replies = iter(asking.ask_all(model, asks, reporter, reading))
    predictions = []
    for query in queries:
        prediction = query.prediction()
        if prediction.error is None and query.similarities:
            answered = asking.pick(query.similarities, prediction.expected)
            prediction = prediction.model_copy(update={"answered": answered})
        elif prediction.error is None:
            prediction = asking.record_answer(prediction, next(replies), query.texts)
        predictions.append(prediction)
    return predictions


def rank(
    subjects: Sequence[Subject], model: AnsweringModel, config: IdentificationConfig, reporter: Reporter
) -> list[Prediction]:
    """Score every description of the category, or all there are, on every photo; the best one is the answer.

    Equal texts get equal scores, so a speaker that says the same of two concepts is wrong on both. Descriptions
    that are missing are never the answer, nor are those of other concepts that have the same picture.
    """
    groups = io.by_category(subjects)
    if config.pool == "all":
        groups = {ANY_CATEGORY: [subject for group in groups.values() for subject in group]}
    asked = {
        category: [
            Query(subject, photo, RANKING, options, ())
            for subject in group
            for photo in io.draw_photos(subject, config.max_queries_per_concept, config.seed, "identification")
            if len(options := tuple(io.without_owners(group, photo, subject))) > 1
        ]
        for category, group in groups.items()
    }
    games = [
        game
        for category, queries in asked.items()
        for game in _build_games(category, groups[category], list(dict.fromkeys(query.photo.path for query in queries)))
    ]
    log_odds: LogOdds = {}
    for game, scores in zip(games, asking.score_all(model, games, reporter), strict=True):
        for place, text in enumerate(game.descriptions):
            odds = scores if isinstance(scores, Refused) else scores.yes_log_odds[place][0]
            log_odds[game.candidates[0], text] = odds
    return [_rank_one(query, log_odds) for queries in asked.values() for query in queries]


def _build_games(category: str, group: Sequence[Subject], paths: Sequence[str]) -> list[ScoreGame]:
    """Cut photos × different descriptions into games of one photo each, so that a bad photo fails alone."""
    texts = list(dict.fromkeys(subject.entry.text for subject in group if subject.failure is None))
    return [
        ScoreGame(
            candidates=(path,),
            descriptions=tuple(texts[text : text + TEXTS_PER_GAME]),
            category=ANY_CATEGORY if category == ANY_CATEGORY else group[0].entry.category_word,
        )
        for path in paths
        for text in range(0, len(texts), TEXTS_PER_GAME)
    ]


def _rank_one(query: Query, log_odds: LogOdds) -> Prediction:
    """Record which description of the category fits one photo best."""
    described = [option for option in query.options if option.failure is None]
    prediction = query._replace(options=tuple(described)).prediction()
    if prediction.error is not None:
        return prediction
    found = [log_odds[query.photo.path, option.entry.text] for option in described]
    if refused := [odds for odds in found if isinstance(odds, Refused)]:
        return asking.record_refusal(prediction, refused[0])
    scores = tuple(odds for odds in found if not isinstance(odds, Refused))
    return prediction.model_copy(
        update={
            "answered": asking.pick(scores, prediction.expected),
            "probabilities": softmax(scores),
            "scores": scores,
        }
    )


def ranking_accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Share of photos whose own description fits best; concepts without a description are wrong."""
    return _accuracy([prediction for prediction in predictions if prediction.tags["mode"] == RANKING])


def oracle_accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Share of right letters when the truth is among them; concepts without a description are wrong."""
    return _accuracy([prediction for prediction in predictions if prediction.tags["mode"] == "oracle"])


def retrieval_accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Share of right letters end to end, retrieval's misses included; concepts without a description are wrong."""
    return _accuracy([prediction for prediction in predictions if prediction.tags["mode"] == "retrieval"])


def aggregate(
    predictions: Sequence[Prediction], config: IdentificationConfig, statistics: StatisticsConfig
) -> tuple[Metric, ...]:
    """Turn predictions into numbers with intervals."""
    by_mode: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_mode.setdefault(prediction.tags["mode"], []).append(prediction)
    measures: dict[str, Measure] = {}
    notes: dict[str, str] = {}
    _add_ranking(by_mode.get(RANKING, []), measures, notes)
    for mode in ("oracle", "retrieval"):
        if mode in by_mode:
            _add_mode(mode, by_mode[mode], measures, notes)
    if "retrieval" in by_mode:
        _add_retrieval(by_mode["retrieval"], config.num_options, measures, notes)
    for control in CONTROLS:
        if control in by_mode:
            measures[f"control_{control}"] = _accuracy(_answered(by_mode[control]))
            notes[f"control_{control}"] = f"oracle options, {CONTROL_NOTES[control]}; {_chance(by_mode[control])}"
    return summarise(measures, statistics, notes)


def _add_ranking(predictions: Sequence[Prediction], measures: dict[str, Measure], notes: dict[str, str]) -> None:
    """Add the numbers of the rankings."""
    if not predictions:
        return
    answered = _answered(predictions)
    ranks = {p.item: rank_of(p.scores, p.expected) for p in answered if p.expected is not None}
    measures |= {
        "ranking_accuracy": _accuracy(predictions),
        "ranking_accuracy_described": _accuracy(answered),
        "ranking_mrr": mean_measure([(p.concept, 1 / ranks[p.item]) for p in answered]),
        "ranking_entropy": mean_measure([(p.concept, entropy(p.probabilities)) for p in answered]),
        **_pairs(answered),
    }
    notes["ranking_accuracy"] = (
        f"all descriptions of the pool, best P(yes); {_chance(answered)}; "
        f"{len(predictions) - len(answered)} could not be asked and count as wrong"
    )
    notes["ranking_pair_f1"] = "each pair of photo and description as a yes or no of its own; even odds are no"
    notes["ranking_accuracy_described"] = io.ASKED_ONLY


def _pairs(answered: Sequence[Prediction]) -> dict[str, Measure]:
    """Read each score of a ranking as a yes or no of its own: even odds are no."""
    concepts, rows = [], []
    for prediction in answered:
        for index, score in enumerate(prediction.scores):
            positive, yes = index == prediction.expected, score > 0
            concepts.append(prediction.concept)
            rows.append(
                (
                    positive and yes,
                    not positive and yes,
                    positive and not yes,
                    not positive and not yes,
                    positive,
                    not positive,
                )
            )
    return {f"ranking_pair_{name}": formula_measure(concepts, rows, FORMULAS[name]) for name in PAIR_METRICS}


def _add_mode(
    mode: str, predictions: Sequence[Prediction], measures: dict[str, Measure], notes: dict[str, str]
) -> None:
    """Add the numbers of letter questions in one mode."""
    answered = _answered(predictions)
    measures |= {
        f"accuracy_{mode}": _accuracy(predictions),
        f"accuracy_{mode}_described": _accuracy(answered),
        f"invalid_rate_{mode}": mean_measure([(p.concept, float(p.answered is None)) for p in answered]),
        **_sureness(mode, answered),
        f"control_always_a_{mode}": always_a(predictions),
        f"control_majority_{mode}": majority_position(predictions),
    }
    notes[f"accuracy_{mode}"] = f"{_chance(answered)}; what could not be asked counts as wrong"
    notes[f"accuracy_{mode}_described"] = io.ASKED_ONLY
    notes[f"control_always_a_{mode}"] = "what answering A every time would score"
    notes[f"control_majority_{mode}"] = "what the letter that is right most often would score"
    if mode == "oracle":
        for position in range(max(len(p.options) for p in predictions)):
            name = f"accuracy_oracle_position_{LETTERS[position].lower()}"
            measures[name] = _accuracy([p for p in answered if p.expected == position])
            notes[name] = f"the truth stands at {LETTERS[position]}"


def _sureness(mode: str, answered: Sequence[Prediction]) -> dict[str, Measure]:
    """Entropy and margin over the letters; nothing where answers were written."""
    if any(not prediction.probabilities for prediction in answered):
        return {}
    return {
        f"entropy_{mode}": mean_measure([(p.concept, entropy(p.probabilities)) for p in answered]),
        f"margin_{mode}": mean_measure([(p.concept, margin(p.probabilities)) for p in answered]),
    }


def _add_retrieval(
    predictions: Sequence[Prediction], num_options: int, measures: dict[str, Measure], notes: dict[str, str]
) -> None:
    """Split end-to-end accuracy into what retrieval finds and what the model makes of it."""
    measures["recall_at_k"] = mean_measure([(p.concept, float(p.expected is not None)) for p in predictions])
    measures["accuracy_given_hit"] = _accuracy([p for p in _answered(predictions) if p.expected is not None])
    notes["recall_at_k"] = f"the truth is among the {num_options} retrieved: the ceiling of accuracy_retrieval"
    notes["accuracy_given_hit"] = "of the queries whose truth was retrieved; answered items only"


def _answered(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Items that could be asked."""
    return [prediction for prediction in predictions if prediction.error is None]


def _accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Share of right answers; invalid ones are wrong."""
    return mean_measure([(prediction.concept, float(prediction.is_correct)) for prediction in predictions])


def _chance(predictions: Sequence[Prediction]) -> str:
    """Accuracy of guessing among the options."""
    guesses = [1 / len(p.options) for p in predictions if p.options]
    return f"chance {sum(guesses) / max(len(guesses), 1):.2f}"
