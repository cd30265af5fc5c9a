"""Photos, descriptions and the listener's answers, arranged as cards; and the failures worth looking at."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from lewis_core.descriptions.lexicon import spans
from lewis_core.evaluation.records import Prediction
from lewis_core.records import DatabaseEntry
from lewis_core.report.charts import speaker_style
from lewis_core.report.images import LARGE, MEDIUM, SMALL, PhotoAlbum
from lewis_core.report.load import ReportData, Speaker
from lewis_core.seeding import stable_rng

MOST_SHOWN = 4
"""Speakers on one card."""
YES, NO = 0, 1
"""Options of recognition."""


@dataclass(frozen=True)
class Telling:
    """What one speaker wrote about a photo, ready for the page."""

    speaker: str
    style: str
    coarse: Markup
    detailed: Markup
    thinking: str
    completion: str
    error: str


@dataclass(frozen=True)
class Answer:
    """The listener's answer to one candidate, after one speaker's description."""

    speaker: str
    style: str
    probability: float | None
    is_picked: bool


@dataclass(frozen=True)
class Candidate:
    """One photo the listener chose among."""

    letter: str
    path: str
    photo: str | None
    is_target: bool
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Outcome:
    """How one speaker's game ended: ``right``, ``wrong`` or ``failed``, and which candidate was picked."""

    verdict: str
    picked: str


@dataclass(frozen=True)
class Card:
    """One concept: the described photo, what speakers wrote, and one round of the game."""

    concept: str
    name: str
    category: str
    category_word: str
    path: str
    photo: str | None
    tellings: tuple[Telling, ...]
    candidates: tuple[Candidate, ...] = ()
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By speaker."""
    change: str = "same"
    """``better``, ``worse`` or ``same``: the second speaker's game against the first one's."""


@dataclass(frozen=True)
class FalsePositive:
    """A photo in which the answering model took another thing for the described one."""

    concept: str
    photo: str | None
    path: str
    described: str
    described_photo: str | None
    text: Markup
    probability: float | None
    kind: str


@dataclass(frozen=True)
class Failures:
    """Wins and losses of a speaker: the clearest of each kind, and how many there are."""

    speaker: str = ""
    style: str = ""

    misses: tuple[Card, ...] = ()
    num_misses: int = 0
    num_rounds: int = 0
    regressions: tuple[Card, ...] = ()
    num_regressions: int = 0
    gains: tuple[Card, ...] = ()
    num_gains: int = 0
    false_positives: tuple[FalsePositive, ...] = ()
    num_false_positives: int = 0
    num_negatives: int = 0


def highlight(text: str) -> Markup:
    """Escape a text and mark the words that tell identity, state and location; neighbours of a kind share a mark."""
    merged: list[tuple[int, int, str]] = []
    for start, end, kind in spans(text):
        if merged and merged[-1][2] == kind and not text[merged[-1][1] : start].strip():
            merged[-1] = (merged[-1][0], end, kind)
        else:
            merged.append((start, end, kind))
    parts, at = [], 0
    for start, end, name in merged:
        parts += [escape(text[at:start]), Markup('<mark class="{}">{}</mark>').format(name, text[start:end])]
        at = end
    return Markup("").join([*parts, escape(text[at:])])


def letter(index: int) -> str:
    """Name a candidate by its position: A to Z, then numbers."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


