"""What the texts say, and whether it is true: length, format, talk of state and place, repetition, sameness.

Mentions are found by a word list (:mod:`lewis_core.descriptions.lexicon`), the same that highlights the report. Where
the data set knows the truth (the pocket world's ``facts.json``), every sentence is read exactly and checked.
Texts that could not be read count in ``format_rate`` only; read the other numbers together with it.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.descriptions.lexicon import mentions_location, mentions_state
from lewis_core.descriptions.overlap import copied_share, distinct, self_bleu
from lewis_core.descriptions.tokens import sentences, words
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import io
from lewis_core.evaluation.records import EvaluationResult, Metric
from lewis_core.evaluation.statistics import Measure, first_by_second, formula_measure, mean_measure, summarise
from lewis_core.pocket.truth import DescriptionTruth, check_description
from lewis_core.pocket.world import IDENTITY_KEYS
from lewis_core.prompts import PROMPT_SETS
from lewis_core.records import Database, DatabaseEntry, JsonObject, Record, load_record, save_jsonl, save_record
from lewis_core.reporting import Reporter

ROWS = "rows.jsonl"


class DescriptionRow(Record):
    """One concept's text, measured; a line of ``rows.jsonl``. ``None`` where there is no text to measure."""

    item: str
    """The concept's id; equal for two speakers."""
    concept: str
    category: str
    text: str
    error: str | None
    """Why there is no description."""
    words: int | None = None
    state: bool | None = None
    location: bool | None = None
    sentences: int | None = None
    repeated: int | None = None
    """Sentences that say again what an earlier one said, word for word."""
    overlap: float | None = None
    """Word overlap (Jaccard) with the most similar description of another concept of the category."""
    self_bleu: float | None = None
    """BLEU-4 against all descriptions of other concepts of the category."""
    copied: float | None = None
    """Largest share of its word trigrams that stand in one description of another concept of the category."""
    prompt_copied: float | None = None
    """Share of the detailed text's word trigrams that stand in a prompt for speakers."""
    truth: DescriptionTruth | None = None


def evaluate_descriptions(
    database: ArtifactRef, catalog: ArtifactRef, output_dir: Path, config: StatisticsConfig, reporter: Reporter
) -> JsonObject:
    """Measure a speaker's descriptions.

    Args:
        database: Artifact of ``describe-concepts``.
        catalog: Artifact of ``build-catalog``; may hold ``facts.json``.
        output_dir: Receives ``rows.jsonl`` and ``metrics.json``.
        config: Intervals.
        reporter: Receives the numbers.

    Returns:
        Counts and numbers.

    Raises:
        EvaluationError: If the database is empty, or the facts do not cover its photos.
        DataError: If the facts do not have the promised shape.
    """
    loaded = load_record(database.file("database.json"), Database)
    if not loaded.entries:
        raise EvaluationError(f"the database of speaker {loaded.speaker!r} is empty; describe concepts first")
    rows = measure_descriptions(loaded.entries, io.load_facts(catalog))
    result = EvaluationResult(
        evaluation="descriptions",
        speaker=loaded.speaker,
        answering="",
        metrics=aggregate(rows, config),
        failed=sum(row.error is not None for row in rows),
        concepts=len(rows),
    )
    reporter.log_metrics(io.numbers(result.metrics))
    save_jsonl(output_dir / ROWS, rows)
    save_record(output_dir / io.METRICS, result)
    return io.summary(result, len(rows))


def plain_sentences(text: str) -> list[str]:
    """Sentences as lower-case words joined by blanks, so that case and punctuation do not set them apart."""
    return [" ".join(words(sentence)) for sentence in sentences(text)]


def word_overlap(first: str, second: str) -> float:
    """Jaccard overlap of two texts' words, in [0, 1]; 1 for the same words."""
    mine, theirs = set(words(first)), set(words(second))
    return len(mine & theirs) / max(len(mine | theirs), 1)


def distinct_bigrams(texts: Sequence[str]) -> float | None:
    """Distinct-2: different word pairs by all word pairs, over all texts; ``None`` if there are none."""
    found = [pair for text in texts for sentence in plain_sentences(text) for pair in pairwise(sentence.split())]
    return len(set(found)) / len(found) if found else None


