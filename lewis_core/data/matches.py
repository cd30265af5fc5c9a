"""Games and a speaker's descriptions → yes-or-no questions of the game's own form, to train a listener with."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.data import DatasetConfig
from lewis_core.data.rows import LISTENER_COLUMNS, draw_others, listener_row
from lewis_core.errors import DataError
from lewis_core.prompts import PromptSet, prompt_set
from lewis_core.records import Database, Game, JsonObject, load_jsonl, load_record


def build_matches(
    games: ArtifactRef,
    database: ArtifactRef,
    prompts: Literal["concise", "instruct"],
    output_dir: Path,
    config: DatasetConfig,
) -> JsonObject:
    """Write ``dataset/``: does a concept's description fit a photo? (stage ``build-matches``).

    Args:
        games: ``build-games`` artifact.
        database: ``describe-concepts`` artifact of the speaker, for the concepts of the games.
        prompts: Wording of the listener's question.
        output_dir: Folder to write to.
        config: Shares of kinds, seed.

    Returns:
        Numbers of rows and of games without a description, and how often each answer is the right one.

    Raises:
        DataError: If no game's concept was described.
    """
    from datasets import Dataset, disable_progress_bars

    played = load_jsonl(games.file("games.jsonl"), Game)
    entries = load_record(database.file("database.json"), Database).entries
    texts = {entry.concept: entry.description.text for entry in entries if entry.description is not None}
    rows = list(match_rows(played, texts, prompt_set(prompts), config))
    if not rows:
        raise DataError(
            f"{database.path} describes none of the {len({game.concept for game in played})} concepts of the games in "
            "a form that can be read; train the speaker first, or longer"
        )
    disable_progress_bars()
    Dataset.from_list(rows, features=_features()).save_to_disk(output_dir / "dataset")
    answers = Counter(row["answer"] for row in rows)
    return {"rows": len(rows), "without_description": len(played) - len(rows), "answers": dict(sorted(answers.items()))}


def _features() -> Any:
    from datasets import Features, List, Value

    text = Value("string")
    types = {"prompt": List({"role": text, "content": text}), "photos": List(text)}
    return Features({name: types.get(name, text) for name in LISTENER_COLUMNS})


def match_rows(
    games: Sequence[Game], texts: Mapping[str, str], words: PromptSet, config: DatasetConfig
) -> Iterator[dict[str, Any]]:
    """Draw a photo from each game whose concept is described: the target, or something else.

    Args:
        games: The games.
        texts: Descriptions by concept.
        words: Prompts.
        config: Shares of kinds, seed.

    Yields:
        Values of :data:`~lewis_core.data.rows.LISTENER_COLUMNS`, with one photo.
    """
    described = [game for game in games if game.concept in texts]
    for game, kind, concept, image in draw_others(described, config, "match"):
        question = words.match(game.category_word, texts[game.concept])
        yield listener_row(game, kind, concept, question, [image.path])