class GalleryBuilder:
    """Makes cards from a report's data.

    Args:
        data: All inputs.
        album: Embeds photos.
        answering: Whose game is shown, e.g. ``listener``; ``None`` if there is no game.
        shown: Speakers of each card: the baseline, the one it is about, others; without, those of the report.
    """

    def __init__(
        self, data: ReportData, album: PhotoAlbum, answering: str | None, shown: Sequence[Speaker] | None = None
    ) -> None:
        self._data, self._album = data, album
        self._shown = tuple(data.speakers[:MOST_SHOWN] if shown is None else shown)
        self._main = self._shown[min(1, len(self._shown) - 1)] if self._shown else None
        self._games = {speaker.name: self._predictions(speaker, answering) for speaker in self._shown}

    def gallery(self, num_concepts: int, seed: int) -> tuple[Card, ...]:
        """Choose concepts at random, the same number of each category as far as possible, and show their first round.

        Args:
            num_concepts: How many, at most.
            seed: Of the choice; results play no part in it.
        """
        main = self._main
        if main is None:
            return ()
        by_category: dict[str, list[str]] = {}
        for concept in sorted(main.entries):
            by_category.setdefault(main.entries[concept].category, []).append(concept)
        queues = []
        for category, concepts in sorted(by_category.items()):
            order = stable_rng(seed, "gallery", category).permutation(len(concepts))
            queues.append([concepts[index] for index in order])
        deepest = max((len(queue) for queue in queues), default=0)
        chosen = [queue[turn] for turn in range(deepest) for queue in queues if turn < len(queue)][:num_concepts]
        return tuple(self.card(concept) for concept in sorted(chosen))

    def card(self, concept: str, item: str | None = None) -> Card:
        """Make the card of a concept, with the given round or its first."""
        entry = next(speaker.entries[concept] for speaker in reversed(self._shown) if concept in speaker.entries)
        played = self._round(concept, item)
        return Card(
            concept=concept,
            name=concept.removeprefix(f"{entry.category}/"),
            category=entry.category,
            category_word=entry.category_word,
            path=entry.reference.path,
            photo=self._album.embed(entry.reference.path, LARGE),
            tellings=tuple(
                _tell(speaker, speaker.entries[concept]) for speaker in self._shown if concept in speaker.entries
            ),
            candidates=self._candidates(played),
            outcomes={speaker: _outcome(prediction) for speaker, prediction in played.items()},
            change=self._change(played),
        )

    def failures(self, num_shown: int) -> Failures:
        """Collect the main speaker's misses, its losses against the baseline, and wrong recognitions."""
        main = self._main
        if main is None:
            return Failures()
        asked = [p for p in self._games.get(main.name, {}).values() if p.error is None and p.concept in main.entries]
        missed = sorted((p for p in asked if not p.is_correct), key=lambda p: (-_overconfidence(p), p.item))
        changes = {p.item: self._change(self._round(p.concept, p.item)) for p in asked}
        won = sorted((p for p in asked if changes[p.item] == "better"), key=lambda p: (-_lead(p), p.item))
        lost = [p for p in missed if changes[p.item] == "worse"]
        others = [p for p in missed if changes[p.item] != "worse"]
        confused, num_confused, num_negatives = self._false_positives(main, num_shown)
        return Failures(
            speaker=main.name,
            style=speaker_style(main.slot),
            misses=tuple(self.card(p.concept, p.item) for p in _one_per_concept(others)[:num_shown]),
            num_misses=len(missed),
            num_rounds=len(asked),
            regressions=tuple(self.card(p.concept, p.item) for p in _one_per_concept(lost)[:num_shown]),
            num_regressions=len(lost),
            gains=tuple(self.card(p.concept, p.item) for p in _one_per_concept(won)[:num_shown]),
            num_gains=len(won),
            false_positives=confused,
            num_false_positives=num_confused,
            num_negatives=num_negatives,
        )

    def _predictions(self, speaker: Speaker, answering: str | None) -> dict[str, Prediction]:
        found = self._data.find("game", speaker.name, answering) if answering is not None else None
        return {prediction.item: prediction for prediction in found.predictions} if found else {}

    def _round(self, concept: str, item: str | None) -> dict[str, Prediction]:
        """The same round as each speaker played it, by speaker."""
        if item is None:
            played = (p for games in reversed(self._games.values()) for p in games.values() if p.concept == concept)
            item = min((p.item for p in played), default=None)
        return {name: games[item] for name, games in self._games.items() if item in games}

    def _candidates(self, played: dict[str, Prediction]) -> tuple[Candidate, ...]:
        if not played:
            return ()
        first = next(iter(played.values()))
        same = {name: p for name, p in played.items() if p.options == first.options}
        return tuple(
            Candidate(
                letter=letter(index),
                path=path,
                photo=self._album.embed(path, SMALL),
                is_target=index == first.expected,
                answers=tuple(_answer(s, same[s.name], index) for s in self._shown if s.name in same),
            )
            for index, path in enumerate(first.options)
        )

    def _change(self, played: dict[str, Prediction]) -> str:
        names = [speaker.name for speaker in self._shown[:2]]
        if len(names) < 2 or not all(name in played for name in names):
            return "same"
        before, after = (played[name] for name in names)
        if before.error or after.error or before.is_correct == after.is_correct:
            return "same"
        return "better" if after.is_correct else "worse"

    def _false_positives(self, main: Speaker, num_shown: int) -> tuple[tuple[FalsePositive, ...], int, int]:
        found = self._data.find("recognition", main.name)
        negatives = [
            p
            for p in (found.predictions if found else ())
            if p.expected == NO and p.error is None and p.tags.get("mode") == "description"
        ]
        wrong = sorted((p for p in negatives if p.answered == YES), key=lambda p: (-_said(p), p.item))
        worst: dict[str, Prediction] = {}  # of each described thing
        for prediction in wrong:
            worst.setdefault(_described(prediction), prediction)
        shown = [p for described, p in worst.items() if described in main.entries][:num_shown]
        return tuple(self._false_positive(main, p) for p in shown), len(wrong), len(negatives)

    def _false_positive(self, main: Speaker, prediction: Prediction) -> FalsePositive:
        entry = main.entries[_described(prediction)]
        image = prediction.image or ""
        return FalsePositive(
            concept=prediction.concept,
            photo=self._album.embed(image, MEDIUM) if image else None,
            path=image,
            described=entry.concept,
            described_photo=self._album.embed(entry.reference.path, MEDIUM),
            text=highlight(entry.text),
            probability=prediction.probabilities[0] if prediction.probabilities else None,
            kind=prediction.tags.get("negatives", ""),
        )


