"""Files of descriptions: this program's ``database.json`` and the reference implementation's two formats.

What a file is, is read from its content and never from its name. A refined file is written back in the form it had.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lewis_core.artifacts import digest_file
from lewis_core.errors import DataError
from lewis_core.records import Database, Description, JsonObject, Record, save_jsonl

ITEMS, SOURCE = "items.jsonl", "source.json"
Kind = Literal["database", "reference_database", "reference_descriptions"]
GENERAL = "general"
DETAILED = ("distinguishing features", "distinct features")
"""Names of the detailed description in the reference's files."""


class DescriptionItem(Record):
    """One concept's description, whatever file it came from; a line of ``items.jsonl``."""

    id: str
    """The concept's id in the file."""
    category: str = ""
    general: str
    """The coarse description."""
    detailed: str
    error: str | None = None
    """Why there is no text, if there is none."""

    @property
    def text(self) -> str:
        """Both parts, as listeners and answering models read them."""
        return ". ".join(filter(None, (self.general.rstrip("."), self.detailed)))


def import_descriptions(name: str, sha256: str, output_dir: Path, data_root: Path) -> JsonObject:
    """Read a file of descriptions into ``items.jsonl``, and keep the file as ``source.json``.

    Args:
        name: Name of the file.
        sha256: Digest of its bytes, which identifies it.
        output_dir: Folder to write to.
        data_root: Folder that the file is in.

    Returns:
        Its format, and counts of items and of those without a text.

    Raises:
        DataError: If the file is missing, was changed, or is of none of the formats.
    """
    path = data_root / name
    content = load_content(path)
    if (found := digest_file(path)) != sha256:
        raise DataError(f"{path} was changed while the flow was running: expected {sha256[:12]}, found {found[:12]}")
    kind, items = read_items(content, name)
    save_jsonl(output_dir / ITEMS, items)
    (output_dir / SOURCE).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return {"file": name, "format": kind, "items": len(items), "without_text": sum(not item.text for item in items)}


def load_content(path: Path) -> Any:
    """Read a JSON file in which no key stands twice.

    Raises:
        DataError: If it is missing, is no JSON, or repeats a key; names the place.
    """

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise DataError(f"{path}: {twice[0]!r} is there twice; every concept needs an id of its own")
        return dict(pairs)

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error


def read_items(content: Any, name: str) -> tuple[Kind, list[DescriptionItem]]:
    """Tell the format of a file's content and read its descriptions, in the file's order.

    Args:
        content: What :func:`load_content` returned.
        name: Name of the file, for errors.

    Raises:
        DataError: If it is of none of the formats, holds nothing, or an entry is not as promised.
    """
    kind = _kind(content, name)
    if kind == "database":
        items = _own_items(content, name)
    else:
        entries = content["concept_dict"] if kind == "reference_database" else content
        items = [_reference_item(key, entry, name) for key, entry in entries.items()]
    if not items:
        raise DataError(f"{name} holds no description; describe concepts first")
    ids = [item.id for item in items]
    if twice := sorted({key for key in ids if ids.count(key) > 1}):
        raise DataError(f"{name}: {twice[0]!r} is described twice; every concept needs an id of its own")
    return kind, items


def _kind(content: Any, name: str) -> Kind:
    if isinstance(content, dict):
        if set(content) == {"speaker", "entries"}:
            return "database"
        if isinstance(content.get("concept_dict"), dict):
            return "reference_database"
        if content and all(isinstance(value, dict) and _fields(value) for value in content.values()):
            return "reference_descriptions"
    found = f"the keys {sorted(content)[:4]}" if isinstance(content, dict) else f"a {type(content).__name__}"
    raise DataError(
        f"{name} is no file of descriptions: expected a database.json (speaker, entries), or the reference's "
        f"database_*.json (concept_dict) or descriptions_*.json (general, distinguishing features), found {found}"
    )


def _own_items(content: Any, name: str) -> list[DescriptionItem]:
    try:
        database = Database.model_validate(content)
    except ValueError as error:
        raise DataError(f"{name}: not a database: {error}") from error
    return [
        DescriptionItem(
            id=entry.concept,
            category=entry.category,
            general=entry.description.coarse if entry.description else "",
            detailed=entry.description.detailed if entry.description else "",
            error=entry.error if entry.description is None else None,
        )
        for entry in database.entries
    ]


def _fields(entry: dict[str, Any]) -> dict[str, Any]:
    """The part of an entry that holds its texts; empty if there is none."""
    info = entry.get("info", entry)
    return info if isinstance(info, dict) and (GENERAL in info or any(name in info for name in DETAILED)) else {}


def _reference_item(key: str, entry: Any, name: str) -> DescriptionItem:
    fields = _fields(entry) if isinstance(entry, dict) else {}
    if not fields:
        raise DataError(f"{name}: {key!r}: expected {GENERAL!r} and {DETAILED[0]!r}, found {entry!r:.80}")
    general = _joined(fields.get(GENERAL, ""), key, name)
    detailed = _joined(next((fields[field] for field in DETAILED if field in fields), ""), key, name)
    category = fields.get("category", entry.get("category", ""))
    return DescriptionItem(
        id=key,
        category=category if isinstance(category, str) else "",
        general=general,
        detailed=detailed,
        error=None if general or detailed else "the file holds no text",
    )


def _joined(value: Any, key: str, name: str) -> str:
    """A text, or the texts of a list."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise DataError(f"{name}: {key!r}: expected text or a list of texts, found {value!r:.80}")
    return " ".join(" ".join(parts).split())


def replace_texts(content: Any, kind: Kind, texts: Mapping[str, tuple[str, str]]) -> Any:
    """Copy a file's content with other texts.

    Args:
        content: As read by :func:`load_content`.
        kind: Its format.
        texts: General and detailed text by id; concepts without an entry keep theirs.
    """
    if kind == "database":
        database = Database.model_validate(content)
        entries = []
        for entry in database.entries:
            if entry.description is not None and entry.concept in texts:
                coarse, detailed = texts[entry.concept]
                changed = Description(thinking=entry.description.thinking, coarse=coarse, detailed=detailed)
                entries.append(entry.model_copy(update={"description": changed}))
            else:
                entries.append(entry)
        return database.model_copy(update={"entries": tuple(entries)}).model_dump(mode="json")
    copied = json.loads(json.dumps(content))
    entries_by_id = copied["concept_dict"] if kind == "reference_database" else copied
    for key, (general, detailed) in texts.items():
        fields = _fields(entries_by_id[key])
        field = next((name for name in DETAILED if name in fields), DETAILED[0])
        for name, text in ((GENERAL, general), (field, detailed)):
            fields[name] = text if isinstance(fields.get(name), str) else [text]
    return copied
