"""What descriptions claim that is not so, and what false claims do.

Three readings, each where its source is there. *Truth*: the pocket world's facts, sentence by sentence, by attribute,
with what was taken for what. *Reference*: a list of true attributes for each concept, against the attributes that a
word list finds in the text; what is missing from the list counts as false, so the list must be complete. *False
alarms*: descriptions that a model accepted for another concept's photo although their colours contradict that concept's
own description, as in the reference implementation, but with whole words instead of substrings.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.analyses import HallucinationConfig
from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.descriptions.colors import colors
from lewis_core.descriptions.lexicon import spans
from lewis_core.descriptions.tokens import words
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import io
from lewis_core.evaluation.analyses.load import Evaluation, load_evaluations, mode_of
from lewis_core.evaluation.records import Metric, Prediction
from lewis_core.evaluation.statistics import Measured, first_by_second, formula_measure, mean_measure, summarise
from lewis_core.pocket.language import parse_text
from lewis_core.pocket.world import FACT_KEYS, IDENTITY_KEYS
from lewis_core.records import Database, DatabaseEntry, JsonObject, Record, load_record

FILE = "hallucination.json"
References = Mapping[str, Sequence[str]]
"""Concept id → its true attributes."""


class Claim(Record):
    """Something that a description says about an attribute."""

    concept: str
    attribute: str
    """Name of the fact, e.g. ``color``; for a reference list, ``word``."""
    claimed: str
    true: str
    """What is so; for a reference list, all that is."""

    is_false: bool


class Confusion(Record):
    """What was taken for what, and how often."""

    attribute: str
    claimed: str
    true: str
    count: int


class FalseClaims(Record):
    """Claims of one speaker against one source of truth."""

    source: str
    """``truth`` or ``reference``."""
    texts: int
    """Descriptions that were checked."""
    left_out: int
    """Descriptions that could not be read, or about which the source says nothing."""
    metrics: tuple[Metric, ...]
    """``false_claim_rate``, ``hallucinated_rate``, and for the truth one rate for each attribute; by concept."""
    confusions: tuple[Confusion, ...]
    """The most frequent false claims."""
    false_claims: tuple[Claim, ...]


class FalseAlarms(Record):
    """Descriptions that were accepted for another concept's photo."""

    answering: str
    negatives: str
    """``all``, or the kind of pair, e.g. ``hard`` (same category) or ``easy``."""
    negatives_asked: int
    false_alarms: int
    with_colors: int
    """False alarms in which both descriptions name colours."""
    contradicted: int
    """Of these, how many share no colour: the answer went against the words."""
    mismatch_rate: float | None
    """``contradicted / with_colors``."""
    mismatch_rate_of_rejected: float | None
    """The same for negatives that were rightly rejected: what chance looks like."""
    items: tuple[str, ...]
    """Contradicted false alarms."""


class Hallucination(Record):
    """Everything about one speaker; ``hallucination.json``."""

    speaker: str
    claims: tuple[FalseClaims, ...]
    alarms: tuple[FalseAlarms, ...]