def _described(prediction: Prediction) -> str:
    """Concept whose description was put to a recognition item."""
    return prediction.tags.get("described", "")


def _tell(speaker: Speaker, entry: DatabaseEntry) -> Telling:
    description = entry.description
    return Telling(
        speaker=speaker.name,
        style=speaker_style(speaker.slot),
        coarse=highlight(description.coarse) if description else Markup(""),
        detailed=highlight(description.detailed) if description else Markup(""),
        thinking=description.thinking if description else "",
        completion=entry.completion,
        error=(entry.error or "it does not follow the format") if description is None else "",
    )


def _answer(speaker: Speaker, prediction: Prediction, index: int) -> Answer:
    probability = prediction.probabilities[index] if index < len(prediction.probabilities) else None
    return Answer(speaker.name, speaker_style(speaker.slot), probability, prediction.answered == index)


def _outcome(prediction: Prediction) -> Outcome:
    verdict = "failed" if prediction.error else "right" if prediction.is_correct else "wrong"
    picked = "" if prediction.answered is None else letter(prediction.answered)
    return Outcome(verdict, picked)


def _one_per_concept(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The first prediction of each concept, in order."""
    first: dict[str, Prediction] = {}
    for prediction in predictions:
        first.setdefault(prediction.concept, prediction)
    return list(first.values())


def _overconfidence(prediction: Prediction) -> float:
    """How much more the listener believed in its pick than in the target."""
    probabilities: Sequence[float] = prediction.probabilities
    if prediction.answered is None or prediction.expected is None or len(probabilities) < len(prediction.options):
        return 0.0
    return probabilities[prediction.answered] - probabilities[prediction.expected]


def _lead(prediction: Prediction) -> float:
    """How much more the listener believed in the target than in any other candidate."""
    if prediction.expected is None or len(prediction.probabilities) < len(prediction.options):
        return 0.0
    others = [p for index, p in enumerate(prediction.probabilities) if index != prediction.expected]
    return prediction.probabilities[prediction.expected] - max(others)


def _said(prediction: Prediction) -> float:
    return prediction.probabilities[0] if prediction.probabilities else 0.0
