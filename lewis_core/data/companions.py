"""Files that come with photos: questions about them, and what is true of them."""

import logging
import shutil
from pathlib import Path

from lewis_core.config.data import CatalogConfig
from lewis_core.data.captions import make_questions, read_captions
from lewis_core.data.json_files import load_json_object
from lewis_core.data.layout import Listing, SetAside
from lewis_core.data.questions import read_questions
from lewis_core.errors import CatalogError
from lewis_core.records import Catalog, JsonObject, save_jsonl

logger = logging.getLogger(__name__)
FACTS_FILE = "facts.json"


def write_companions(
    data_root: Path,
    output_dir: Path,
    listing: Listing,
    catalog: Catalog,
    set_aside: list[SetAside],
    config: CatalogConfig,
) -> JsonObject:
    """Take over the questions, captions and ground truth that come with the photos.

    Writes ``facts.json``, ``captions.jsonl`` and ``questions.jsonl``, if the data root has them.

    Args:
        data_root: Folder of photos.
        output_dir: Folder to write to.
        listing: The data root; its layout knows the names of question files.
        catalog: Concepts and usable images.
        set_aside: What is not used; questions and captions that cannot be used are added.
        config: Whether captions become questions.

    Returns:
        Numbers of questions and captions, if there are files of them.

    Raises:
        CatalogError: If such a file is not JSON, or there are several files of questions.
    """
    if (data_root / FACTS_FILE).is_file():
        load_json_object(data_root / FACTS_FILE)
        shutil.copyfile(data_root / FACTS_FILE, output_dir / FACTS_FILE)
    captions, refused = read_captions(data_root, listing.companions, catalog)
    set_aside.extend(refused)
    counts: JsonObject = {"captions": len(captions), "malformed_captions": len(refused)} if captions or refused else {}
    if captions:
        save_jsonl(output_dir / "captions.jsonl", captions)
    found = [name for name in listing.layout.question_files if (data_root / name).is_file()]
    if len(found) > 1:
        raise CatalogError(f"{data_root} holds several files of questions, {' and '.join(found)}; keep one of them")
    items = make_questions(captions, catalog, config.seed) if config.caption_questions else []
    if found:
        content = load_json_object(data_root / found[0])
        unusable = {entry.path: entry.reason for entry in set_aside}
        asked, malformed = read_questions(content, found[0], catalog, unusable)
        _warn(found[0], len(asked), malformed)
        set_aside.extend(malformed)
        items = [*asked, *items]
        counts["malformed_questions"] = len(malformed)
    if items:
        save_jsonl(output_dir / "questions.jsonl", items)
    return {"questions": len(items), **counts} if items or found else counts


def _warn(file: str, used: int, malformed: list[SetAside]) -> None:
    """Say which questions are left out."""
    if not used:
        logger.warning("%s has no question that can be used; none is asked", file)
    if malformed:
        logger.warning(
            "%d questions cannot be used, e.g. %s: %s", len(malformed), malformed[0].path, malformed[0].reason
        )
