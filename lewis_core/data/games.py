"""Candidates → games: which photos the listener sees, in which order, and which one is the target."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.data import GamesConfig
from lewis_core.errors import DataError
from lewis_core.records import Game, JsonObject, load_jsonl, save_jsonl
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
    rows = [row for ref in candidates for row in load_jsonl(ref.file("candidates.jsonl"), CandidateRow)]
    problems = {index: problem for index, row in enumerate(rows) if (problem := find_problem(row, config))}
    _check_share(rows, problems, config)
    playable = [row for index, row in enumerate(rows) if index not in problems]
    games = list(make_games(playable, config))
    save_jsonl(output_dir / "games.jsonl", games)
    positions = Counter(game.target_index for game in games)
    return {
        "games": len(games),
        "concepts": len({game.concept for game in games}),
        "concepts_without_game": sorted({row.concept for row in rows} - {game.concept for game in games}),
        "queries": len(rows),
        "degenerate_queries": len(problems),
        "degenerate_reasons": dict(sorted(Counter(problems.values()).items())),
        "target_positions": [positions[index] for index in range(config.num_candidates)],
    }


def find_problem(row: CandidateRow, config: GamesConfig) -> str | None:
    """Say why a query cannot be played, or ``None`` when it can."""
    if row.degenerate:
        return row.degenerate
    if len(row.distractors) < config.num_candidates - 1:
        return f"fewer than {config.num_candidates - 1} distractors"
    return None


def _check_share(rows: Sequence[CandidateRow], problems: dict[int, str], config: GamesConfig) -> None:
    """Stop when too many queries are without a game.

    Raises:
        DataError: If so, or if there are no queries at all; says why they are.
    """
    if not rows:
        raise DataError("no query photos: no category has training concepts; see splits.min_concepts")
    share = len(problems) / len(rows)
    if share > config.max_degenerate_frac or len(problems) == len(rows):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in Counter(problems.values()).most_common())
        first = rows[min(problems)]
        raise DataError(
            f"{len(problems)} of {len(rows)} query photos are without a game ({reasons}), e.g. {first.query.path}; "
            f"games.max_degenerate_frac = {config.max_degenerate_frac:g} allows fewer. Add photos or concepts, lower "
            f"games.num_candidates = {config.num_candidates}, or raise mining.pool"
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
