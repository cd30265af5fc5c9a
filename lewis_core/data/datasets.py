"""Games → training rows, as a Hugging Face data set that is the same, byte for byte, whenever it is built."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lewis_core.artifacts import ArtifactRef, digest_json
from lewis_core.config.data import DatasetConfig
from lewis_core.data.card import render_card
from lewis_core.data.rows import declare_features, listener_rows, speaker_rows
from lewis_core.errors import ConfigError, DataError
from lewis_core.prompts import PromptSet, prompt_set
from lewis_core.records import Game, JsonObject, load_jsonl

if TYPE_CHECKING:
    from datasets import Features


def build_dataset(
    games: ArtifactRef,
    prompts: Literal["concise", "instruct"],
    output_dir: Path,
    config: DatasetConfig,
    data_root: Path | None = None,
) -> JsonObject:
    """Write ``dataset/`` (``datasets.save_to_disk``; columns: :data:`~lewis_core.data.rows.COLUMNS`) and ``README.md``.

    Rows go to the disk as they are made: memory does not grow with stored photos.

    Args:
        games: ``build-games`` artifact.
        prompts: Wording of the prompts.
        output_dir: Folder to write to.
        config: Whose rows, whether photos are stored in them, size of the files.
        data_root: Folder of photos; needed to store them only.

    Returns:
        Numbers of rows, concepts and candidates, and how often each answer is the right one.

    Raises:
        DataError: If there are no games.
        ConfigError: If photos are to be stored, and ``data_root`` is missing, or pairs of different categories are
            asked for, and there is only one.
        ImageError: If a photo to be stored is missing or was changed.
    """
    played = load_jsonl(games.file("games.jsonl"), Game)
    if not played:
        raise DataError(f"{games.path} holds no games; nothing to train on")
    if config.embed_images and data_root is None:
        raise ConfigError("dataset.embed_images stores the photos' bytes, so data_root has to be given")
    words = prompt_set(prompts)
    features = declare_features(config.role, embed_images=config.embed_images)
    answers: Counter[str] = Counter()

    def counted() -> Iterator[dict[str, Any]]:
        for row in _make_rows(played, words, config, data_root if config.embed_images else None):
            answers[row["kind"] if config.role == "listener" else str(row["target_index"])] += 1
            yield row

    name = digest_json([games.digest, prompts, config.model_dump(mode="json")])
    _save(counted(), features, output_dir / "dataset", config.max_shard_mb, name)
    card = render_card(played, config.role, features, dict(sorted(answers.items())), games.digest, words)
    (output_dir / "README.md").write_text(card, encoding="utf-8")
    return {
        "rows": answers.total(),
        "concepts": len({game.concept for game in played}),
        "candidates": len(played[0].candidates),
        "answers": dict(sorted(answers.items())),
    }


def _make_rows(
    games: Sequence[Game], words: PromptSet, config: DatasetConfig, photo_root: Path | None
) -> Iterator[dict[str, Any]]:
    if config.role == "speaker":
        return speaker_rows(games, words, photo_root)
    return listener_rows(games, words, config, photo_root)


def _save(rows: Iterator[dict[str, Any]], features: "Features", folder: Path, max_shard_mb: int, name: str) -> None:
    """Write rows through a temporary table beside the folder, cut into files of a size.

    Args:
        rows: The rows.
        features: Their types.
        folder: Where the data set goes.
        max_shard_mb: Largest file.
        name: What identifies the rows.
    """
    from datasets import Dataset, disable_progress_bars
    from datasets.arrow_writer import ArrowWriter

    disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=folder.parent) as temporary:
        table = Path(temporary) / "rows.arrow"
        writer = ArrowWriter(features=features, path=str(table), writer_batch_size=256)
        with writer:
            for row in rows:
                writer.write(features.encode_example(row))
            writer.finalize()
        dataset = Dataset.from_file(str(table))
        dataset._fingerprint = name[:16]
        dataset.save_to_disk(folder, max_shard_size=f"{max_shard_mb}MB")