def analyse_hallucination(
    database: ArtifactRef,
    catalog: ArtifactRef,
    evaluations: list[ArtifactRef],
    reference: dict[str, list[str]] | None,
    output_dir: Path,
    listed: int,
    statistics: StatisticsConfig,
) -> JsonObject:
    """Find false claims in a speaker's descriptions.

    Args:
        database: Artifact of ``describe-concepts``.
        catalog: Artifact of ``build-catalog``; may hold ``facts.json``.
        evaluations: The speaker's evaluations; false alarms are taken from its recognition.
        reference: True attributes by concept id; ``None`` if there is no such list.
        output_dir: Receives ``hallucination.json``.
        listed: False claims, confusions and items that are listed.
        statistics: Intervals.

    Returns:
        The rates.

    Raises:
        EvaluationError: If the facts, or the reference, cover no description, or an evaluation is another speaker's.
    """
    loaded = load_record(database.file("database.json"), Database)
    facts = io.load_facts(catalog)
    claims = []
    if facts is not None:
        read = {e.concept: true_claims(e, io.facts_of(facts, e.reference)) for e in loaded.entries if e.description}
        claims.append(sum_up("truth", read, len(loaded.entries), listed, statistics, IDENTITY_KEYS))
    if reference is not None:
        described = [entry for entry in loaded.entries if entry.description and entry.concept in reference]
        if not described:
            raise EvaluationError(
                f"the list of true attributes covers none of the {len(loaded.entries)} described concepts, e.g. "
                f"{loaded.entries[0].concept!r}; it names {sorted(reference)[:3]}"
            )
        read = {entry.concept: listed_claims(entry, reference[entry.concept]) for entry in described}
        claims.append(sum_up("reference", read, len(loaded.entries), listed, statistics))
    found = Hallucination(
        speaker=loaded.speaker, claims=tuple(claims), alarms=tuple(_alarms(loaded, evaluations, listed))
    )
    (output_dir / FILE).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return {
        "speaker": loaded.speaker,
        "claims": {one.source: {metric.name: metric.value for metric in one.metrics} for one in claims},
        "mismatch_rate": {f"{one.answering}/{one.negatives}": one.mismatch_rate for one in found.alarms},
    }


def load_reference(config: HallucinationConfig) -> dict[str, list[str]] | None:
    """Read the list of true attributes that the settings name, if they do.

    Raises:
        EvaluationError: If it cannot be read or is of another form.
    """
    if config.reference is None:
        return None
    path = config.reference.expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read as a list of true attributes: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(value, list) and all(isinstance(word, str) for word in value) for value in content.values()
    ):
        raise EvaluationError(f'{path}: expected {{"concept id": ["attribute", …], …}}')
    return content


def true_claims(entry: DatabaseEntry, facts: Mapping[str, str]) -> list[Claim]:
    """Compare what a text of the pocket world claims with what is so; each claim once.

    Args:
        entry: A database's entry with a description.
        facts: What is true of the photo that it describes.
    """
    text = entry.description.detailed if entry.description else ""
    statements = dict.fromkeys(parse_text(text, facts["category"]).statements)
    return [
        Claim(concept=entry.concept, attribute=key, claimed=value, true=facts[key], is_false=facts[key] != value)
        for key, value in statements
    ]


def listed_claims(entry: DatabaseEntry, attributes: Sequence[str]) -> list[Claim]:
    """Compare the identity words of a text with a list of true attributes: a claim is true if one word is listed."""
    known = {word for attribute in attributes for word in words(attribute)}
    known |= colors(" ".join(attributes))
    text = entry.text
    claimed = dict.fromkeys(text[span.start : span.end].lower() for span in spans(text) if span.kind == "identity")
    return [
        Claim(
            concept=entry.concept,
            attribute="word",
            claimed=claim,
            true=", ".join(attributes),
            is_false=not ({*words(claim), *colors(claim)} & known),
        )
        for claim in claimed
    ]


def sum_up(
    source: str,
    claims: Mapping[str, Sequence[Claim]],
    entries: int,
    listed: int,
    statistics: StatisticsConfig,
    identity: Iterable[str] = ("word",),
) -> FalseClaims:
    """Turn claims into rates.

    Args:
        source: What they were compared with.
        claims: Claims by concept, for each text that was checked.
        entries: Texts that there are.
        listed: How many false claims and confusions are listed.
        statistics: Intervals.
        identity: Attributes that say what stays; the rates are about these.
    """
    lasting = set(identity)
    every = [claim for some in claims.values() for claim in some]
    false = [claim for claim in every if claim.is_false]
    by_text = [
        (concept, float(any(claim.is_false and claim.attribute in lasting for claim in some)))
        for concept, some in claims.items()
    ]
    measures: dict[str, Measured] = {
        "false_claim_rate": _rate([claim for claim in every if claim.attribute in lasting]),
        "hallucinated_rate": mean_measure(by_text),
    }
    present = [key for key in FACT_KEYS if any(claim.attribute == key for claim in every)]
    measures |= {f"false_{key}_rate": _rate([claim for claim in every if claim.attribute == key]) for key in present}
    counts = Counter((claim.attribute, claim.claimed, claim.true) for claim in false)
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    notes = {
        "false_claim_rate": "claims about permanent attributes that are false",
        "hallucinated_rate": "descriptions with at least one of them",
    }
    return FalseClaims(
        source=source,
        texts=len(claims),
        left_out=entries - len(claims),
        metrics=summarise(measures, statistics, notes),
        confusions=tuple(
            Confusion(attribute=key, claimed=claimed, true=true, count=count)
            for (key, claimed, true), count in ordered[:listed]
        ),
        false_claims=tuple(false[:listed]),
    )


