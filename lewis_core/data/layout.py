"""What a data root holds and what each image is, by where it lies: the entrance to ``tree`` and ``layouts``."""

from pathlib import Path
from typing import Literal

from lewis_core.config.data import LayoutName
from lewis_core.data.layouts.base import FoundFile, Layout, Listing, Split
from lewis_core.data.layouts.detect import read_layout
from lewis_core.data.layouts.known import EXPECTED, LAYOUTS
from lewis_core.data.tree import SetAside, check_root, find_stamps, read_tree, scan_tree

__all__ = [
    "EXPECTED",
    "LAYOUTS",
    "FoundFile",
    "Layout",
    "Listing",
    "SetAside",
    "Split",
    "check_root",
    "find_stamps",
    "list_data_root",
    "read_layout",
    "read_tree",
    "scan_tree",
]


def list_data_root(root: Path, layout: LayoutName | Literal["auto"] = "auto") -> Listing:
    """List a data root.

    Raises:
        CatalogError: If the root is missing, cannot be listed, or has no known layout.
    """
    return read_layout(read_tree(root), layout)