def measure_descriptions(entries: Sequence[DatabaseEntry], facts: io.Facts | None = None) -> list[DescriptionRow]:
    """Measure every entry.

    Args:
        entries: A database's entries.
        facts: What is known to be true, as in ``facts.json``; ``None`` when nothing is.
    """
    bleu: dict[str, float | None] = {}
    for category in sorted({entry.category for entry in entries}):
        said = [entry for entry in entries if entry.category == category and entry.text.strip()]
        values = self_bleu([entry.text for entry in said])
        bleu |= {entry.concept: value for entry, value in zip(said, values, strict=True)}
    rows = [_measure(entry, entries, facts) for entry in entries]
    return [row.model_copy(update={"self_bleu": bleu.get(row.concept)}) for row in rows]


def _measure(entry: DatabaseEntry, entries: Sequence[DatabaseEntry], facts: io.Facts | None) -> DescriptionRow:
    text = entry.text
    row = DescriptionRow(
        item=entry.concept, concept=entry.concept, category=entry.category, text=text, error=entry.error
    )
    if not text.strip():
        return row.model_copy(update={"error": entry.error or "the speaker wrote nothing"})
    said = plain_sentences(text)
    others = [
        other.text
        for other in entries
        if other.category == entry.category and other.concept != entry.concept and other.text
    ]
    measured = {
        "words": len(words(text)),
        "state": mentions_state(text),
        "location": mentions_location(text),
        "sentences": len(said),
        "repeated": len(said) - len(set(said)),
        "overlap": max((word_overlap(text, other) for other in others), default=None),
        "copied": copied_share(text, others),
        "prompt_copied": _copied_from_prompt(entry),
        "truth": _check(entry, facts) if facts is not None else None,
    }
    return row.model_copy(update=measured)


def _copied_from_prompt(entry: DatabaseEntry) -> float | None:
    """Measure what the detailed text takes from the request, whichever of the prompt sets that was."""
    if entry.description is None:
        return None
    requests = [prompts.speaker(entry.category_word) for prompts in PROMPT_SETS.values()]
    return copied_share(entry.description.detailed, requests)


def _check(entry: DatabaseEntry, facts: io.Facts) -> DescriptionTruth:
    """Compare a text with the truth about the photo that it describes."""
    known = io.facts_of(facts, entry.reference)
    parts = entry.description
    return check_description(parts.detailed, known, parts.coarse) if parts else check_description("", known)


def state_rate(rows: Sequence[DescriptionRow]) -> Measure:
    """Share of descriptions that mention a state, pose or action."""
    return mean_measure([(row.concept, float(row.state)) for row in rows if row.state is not None])


def location_rate(rows: Sequence[DescriptionRow]) -> Measure:
    """Share of descriptions that mention a place or surroundings."""
    return mean_measure([(row.concept, float(row.location)) for row in rows if row.location is not None])


def aggregate(rows: Sequence[DescriptionRow], config: StatisticsConfig) -> tuple[Metric, ...]:
    """Turn rows into numbers with intervals."""
    read = [row for row in rows if row.words is not None]
    measures = {
        "state_rate": state_rate(read),
        "location_rate": location_rate(read),
        "format_rate": mean_measure([(row.concept, float(row.error is None)) for row in rows]),
        "words_mean": mean_measure([(row.concept, float(row.words or 0)) for row in read]),
        "repeated_sentence_rate": _share(read, [(row.repeated or 0, row.sentences or 0) for row in read]),
        "overlap_with_others": mean_measure([(row.concept, row.overlap) for row in read if row.overlap is not None]),
        "self_overlap": _mean(read, "self_bleu"),
        "copy_overlap": _mean(read, "copied"),
        "prompt_copy_overlap": _mean(read, "prompt_copied"),
        "duplicate_text_rate": mean_measure([(row.concept, float(_is_duplicate(row, read))) for row in read]),
    }
    notes = {
        "state_rate": "by word list; described concepts only",
        "location_rate": "by word list; described concepts only",
        "repeated_sentence_rate": "sentences that repeat an earlier one of the same text",
        "overlap_with_others": "shared words with the most similar text of another concept of the category",
        "self_overlap": "self-BLEU-4 within the category: 1 when a text is cut from the others'",
        "copy_overlap": "word trigrams shared with the most similar text of another concept of the category",
        "prompt_copy_overlap": "word trigrams of the detailed text that stand in the speaker's prompt",
        "duplicate_text_rate": "texts that another concept of the category has as well",
    }
    checked = [row for row in read if row.truth is not None]
    measures |= _truth_measures(checked)
    return (*summarise(measures, config, notes | _TRUTH_NOTES), *_corpus_metrics(read))


