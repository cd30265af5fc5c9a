"""Read JSON files that people have written, and say where they are wrong."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lewis_core.errors import CatalogError

_SHOWN = 40
"""Characters of a malformed file shown on either side of the mistake."""


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CatalogError: If it cannot be read or is not JSON; names line and column, and shows the place.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{path} is not a JSON file: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - _SHOWN) : error.pos + _SHOWN].replace("\n", " ")
        raise CatalogError(
            f"{path} is not a JSON file: line {error.lineno}, column {error.colno}: {error.msg}, near: {around!r}"
        ) from error
    except RecursionError as error:
        raise CatalogError(f"{path} is not a JSON file of this kind: nested too deeply") from error


def load_json_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CatalogError: If it is not such a file.
    """
    content = load_json(path)
    if not isinstance(content, dict):
        raise CatalogError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content
