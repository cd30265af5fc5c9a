"""Games from candidates: one target, K - 1 distractors, everything seeded."""

from collections import Counter
from pathlib import Path

import pytest

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.data import GamesConfig
from lewis_core.data.games import build_games, make_game, make_games
from lewis_core.errors import DataError
from lewis_core.records import Game, ImageRecord, load_jsonl, save_jsonl
from lewis_core.retrieval.mining import Candidate, CandidateRow


def picture(name: str) -> ImageRecord:
    return ImageRecord(path=f"{name}.jpg", sha256=name, width=1, height=1)


def make_row(
    query: str = "a0", concept: str = "a", pool: int = 4, positives: tuple[str, ...] = ("a1", "a2")
) -> CandidateRow:
    views = [Candidate(image=picture(name), concept=f"bag/{concept}", similarity=0.5) for name in positives]
    others = [Candidate(image=picture(f"x{i}"), concept=f"bag/x{i}", similarity=0.4) for i in range(pool)]
    return CandidateRow(
        query=picture(query),
        concept=f"bag/{concept}",
        category="bag",
        category_word="handbag",
        distractors=tuple(others),
        positives=tuple(views),
        degenerate=None if views else "no second view",
    )


def rows_of_concept(concept: str, photos: int) -> list[CandidateRow]:
    names = [f"{concept}{index}" for index in range(photos)]
    return [make_row(name, concept, positives=tuple(n for n in names if n != name)) for name in names]


def test_a_game_has_one_target_and_different_distractors() -> None:
    game = make_game(make_row(), 7, 0, GamesConfig(num_candidates=3))
    assert game.id == "bag/a:7"
    assert game.category_word == "handbag"
    assert game.query.sha256 == "a0"
    assert game.candidates[game.target_index].sha256 == "a1"
    assert len(set(game.candidate_concepts)) == 3


def test_repetitions_take_the_next_positive_and_other_distractors() -> None:
    config = GamesConfig(num_candidates=3)
    games = [make_game(make_row(pool=8), 0, repetition, config) for repetition in range(6)]
    assert [game.candidates[game.target_index].sha256 for game in games] == ["a1", "a2"] * 3
    assert len({frozenset(game.candidate_concepts) for game in games}) > 3


def test_one_game_per_photo_by_default() -> None:
    rows = [*rows_of_concept("b", 2), *rows_of_concept("a", 3)]
    games = list(make_games(rows, GamesConfig()))
    assert [game.id for game in games] == ["bag/a:0", "bag/a:1", "bag/a:2", "bag/b:0", "bag/b:1"]
    assert {game.query.sha256 for game in games} == {"a0", "a1", "a2", "b0", "b1"}


@pytest.mark.parametrize(
    ("asked", "times"),
    [
        pytest.param(2, {1: 2}, id="fewer-than-photos-are-different-photos"),
        pytest.param(3, {1: 3}, id="as-many"),
        pytest.param(7, {2: 2, 3: 1}, id="more-repeat-evenly"),
    ],
)
def test_games_per_concept(asked: int, times: dict[int, int]) -> None:
    games = list(make_games(rows_of_concept("a", 3), GamesConfig(games_per_concept=asked)))
    assert Counter(Counter(game.query.sha256 for game in games).values()) == times


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [*rows_of_concept("a", 3), *rows_of_concept("b", 3)]
    config = GamesConfig(games_per_concept=5)
    assert list(make_games(rows, config)) == list(make_games(reversed(rows), config))
    assert list(make_games(rows, config)) != list(make_games(rows, GamesConfig(games_per_concept=5, seed=1)))


def test_positions_are_balanced() -> None:
    games = make_games(rows_of_concept("a", 3), GamesConfig(num_candidates=4, games_per_concept=400))
    counts = Counter(game.target_index for game in games)
    # 400 games, expected 100 at each of 4 positions, standard deviation √(400 · ¼ · ¾) = 8.7: four of them is 35
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(abs(count - 100) < 35 for count in counts.values())


def publish(root: Path, rows: list[CandidateRow], key: str = "k") -> ArtifactRef:
    store = ArtifactStore(root)
    with store.building("mine-distractors", key) as folder:
        save_jsonl(folder / "candidates.jsonl", rows)
        return store.publish(folder, "mine-distractors", key, {}, "", {}, {})


def test_the_summary_counts(tmp_path: Path) -> None:
    few = make_row("z0", "z", pool=1, positives=("z1",))
    single = make_row("y0", "y", positives=())
    refs = [publish(tmp_path, rows_of_concept("a", 6), "1"), publish(tmp_path, [few, single], "2")]
    config = GamesConfig(num_candidates=3, max_degenerate_frac=0.25)
    summary = build_games([*refs, publish(tmp_path, [], "3")], tmp_path, config)
    games = load_jsonl(tmp_path / "games.jsonl", Game)
    positions = Counter(game.target_index for game in games)
    assert summary == {
        "games": 6, "concepts": 1, "concepts_without_game": ["bag/y", "bag/z"], "queries": 8, "degenerate_queries": 2,
        "degenerate_reasons": {"fewer than 2 distractors": 1, "no second view": 1},
        "target_positions": [positions[0], positions[1], positions[2]],
    }  # fmt: skip


def test_too_many_degenerate_queries_stop_the_run(tmp_path: Path) -> None:
    rows = [*rows_of_concept("a", 3), make_row("y0", "y", positives=())]
    ref = publish(tmp_path, rows)
    assert build_games([ref], tmp_path, GamesConfig(max_degenerate_frac=0.25))["games"] == 3
    with pytest.raises(
        DataError, match=r"1 of 4 query photos are without a game \(no second view: 1\), e\.g\. y0\.jpg"
    ):
        build_games([ref], tmp_path, GamesConfig(max_degenerate_frac=0.24))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param([], "no query photos", id="nothing"),
        pytest.param([make_row(pool=1)], "fewer than 2 distractors: 1", id="no-game-at-all"),
        pytest.param([make_row(pool=1)], r"a game needs 3 training concepts of its category", id="what-a-game-needs"),
    ],
)
def test_no_game_is_an_error_whatever_the_limit(tmp_path: Path, rows: list[CandidateRow], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_games([publish(tmp_path, rows)], tmp_path, GamesConfig(max_degenerate_frac=1))


def test_lines_of_a_concept_in_two_places_are_an_error(tmp_path: Path) -> None:
    refs = [publish(tmp_path, [make_row()], "1"), publish(tmp_path, [make_row()], "2")]
    with pytest.raises(DataError, match="are not together, or in two artifacts"):
        build_games(refs, tmp_path, GamesConfig())
