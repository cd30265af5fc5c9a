"""Games: the reference's retrieval lists, ``[{"query_path", "ret_paths", "label", "category"}]``."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.data import GamesConfig
from lewis_core.data.exchange.paths import PathFinder
from lewis_core.data.json_files import load_json
from lewis_core.data.tree import SetAside
from lewis_core.errors import CatalogError, DataError
from lewis_core.records import Catalog, Concept, Game, ImageRecord, JsonObject, Splits, load_record, save_jsonl


def import_games(
    catalog: ArtifactRef,
    splits: ArtifactRef,
    fingerprint: str,
    output_dir: Path,
    config: GamesConfig,
    data_root: Path,
) -> JsonObject:
    """Write ``games.jsonl`` from a retrieval list of the reference, in place of games of our own.

    Writes ``refused.jsonl`` as well: the rows that cannot be played, and those that show held-out concepts.

    Args:
        catalog: ``build-catalog`` artifact.
        splits: ``split-concepts`` artifact; nothing but its training concepts is shown.
        fingerprint: Digest of the list; only identifies the stage.
        output_dir: Folder to write to.
        config: Name of the list, and how many rows may be refused.
        data_root: Folder that holds it.

    Returns:
        Counts, and how often the target stands at each position.

    Raises:
        CatalogError: If the file is not a list.
        DataError: If no row can be played, or more are refused than the settings allow.
    """
    del fingerprint
    path = data_root / (config.retrieval_list or "")
    rows = load_json(path)
    if not isinstance(rows, list):
        raise CatalogError(f"{path}: expected a list of games, found a {type(rows).__name__}")
    training = set(load_record(splits.file("splits.json"), Splits).training)
    found, refused = import_retrieval(rows, load_record(catalog.file("catalog.json"), Catalog))
    games = []
    for game in found:
        if training.issuperset(game.candidate_concepts):
            games.append(game)
        else:
            refused.append(SetAside(path=game.id, reason="shows concepts that are not trained on"))
    if not games or len(refused) > config.max_degenerate_frac * len(rows):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in _count_reasons(refused).most_common(5))
        raise DataError(
            f"{len(refused)} of {len(rows)} games in {path} cannot be played ({reasons}); games.max_degenerate_frac = "
            f"{config.max_degenerate_frac:g} allows fewer. Take the split over as well: "
            "python -m lewis_core.data.exchange splits-from"
        )
    save_jsonl(output_dir / "games.jsonl", games)
    save_jsonl(output_dir / "refused.jsonl", refused)
    positions = Counter(game.target_index for game in games)
    return {
        "games": len(games),
        "concepts": len({game.concept for game in games}),
        "queries": len(rows),
        "degenerate_queries": len(refused),
        "degenerate_reasons": dict(sorted(_count_reasons(refused).items())),
        "target_positions": [positions[index] for index in range(max(positions) + 1)],
    }


def _count_reasons(refused: Iterable[SetAside]) -> Counter[str]:
    """Reasons without what differs from row to row."""
    return Counter(re.sub(r"^game \S+: |\S+/\S+", "", entry.reason).strip() for entry in refused)


def export_retrieval(games: Iterable[Game], prefix: str = "") -> list[JsonObject]:
    """Write games as the reference's retrieval list, in their order.

    Args:
        games: The games.
        prefix: Put before every path.
    """
    return [
        {
            "query_path": prefix + game.query.path,
            "ret_paths": [prefix + image.path for image in game.candidates],
            "label": game.target_index,
            "category": game.category,
        }
        for game in games
    ]


def import_retrieval(rows: Sequence[Any], catalog: Catalog) -> tuple[list[Game], list[SetAside]]:
    """Read a retrieval list as games.

    Args:
        rows: Content of the file. Descriptions in it (``ret_descs``) are those of another speaker and are not used.
        catalog: The photos that it is about; who is on them comes from here, never from the path.

    Returns:
        Games in the order of the rows, with ids ``<concept>:<n>``; and the rows that cannot be played, named
        ``row <n>`` (from 0) with the reason: the reference writes rows without a second view, with a single candidate,
        and with the query as its own target.
    """
    owners = {image.path: (concept, image) for concept in catalog.concepts for image in (*concept.train, *concept.test)}
    finder, counts = PathFinder(owners), Counter[str]()
    games: list[Game] = []
    refused: list[SetAside] = []
    for number, row in enumerate(rows):
        try:
            query, candidates, label = _read_row(row, finder)
            concept = owners[query][0]
            games.append(_make_game(f"{concept.id}:{counts[concept.id]}", query, candidates, label, owners))
            counts[concept.id] += 1
        except ValidationError as error:
            reason = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
            refused.append(SetAside(path=f"row {number}", reason=reason))
        except DataError as error:
            refused.append(SetAside(path=f"row {number}", reason=str(error)))
    return games, refused


def _read_row(row: Any, finder: PathFinder) -> tuple[str, list[str], int]:
    """Paths of query and candidates, and the target's position.

    Raises:
        DataError: If a key is missing or of another kind, or a path is not in the catalog.
    """
    if not isinstance(row, dict):
        raise DataError(f"expected an object, found {row!r:.60}")
    query, paths, label = (row.get(key) for key in ("query_path", "ret_paths", "label"))
    if not isinstance(query, str):
        raise DataError(f"key 'query_path': expected a path, found {query!r:.60}")
    if not isinstance(paths, list):
        raise DataError(f"key 'ret_paths': expected a list of paths, found {paths!r:.60}")
    if None in paths:
        raise DataError(f"key 'ret_paths': null at position {paths.index(None)}: the concept has no second view")
    if not all(isinstance(path, str) for path in paths):
        raise DataError(f"key 'ret_paths': expected paths, found {paths!r:.60}")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(paths):
        raise DataError(f"key 'label': expected a position from 0 to {len(paths) - 1}, found {label!r:.60}")
    return finder.find(query), [finder.find(path) for path in paths], label


def _make_game(
    game_id: str,
    query: str,
    candidates: Sequence[str],
    label: int,
    owners: dict[str, tuple[Concept, ImageRecord]],
) -> Game:
    concept, image = owners[query]
    return Game(
        id=game_id,
        concept=concept.id,
        category=concept.category,
        category_word=concept.category_word,
        query=image,
        candidates=tuple(owners[path][1] for path in candidates),
        candidate_concepts=tuple(owners[path][0].id for path in candidates),
        target_index=label,
    )
