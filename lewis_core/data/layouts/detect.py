"""Which data set a folder is: by the way its folders are arranged, then by signs that only one data set has."""

import logging
from typing import Literal

from lewis_core.config.data import LayoutName
from lewis_core.data.layouts import shapes
from lewis_core.data.layouts.base import Layout, Listing
from lewis_core.data.layouts.known import EXPECTED, LAYOUTS
from lewis_core.data.tree import Folder
from lewis_core.errors import CatalogError

logger = logging.getLogger(__name__)
_NAMED = 3
"""Files named in an error message."""


def read_layout(root: Folder, name: LayoutName | Literal["auto"] = "auto") -> Listing:
    """Read a data root with the layout that the settings name, or with the one that it shows.

    Args:
        root: Everything in the data root.
        name: ``catalog.layout``.

    Returns:
        What it holds; which layout was chosen and why is logged too.

    Raises:
        CatalogError: If the folders fit several layouts or none.
    """
    layout, evidence = (LAYOUTS[name], ("catalog.layout says so",)) if name != "auto" else detect_layout(root)
    listing = Listing(layout, evidence)
    layout.read(root, listing)
    logger.info("layout %s (%s): %s", layout.name, layout.title, "; ".join(evidence))
    return listing.sort()


def detect_layout(root: Folder) -> tuple[Layout, tuple[str, ...]]:
    """Find out which layout a data root has.

    Returns:
        The layout and the evidence for it. A root without images is read as folders by category.

    Raises:
        CatalogError: If there are signs of several data sets, or the folders are not arranged in one way.
    """
    fitting = [layout for layout in LAYOUTS.values() if layout.fits(root)]
    signs = {layout.name: layout.signs(root) for layout in fitting if not layout.is_general}
    special = [layout for layout in fitting if signs.get(layout.name)]
    if len(special) > 1:
        found = [f"  {layout.name} ({layout.title}): {'; '.join(signs[layout.name])}" for layout in special]
        raise CatalogError(
            "\n".join(["the data root has signs of several data sets; say which with catalog.layout:", *found])
        )
    if special:
        return special[0], (_describe_shape(root), *signs[special[0].name])
    general = [layout for layout in fitting if layout.is_general]
    if general:
        return general[0], (_describe_shape(root), "no sign of a known data set")
    _refuse(root)
    return LAYOUTS["folders"], ("there are no images",)


def _describe_shape(root: Folder) -> str:
    """What the arrangement of folders is, in words."""
    split = "train and test folders" if shapes.split_folders(root) else "no train and test folders"
    if shapes.is_kinds(root):
        return f"{split}, test images by kind"
    places = shapes.find_places(root)
    if places.nested:
        return f"{split}, images in <category>/<concept>, e.g. {places.nested[0].path}"
    return f"{split}, images in <concept>, e.g. {places.flat[0].path}"


def _refuse(root: Folder) -> None:
    """Say what is wrong with a data root that has no known shape.

    Raises:
        CatalogError: Unless there are no images at all.
    """
    places = shapes.find_places(root)
    if places.flat and places.nested:
        flat, nested = places.flat, places.nested
        raise CatalogError(
            f"images lie at two depths, so the data root could be read in two ways: {flat[0].path} and {len(flat) - 1} "
            f"more as <concept>/<image> (catalog.layout = 'flat'), {nested[0].path} and {len(nested) - 1} more as "
            "<category>/<concept>/<image> (catalog.layout = 'folders'). Say which is right; the others are then set "
            "aside"
        )
    misplaced = places.loose or places.deeper
    if not misplaced:
        return
    named = ", ".join(file.path for file in misplaced[:_NAMED])
    raise CatalogError(f"{named}: expected a category folder or a concept folder there: {EXPECTED}{_hint(root)}")


def _hint(root: Folder) -> str:
    """What may be meant: a folder of a split in another case, or a folder in the data root; else nothing."""
    splits = {name.casefold(): name for names in shapes.SPLIT_FOLDERS.values() for name in names}
    if renamed := [
        f"{child.name} to {splits[child.name.casefold()]}"
        for child in root.folders
        if child.name.casefold() in splits and child.name not in splits.values()
    ]:
        return f"; rename {' and '.join(renamed)}"
    nearer = [child.path for child in root.folders if any(layout.fits(child) for layout in LAYOUTS.values())]
    return f"; did you mean the data root to be {' or '.join(nearer)} in it?" if nearer else ""