def _mean(rows: Sequence[DescriptionRow], name: str) -> Measure:
    """Mean of a field, where it could be measured."""
    values = [(row.concept, getattr(row, name)) for row in rows]
    return mean_measure([(concept, float(value)) for concept, value in values if value is not None])


def _share(rows: Sequence[DescriptionRow], parts: Sequence[tuple[float, float]]) -> Measure:
    """Sum of parts by sum of wholes."""
    return formula_measure([row.concept for row in rows], parts, first_by_second)


def _is_duplicate(row: DescriptionRow, rows: Sequence[DescriptionRow]) -> bool:
    return any(
        other.text == row.text and other.category == row.category and other.concept != row.concept for other in rows
    )


def _corpus_metrics(rows: Sequence[DescriptionRow]) -> tuple[Metric, ...]:
    """Numbers of all texts together, which have no interval."""
    lengths = sorted(row.words or 0 for row in rows)
    p95 = float(lengths[max(0, -(-95 * len(lengths) // 100) - 1)]) if lengths else None
    texts = [row.text for row in rows]
    vocabulary = {word for text in texts for word in words(text)}
    return (
        Metric(name="words_p95", value=p95, n=len(rows), note="95 % of the texts have at most so many words"),
        Metric(name="distinct_1", value=distinct(texts, 1), n=len(rows), note="different words by all words"),
        Metric(name="distinct_2", value=distinct_bigrams(texts), n=len(rows), note="different word pairs by all pairs"),
        Metric(name="distinct_3", value=distinct(texts, 3), n=len(rows), note="different word trigrams by all"),
        Metric(name="vocabulary_words", value=float(len(vocabulary)), n=len(rows), note="different words of all texts"),
    )


_TRUTH_NOTES = {
    "identity_precision": "permanent attributes named that are never named wrongly, of all that are named",
    "identity_recall": "permanent attributes told rightly, of all there are",
    "identity_named_count": "permanent attributes told rightly per description",
    "hallucinated_rate": "descriptions with a false claim about a permanent attribute",
    "state_rate_exact": "by exact reading: state or pose",
    "location_rate_exact": "by exact reading",
    "repeated_fact_rate": "understood sentences about a fact that an earlier one was about, in any words",
    "unparsed_rate": "sentences that are not of the pocket world's language",
}


def _truth_measures(rows: Sequence[DescriptionRow]) -> dict[str, Measure]:
    """Numbers that need the truth; none without it."""
    checks = [row.truth for row in rows if row.truth is not None]
    if not checks:
        return {}
    return {
        "identity_precision": _share(rows, [(len(c.right), len(c.named)) for c in checks]),
        "identity_recall": _share(rows, [(len(c.right), len(IDENTITY_KEYS)) for c in checks]),
        "identity_named_count": _share(rows, [(len(c.right), 1) for c in checks]),
        "hallucinated_rate": _share(rows, [(float(len(c.named) > len(c.right)), 1) for c in checks]),
        "state_rate_exact": _share(rows, [(float(c.mentions_state), 1) for c in checks]),
        "location_rate_exact": _share(rows, [(float(c.mentions_location), 1) for c in checks]),
        "repeated_fact_rate": _share(rows, [(c.num_repeated, c.num_statements) for c in checks]),
        "unparsed_rate": _share(rows, [(c.num_unparsed, c.num_statements + c.num_unparsed) for c in checks]),
    }