def _rate(claims: Sequence[Claim]) -> Measured:
    """Share of false claims."""
    return formula_measure(
        [claim.concept for claim in claims], [(float(claim.is_false), 1.0) for claim in claims], first_by_second
    )


def _alarms(database: Database, refs: Sequence[ArtifactRef], listed: int) -> list[FalseAlarms]:
    """False alarms of the recognition among a speaker's evaluations, if it is there.

    Raises:
        EvaluationError: If an evaluation is another speaker's.
    """
    evaluations = load_evaluations(refs) if refs else []
    if wrong := [one for one in evaluations if one.result.speaker != database.speaker]:
        raise EvaluationError(
            f"the database is {database.speaker}'s, an evaluation is {wrong[0].result.speaker}'s; put them together "
            "by speaker"
        )
    texts = {entry.concept: entry.text for entry in database.entries}
    found = []
    for evaluation in evaluations:
        if evaluation.result.evaluation == "recognition":
            found += false_alarms(evaluation, texts, listed)
    return found


def false_alarms(evaluation: Evaluation, texts: Mapping[str, str], listed: int) -> list[FalseAlarms]:
    """Look at the negatives of a recognition: all of them, and each kind.

    Args:
        evaluation: A recognition; the tag ``described`` names the concept whose description was shown.
        texts: Description by concept.
        listed: Items that are listed.
    """
    proper = [p for p in evaluation.predictions if p.error is None and mode_of(p) in ("", "description")]
    asked = [p for p in proper if p.expected == 1 and "described" in p.tags]
    kinds = sorted({p.tags["negatives"] for p in asked if "negatives" in p.tags})
    groups = [("all", asked), *((kind, [p for p in asked if p.tags.get("negatives") == kind]) for kind in kinds)]
    return [_false_alarms(evaluation.result.answering, kind, some, texts, listed) for kind, some in groups]


def _false_alarms(
    answering: str, kind: str, asked: Sequence[Prediction], texts: Mapping[str, str], listed: int
) -> FalseAlarms:
    alarms = [p for p in asked if p.answered == 0]
    judged = [(p, bad) for p in alarms if (bad := _contradicts(p, texts)) is not None]
    rejected = [bad for p in asked if p.answered == 1 and (bad := _contradicts(p, texts)) is not None]
    contradicted = [p.item for p, bad in judged if bad]
    return FalseAlarms(
        answering=answering,
        negatives=kind,
        negatives_asked=len(asked),
        false_alarms=len(alarms),
        with_colors=len(judged),
        contradicted=len(contradicted),
        mismatch_rate=len(contradicted) / len(judged) if judged else None,
        mismatch_rate_of_rejected=sum(rejected) / len(rejected) if rejected else None,
        items=tuple(contradicted[:listed]),
    )


def _contradicts(prediction: Prediction, texts: Mapping[str, str]) -> bool | None:
    """Whether the description shown shares no colour with that of the photo's concept; ``None`` if one names none."""
    shown, own = (colors(texts.get(key, "")) for key in (prediction.tags["described"], prediction.concept))
    return not shown & own if shown and own else None
