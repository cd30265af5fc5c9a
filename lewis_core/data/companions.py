"""Files that come with photos: questions about them, and what is true of them."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lewis_core.data.layout import Listing, SetAside
from lewis_core.data.questions import read_questions
from lewis_core.errors import CatalogError
from lewis_core.records import Catalog, JsonObject, save_jsonl

logger = logging.getLogger(__name__)
FACTS_FILE = "facts.json"
_SHOWN = 40
"""Characters of a malformed file shown on either side of the mistake."""


def load_json_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CatalogError: If it cannot be read, is not JSON (names line and column, and shows the place), or holds
            something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path} is not a JSON file: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - _SHOWN) : error.pos + _SHOWN].replace("\n", " ")
        raise CatalogError(
            f"{path} is not a JSON file: line {error.lineno}, column {error.colno}: {error.msg}, near: {around!r}"
        ) from error
    except RecursionError as error:
        raise CatalogError(f"{path} is not a JSON file of this kind: nested too deeply") from error
    if not isinstance(content, dict):
        raise CatalogError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def write_companions(
    data_root: Path, output_dir: Path, listing: Listing, catalog: Catalog, set_aside: list[SetAside]
) -> JsonObject:
    """Take over the questions and the ground truth that come with the photos.

    Writes ``facts.json`` and ``questions.jsonl``, if the data root has them.

    Args:
        data_root: Folder of photos.
        output_dir: Folder to write to.
        listing: The data root; its layout knows the names of question files.
        catalog: Concepts and usable images.
        set_aside: What is not used; questions that cannot be used are added.

    Returns:
        Numbers of questions, if there is a file of them.

    Raises:
        CatalogError: If such a file is not JSON, or there are several files of questions.
    """
    if (data_root / FACTS_FILE).is_file():
        load_json_object(data_root / FACTS_FILE)
        shutil.copyfile(data_root / FACTS_FILE, output_dir / FACTS_FILE)
    found = [name for name in listing.layout.question_files if (data_root / name).is_file()]
    if not found:
        return {}
    if len(found) > 1:
        raise CatalogError(f"{data_root} holds several files of questions, {' and '.join(found)}; keep one of them")
    content = load_json_object(data_root / found[0])
    unusable = {entry.path: entry.reason for entry in set_aside}
    items, malformed = read_questions(content, found[0], catalog, unusable)
    set_aside.extend(malformed)
    if items:
        save_jsonl(output_dir / "questions.jsonl", items)
    else:
        logger.warning("%s has no question that can be used; none is asked", found[0])
    if malformed:
        logger.warning(
            "%d questions cannot be used, e.g. %s: %s", len(malformed), malformed[0].path, malformed[0].reason
        )
    return {"questions": len(items), "malformed_questions": len(malformed)}
