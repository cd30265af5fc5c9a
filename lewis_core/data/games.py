"""Candidates → games: which photos the listener sees, in which order, and which one is the target."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.data import GamesConfig
from lewis_core.errors import DataError
from lewis_core.records import Game, JsonObject, iter_jsonl, save_jsonl
from lewis_core.retrieval.mining import CandidateRow
from lewis_core.seeding import stable_rng


def build_games(candidates: list[ArtifactRef], output_dir: Path, config: GamesConfig) -> JsonObject:
    """Write ``games.jsonl``, sorted by concept.

    Args:
        candidates: ``mine-distractors`` artifacts, one per category.
        output_dir: Folder to write to.
        config: Width, games per concept, seed.

    Returns:
        Counts, and how often the target stands at each position.

    Raises:
        DataError: If there is no game, or too many queries are without one.
    """
    games: list[Game] = []
    problems, num_queries, concepts, example = Counter[str](), 0, set[str](), ""
    for ref in candidates:
        rows = iter_jsonl(ref.file("candidates.jsonl"), CandidateRow)
        for concept, found in groupby(rows, key=lambda row: row.concept):  # one concept's lines in memory at a time
            if concept in concepts:
                raise DataError(f"{ref.path}: the lines of {concept} are not together, or in two artifacts")
            queries = list(found)
            broken = [(row, problem) for row in queries if (problem := find_problem(row, config))]
            problems.update(problem for _, problem in broken)
            example = example or next((row.query.path for row, _ in broken), "")
            num_queries += len(queries)
            concepts.add(concept)
            games += make_games((row for row in queries if not find_problem(row, config)), config)
    _check_share(num_queries, problems, example, config)
    games.sort(key=lambda game: game.concept)
    save_jsonl(output_dir / "games.jsonl", games)
    positions = Counter(game.target_index for game in games)
    return {
        "games": len(games),
        "concepts": len({game.concept for game in games}),
        "concepts_without_game": sorted(concepts - {game.concept for game in games}),
        "queries": num_queries,
        "degenerate_queries": problems.total(),
        "degenerate_reasons": dict(sorted(problems.items())),
        "target_positions": [positions[index] for index in range(config.num_candidates)],
    }


def find_problem(row: CandidateRow, config: GamesConfig) -> str | None:
    """Say why a query cannot be played, or ``None`` when it can."""
    if row.degenerate:
        return row.degenerate
    if len(row.distractors) < config.num_candidates - 1:
        return f"fewer than {config.num_candidates - 1} distractors"
    return None


def _check_share(num_queries: int, problems: Counter[str], example: str, config: GamesConfig) -> None:
    """Stop when too many queries are without a game.

    Raises:
        DataError: If so, or if there are no queries at all; says why they are.
    """
    if not num_queries:
        raise DataError("no query photos: no category has training concepts; see splits.min_concepts")
    bad = problems.total()
    if bad > config.max_degenerate_frac * num_queries or bad == num_queries:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in problems.most_common())
        raise DataError(
            f"{bad} of {num_queries} query photos are without a game ({reasons}), e.g. {example}; "
            f"games.max_degenerate_frac = {config.max_degenerate_frac:g} allows fewer. Add photos or concepts (a game "
            f"needs {config.num_candidates} training concepts of its category, two photos of each), lower "
            f"games.num_candidates = {config.num_candidates}, or raise splits.concept_frac or mining.pool"
        )


def make_games(rows: Iterable[CandidateRow], config: GamesConfig) -> Iterable[Game]:
    """Make every concept's games from its playable queries.

    Args:
        rows: Playable queries, in any order.
        config: Width, games per concept, seed.

    Yields:
        Games, sorted by concept id and number.
    """
    by_concept: dict[str, list[CandidateRow]] = defaultdict(list)
    for row in rows:
        by_concept[row.concept].append(row)
    for concept, queries in sorted(by_concept.items()):
        ordered = sorted(queries, key=lambda row: (row.query.sha256, row.query.path))
        order = stable_rng(config.seed, "queries", concept).permutation(len(ordered))
        for number in range(config.games_per_concept or len(ordered)):
            repetition, position = divmod(number, len(ordered))
            yield make_game(ordered[order[position]], number, repetition, config)


def make_game(row: CandidateRow, number: int, repetition: int, config: GamesConfig) -> Game:
    """Make one game.

    Args:
        row: A query with at least ``num_candidates - 1`` distractors and one positive.
        number: Number of the game within its concept; part of its id.
        repetition: How often the query was used before; later games take the next positive and other distractors.
        config: Width and seed.

    Returns:
        The game; its candidates are in random order.
    """
    rng = stable_rng(config.seed, "game", row.concept, row.query.sha256, repetition)
    drawn = rng.choice(len(row.distractors), size=config.num_candidates - 1, replace=False)
    target = row.positives[repetition % len(row.positives)]
    candidates = [target, *(row.distractors[index] for index in drawn)]
    order = [int(index) for index in rng.permutation(len(candidates))]
    return Game(
        id=f"{row.concept}:{number}",
        concept=row.concept,
        category=row.category,
        category_word=row.category_word,
        query=row.query,
        candidates=tuple(candidates[index].image for index in order),
        candidate_concepts=tuple(candidates[index].concept for index in order),
        target_index=order.index(0),
    )
