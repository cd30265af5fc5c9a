"""Games → training rows, as a Hugging Face data set that is the same, byte for byte, whenever it is built."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.data import DatasetConfig
from lewis_core.data.images import read_image_bytes
from lewis_core.errors import ConfigError, DataError
from lewis_core.prompts import PromptSet, prompt_set
from lewis_core.records import Game, JsonObject, load_jsonl

if TYPE_CHECKING:
    from datasets import Features

COLUMNS = {
    "prompt": "conversation that asks the speaker for a description; the query photo is added by the trainer",
    "query": "the photo that the speaker sees",
    "candidates": "paths of the photos that the listener sees, in order",
    "target_index": "position of the target among the candidates, from 0",
    "category_word": "word for the kind of thing, used in the listener's prompt",
    "concept": "id of the thing, `category/name`; never shown to a model",
    "game_id": "id of the game, `concept:number`",
}
_CARD = """\
---
task_categories:
- image-to-text
language:
- en
---

# Speaker games

Training rows of the Lewis game: a speaker describes the query photo so that a listener finds another photo of the same
thing among look-alikes. Paths are relative to the data root.

{counts}

| column | type | meaning |
|---|---|---|
{columns}

Built from games `{digest}` with the `{prompts}` prompts:

```
{example}
```

Photos are {photos}.

```python
from datasets import load_from_disk

rows = load_from_disk("dataset")
```
"""


def build_dataset(
    games: ArtifactRef,
    prompts: Literal["concise", "instruct"],
    output_dir: Path,
    config: DatasetConfig,
    data_root: Path | None = None,
) -> JsonObject:
    """Write ``dataset/`` (``datasets.save_to_disk``; columns: :data:`COLUMNS`) and its card, ``README.md``.

    Args:
        games: ``build-games`` artifact.
        prompts: Wording of the speaker's prompt.
        output_dir: Folder to write to.
        config: Whose rows, and whether photos are stored in them.
        data_root: Folder of photos; needed to store them only.

    Returns:
        Numbers of rows, concepts and candidates.

    Raises:
        DataError: If there are no games.
        ConfigError: If photos are to be stored, and ``data_root`` is missing.
        ImageError: If a photo to be stored is missing or was changed.
    """
    import datasets

    played = load_jsonl(games.file("games.jsonl"), Game)
    if not played:
        raise DataError(f"{games.path} holds no games; nothing to train on")
    if config.embed_images and data_root is None:
        raise ConfigError("dataset.embed_images stores the photos' bytes, so data_root has to be given")
    photo_root = data_root if config.embed_images else None
    words = prompt_set(prompts)
    rows = [build_row(game, words, photo_root) for game in played]
    features = declare_features(embed_images=config.embed_images)
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows, features=features).save_to_disk(output_dir / "dataset")
    card = _render_card(played, features, games.digest, prompts, words)
    (output_dir / "README.md").write_text(card, encoding="utf-8")
    concepts = {game.concept for game in played}
    return {"rows": len(rows), "concepts": len(concepts), "candidates": len(played[0].candidates)}


def declare_features(*, embed_images: bool) -> "Features":
    """Types of the columns."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    return Features(
        {
            "prompt": List({"role": text, "content": text}),
            "query": Image() if embed_images else text,
            "candidates": List(text),
            "target_index": Value("int64"),
            "category_word": text,
            "concept": text,
            "game_id": text,
        }
    )


def build_row(game: Game, words: PromptSet, photo_root: Path | None) -> dict[str, Any]:
    """Build one training row.

    Args:
        game: The game.
        words: Prompts.
        photo_root: Data root when the query photo's bytes are stored, else ``None``.

    Returns:
        Values of :data:`COLUMNS`.
    """
    query: object = game.query.path
    if photo_root is not None:
        query = {"bytes": read_image_bytes(photo_root, game.query), "path": game.query.path}
    return {
        "prompt": [{"role": "user", "content": words.speaker(game.category_word)}],
        "query": query,
        "candidates": [image.path for image in game.candidates],
        "target_index": game.target_index,
        "category_word": game.category_word,
        "concept": game.concept,
        "game_id": game.id,
    }


def _render_card(games: Sequence[Game], features: "Features", digest: str, prompts: str, words: PromptSet) -> str:
    """Write the data set's card."""
    sizes = Counter(game.category for game in games)
    widths = sorted({len(game.candidates) for game in games})
    concepts = len({game.concept for game in games})
    counts = [
        f"- {len(games)} games of {concepts} concepts, {' or '.join(map(str, widths))} candidates each",
        *(f"- {category}: {count} games" for category, count in sorted(sizes.items())),
    ]
    types = {name: _type_name(feature) for name, feature in features.items()}
    return _CARD.format(
        counts="\n".join(counts),
        columns="\n".join(f"| `{name}` | {types[name]} | {meaning} |" for name, meaning in COLUMNS.items()),
        digest=digest[:12],
        prompts=prompts,
        example=words.speaker(games[0].category_word),
        photos="stored in the rows" if types["query"] == "Image" else "not stored in the rows",
    )


def _type_name(feature: Any) -> str:
    """Name a column's type for people."""
    if hasattr(feature, "feature"):
        inner = feature.feature
        return f"list of {'messages' if isinstance(inner, dict) else _type_name(inner)}"
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__
