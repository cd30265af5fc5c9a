"""Games → training rows: what the speaker is asked about one photo, what the listener is asked about two."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lewis_core.config.data import DatasetConfig
from lewis_core.data.images import read_image_bytes
from lewis_core.errors import ConfigError
from lewis_core.prompts import PromptSet
from lewis_core.prompts.pairs import pair_prompt
from lewis_core.records import Game, ImageRecord
from lewis_core.seeding import stable_rng

if TYPE_CHECKING:
    from datasets import Features

SPEAKER_COLUMNS = {
    "prompt": "conversation that asks the speaker for a description; the query photo is added by the trainer",
    "query": "the photo that the speaker sees",
    "candidates": "paths of the photos that the listener sees, in order",
    "target_index": "position of the target among the candidates, from 0",
    "category_word": "word for the kind of thing, used in the listener's prompt",
    "concept": "id of the thing, `category/name`; never shown to a model",
    "game_id": "id of the game, `concept:number`",
}
LISTENER_COLUMNS = {
    "prompt": "conversation with places for two photos that asks whether they show the same thing",
    "photos": "the two photos, in order",
    "answer": "`yes` or `no`",
    "kind": "`same`, `look-alike`, `other category`, or `negative`: an image of none of the things",
    "category_word": "word for the kind of thing in the first photo",
    "concept": "id of the thing in the first photo, `category/name`; never shown to a model",
    "other_concept": "id of the thing in the second photo; empty for an image of none of the things",
    "game_id": "id of the game that the pair was drawn from",
}
COLUMNS = {"speaker": SPEAKER_COLUMNS, "listener": LISTENER_COLUMNS}
"""Name and meaning of every column, by role."""
SAME, LOOK_ALIKE, OTHER_CATEGORY, NEGATIVE = "same", "look-alike", "other category", "negative"


def declare_features(role: str, *, embed_images: bool) -> "Features":
    """Types of the columns.

    Args:
        role: ``speaker`` or ``listener``.
        embed_images: Whether photos are stored in the rows; otherwise their paths are.
    """
    from datasets import Features, Image, List, Value

    text = Value("string")
    photo = Image() if embed_images else text
    if role == "speaker":
        types = {
            "prompt": List({"role": text, "content": text}),
            "query": photo,
            "candidates": List(text),
            "target_index": Value("int64"),
        }
    else:
        types = {"prompt": List({"role": text, "content": List({"type": text, "text": text})}), "photos": List(photo)}
    return Features({name: types.get(name, text) for name in COLUMNS[role]})


def speaker_rows(games: Sequence[Game], words: PromptSet, photo_root: Path | None) -> Iterator[dict[str, Any]]:
    """Make the row of each game.

    Args:
        games: The games.
        words: Prompts.
        photo_root: Data root when the query photo's bytes are stored, else ``None``.

    Yields:
        Values of :data:`SPEAKER_COLUMNS`.
    """
    for game in games:
        yield {
            "prompt": [{"role": "user", "content": words.speaker(game.category_word)}],
            "query": _photo(game.query, photo_root),
            "candidates": [image.path for image in game.candidates],
            "target_index": game.target_index,
            "category_word": game.category_word,
            "concept": game.concept,
            "game_id": game.id,
        }


def listener_rows(
    games: Sequence[Game], words: PromptSet, config: DatasetConfig, photo_root: Path | None
) -> Iterator[dict[str, Any]]:
    """Draw a pair of photos from each game: the query, and the target or something else.

    Args:
        games: The games.
        words: Prompts.
        config: Shares and seed.
        photo_root: Data root when photos' bytes are stored, else ``None``.

    Yields:
        Values of :data:`LISTENER_COLUMNS`.

    Raises:
        ConfigError: If pairs of different categories are asked for, and there is only one.
    """
    for game, kind, concept, image in draw_others(games, config, "pair"):
        text = pair_prompt(words.name, game.category_word)
        parts = [("text", "Photo 1:"), ("image", None), ("text", "Photo 2:"), ("image", None), ("text", text)]
        content = [{"type": type_, "text": said} for type_, said in parts]
        yield listener_row(game, kind, concept, content, [_photo(game.query, photo_root), _photo(image, photo_root)])


def listener_row(game: Game, kind: str, other_concept: str, content: object, photos: list[Any]) -> dict[str, Any]:
    """One question to a listener: values of :data:`LISTENER_COLUMNS`; ``content`` is the user's message."""
    return {
        "prompt": [{"role": "user", "content": content}],
        "photos": photos,
        "answer": "yes" if kind == SAME else "no",
        "kind": kind,
        "category_word": game.category_word,
        "concept": game.concept,
        "other_concept": other_concept,
        "game_id": game.id,
    }


def draw_others(
    games: Sequence[Game], config: DatasetConfig, name: str
) -> Iterator[tuple[Game, str, str, ImageRecord]]:
    """Draw, for each game, a photo of the same thing or of something else.

    Args:
        games: The games.
        config: Shares and seed.
        name: Of the draw; others draw otherwise.

    Yields:
        Game, kind of the photo, its concept, and the image.

    Raises:
        ConfigError: If photos of different categories are asked for, and there is only one.
    """
    by_category: dict[str, list[Game]] = defaultdict(list)
    for game in games:
        by_category[game.category].append(game)
    if config.cross_category_frac > 0 and len(by_category) < 2:
        raise ConfigError(
            f"dataset.cross_category_frac = {config.cross_category_frac:g}, but all games are of the category "
            f"{next(iter(by_category), 'none')!r}; set it to 0"
        )
    for game, wanted in zip(games, _draw_kinds(len(games), config), strict=True):
        rng = stable_rng(config.seed, name, game.id, game.query.sha256)
        yield game, *_draw_other(game, wanted, by_category, rng)


def _draw_kinds(count: int, config: DatasetConfig) -> list[str]:
    """Draw which pairs show the same thing and which show different categories: as many as the shares say."""
    num_same = round(config.same_frac * count)
    num_cross = round(config.cross_category_frac * (count - num_same))
    kinds = [SAME] * num_same + [OTHER_CATEGORY] * num_cross + [LOOK_ALIKE] * (count - num_same - num_cross)
    return [kinds[place] for place in stable_rng(config.seed, "kinds of pairs").permutation(count)]


def _draw_other(
    game: Game, kind: str, by_category: dict[str, list[Game]], rng: np.random.Generator
) -> tuple[str, str, ImageRecord]:
    """Draw the second photo of a pair: what it turned out to be, its concept, and the image."""
    if kind == SAME:
        return SAME, game.concept, game.candidates[game.target_index]
    if kind == OTHER_CATEGORY:
        others = [category for category in sorted(by_category) if category != game.category]
        there = by_category[others[int(rng.integers(len(others)))]]
        other = there[int(rng.integers(len(there)))]
        return OTHER_CATEGORY, other.concept, other.candidates[other.target_index]
    places = [place for place in range(len(game.candidates)) if place != game.target_index]
    place = places[int(rng.integers(len(places)))]
    concept = game.candidate_concepts[place]
    if not concept:
        return NEGATIVE, concept, game.candidates[place]
    is_near = concept.startswith(f"{game.category}/")
    return LOOK_ALIKE if is_near else OTHER_CATEGORY, concept, game.candidates[place]


def _photo(image: ImageRecord, photo_root: Path | None) -> object:
    """A photo's path, or its bytes when they are stored."""
    if photo_root is None:
        return image.path
    return {"bytes": read_image_bytes(photo_root, image), "path": image.path}
