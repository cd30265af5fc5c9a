"""Games: the reference's retrieval lists, ``[{"query_path", "ret_paths", "label", "category"}]``."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from lewis_core.data.exchange.paths import PathFinder
from lewis_core.data.tree import SetAside
from lewis_core.errors import DataError
from lewis_core.records import Catalog, Concept, Game, ImageRecord, JsonObject


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
