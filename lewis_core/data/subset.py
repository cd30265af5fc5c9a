"""k training concepts whose photos add up as closely as possible to a wanted number, from every category.

The reference draws 20,000 random subsets and improves the best by swaps. Here all sums that j of the first i concepts
can reach are kept as the bits of one integer, so the closest one is found exactly; the subset that reaches it is drawn
by seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lewis_core.config.data import SubsetConfig
from lewis_core.errors import DataError
from lewis_core.records import Concept
from lewis_core.seeding import stable_rng

_MAX_BYTES = 1 << 30
"""Memory for the table of sums."""
Sums = list[int]
"""Bit s of entry j: j concepts can have s photos."""


class _Before(NamedTuple):
    """What was reachable before a concept was looked at."""

    start: Sums
    """Before its category."""
    begun: Sums
    """With at least one concept of its category."""
    is_first: bool
    """It is the first of its category."""


@dataclass(frozen=True)
class _State:
    """A place in the table: how many concepts and photos, and whether the current category has one."""

    chosen: int
    photos: int
    begun: bool

    def take(self, concept: Concept, begun: bool) -> "_State":
        """The place before a concept was taken."""
        return _State(self.chosen - 1, self.photos - len(concept.train), begun)


def choose_subset(concepts: Sequence[Concept], config: SubsetConfig, seed: int) -> tuple[Concept, ...]:
    """Choose concepts to train on.

    Args:
        concepts: What is chosen from.
        config: How many concepts, how many training photos, and whether each category has to be there.
        seed: Seed of the choice among subsets that are equally close.

    Returns:
        ``config.num_concepts`` concepts, sorted by id. Of two sums that are equally close the smaller is taken.

    Raises:
        DataError: If there are too few concepts, more categories than concepts to choose, or too many sums.
    """
    _check(concepts, config)
    rng = stable_rng(seed, "subset", *(f"{concept.id}:{len(concept.train)}" for concept in concepts))
    order = rng.permutation(len(concepts))
    ordered = sorted((concepts[index] for index in order), key=lambda concept: concept.category)
    befores, final = _fill_table(ordered, config)
    reachable = final[config.num_concepts]
    sums = [photos for photos in range(reachable.bit_length()) if reachable >> photos & 1]
    best = min(sums, key=lambda photos: (abs(photos - config.train_images), photos))
    chosen = _walk_back(ordered, befores, config, best, rng)
    return tuple(sorted(chosen, key=lambda concept: concept.id))


def _check(concepts: Sequence[Concept], config: SubsetConfig) -> None:
    """Refuse what cannot be solved.

    Raises:
        DataError: See :func:`choose_subset`.
    """
    wanted, categories = config.num_concepts, {concept.category for concept in concepts}
    if wanted > len(concepts):
        raise DataError(f"splits.subset.num_concepts = {wanted}, but there are {len(concepts)} training concepts")
    if config.cover_categories and wanted < len(categories):
        raise DataError(
            f"splits.subset.num_concepts = {wanted} cannot cover {len(categories)} categories; choose more, or set "
            "splits.subset.cover_categories = false"
        )
    photos = sum(len(concept.train) for concept in concepts)
    if 2 * len(concepts) * wanted * photos // 8 > _MAX_BYTES:
        raise DataError(
            f"the exact search for {wanted} of {len(concepts)} concepts with {photos} photos needs too much memory; "
            "name the concepts with splits.training"
        )


def _fill_table(ordered: Sequence[Concept], config: SubsetConfig) -> tuple[list[_Before], Sums]:
    """Reachable sums before each concept, and in the end."""
    empty = [0] * (config.num_concepts + 1)
    final, start, begun = [1, *empty[1:]], empty, empty
    befores: list[_Before] = []
    for index, concept in enumerate(ordered):
        is_first = index == 0 or ordered[index - 1].category != concept.category
        if is_first:
            start, begun = final, empty
        befores.append(_Before(start, begun, is_first))
        count = len(concept.train)
        begun = [
            begun[j] | ((begun[j - 1] | start[j - 1]) << count if j else 0) for j in range(config.num_concepts + 1)
        ]
        final = begun if config.cover_categories else [a | b for a, b in zip(start, begun, strict=True)]
    return befores, final


def _walk_back(
    ordered: Sequence[Concept], befores: Sequence[_Before], config: SubsetConfig, best: int, rng: np.random.Generator
) -> list[Concept]:
    """Draw one subset that reaches a sum, from the last concept to the first."""
    chosen: list[Concept] = []
    state = _State(config.num_concepts, best, begun=True)
    for index in reversed(range(len(ordered))):
        concept, before = ordered[index], befores[index]
        is_last = index + 1 == len(ordered) or befores[index + 1].is_first
        ways = []
        for begun in ([True] if config.cover_categories else [True, False]) if is_last else [state.begun]:
            ways.append((False, _State(state.chosen, state.photos, begun)))
            ways += [(True, state.take(concept, before_it)) for before_it in (True, False) if begun]
        possible = [(taken, way) for taken, way in ways if _is_reachable(way, before)]
        odds = state.chosen / (index + 1)  # as if all subsets were equally good
        weights = np.array([odds if taken else 1 - odds for taken, _ in possible]) + 1e-12
        taken, state = possible[int(rng.choice(len(possible), p=weights / weights.sum()))]
        if taken:
            chosen.append(concept)
    return chosen


def _is_reachable(state: _State, before: _Before) -> bool:
    if state.chosen < 0 or state.photos < 0:
        return False
    return bool((before.begun if state.begun else before.start)[state.chosen] >> state.photos & 1)
