"""The data sets that are read as they are published, and folders of anybody's own."""

from collections.abc import Callable, Mapping

from lewis_core.config.data import LayoutName
from lewis_core.data.layouts import shapes
from lewis_core.data.layouts.base import CONCEPT_COMPANIONS, Layout
from lewis_core.data.tree import Folder
from lewis_core.data.vocabulary import DREAMBOOTH_WORDS, MYVLM_WORDS, PERVA_CATEGORIES, YOLLAVA_WORDS

_MIN_KNOWN = 3
"""Fewer known names are a coincidence: many people have a ``cat`` and a ``dog``."""


def _folder_names(root: Folder, nested: bool) -> set[str]:
    """Names of the folders that would be concepts."""
    found = [folder for _, top in shapes.tops(root) for folder in top.folders]
    return {below.name for folder in found for below in (folder.folders if nested else (folder,))}


def _count_known(names: set[str], known: frozenset[str] | Mapping[str, str], what: str) -> list[str]:
    """Evidence from names: at least half of the folders, and three."""
    hits = names & set(known)
    if len(hits) < _MIN_KNOWN or 2 * len(hits) < len(names):
        return []
    return [f"{len(hits)} of {len(names)} folders have names of {what}, e.g. {min(hits)}"]


def _perva_signs(root: Folder) -> list[str]:
    spelled = [name for name in ("train_", "test_") if root.folder(name)]
    return [
        *([f"it holds {' and '.join(spelled)}, PerVA's spelling"] if spelled else []),
        *_count_known(_folder_names(root, nested=False), PERVA_CATEGORIES, "PerVA's categories"),
    ]


def _concept_signs(
    words: Mapping[str, str], what: str, root_files: tuple[str, ...] = (), concept_files: tuple[str, ...] = ()
) -> Callable[[Folder], list[str]]:
    """Evidence from concept names, files in the data root, and files in concept folders."""

    def find(root: Folder) -> list[str]:
        signs = _count_known(_folder_names(root, nested=shapes.is_nested(root)), words, what)
        signs += [f"it holds {name}" for name in root_files if root.file(name)]
        folders = [folder for _, top in shapes.tops(root) for folder in top.folders]
        for name in concept_files:
            if count := sum(folder.file(name) is not None for folder in folders):
                signs.append(f"{count} concept folders hold {name}")
        return signs

    return find


def _yollava_signs(root: Folder) -> list[str]:
    signs = _concept_signs(YOLLAVA_WORDS, "Yo'LLaVA's concepts", ("yollava-visual-qa.json",))(root)
    below = [folder for _, top in shapes.tops(root) for folder in top.folders]
    if count := sum(folder.folder("negative_example") is not None for folder in below):
        signs.append(f"{count} concept folders hold negative_example")
    return signs


def _kinds_signs(root: Folder) -> list[str]:
    test = shapes.split_folders(root).get("test")
    kinds = [folder.name for folder in test.folders if folder.name.lower() in shapes.KINDS] if test else []
    return [f"its test folder holds {', '.join(kinds)}"] if kinds else []


def _fits_flat_or_one_category(root: Folder) -> bool:
    """Flat, or nested in a single pseudo-category."""
    if shapes.is_flat(root):
        return True
    return shapes.is_nested(root) and len(_folder_names(root, nested=False)) == 1


_NESTED = "<root>/{train,test}/<category>/<concept>/<n>.jpg or <root>/<category>/<concept>/<n>.jpg"
_FLAT = "<root>/{train,test}/<concept>/<n>.jpg or <root>/<concept>/<n>.jpg"
LAYOUTS: Mapping[LayoutName, Layout] = {
    layout.name: layout
    for layout in (
        Layout("perva", "PerVA", _NESTED, shapes.read_nested, shapes.is_nested, signs=_perva_signs),
        Layout(
            "yollava",
            "Yo'LLaVA",
            "<root>/{train,test}/<concept>/<n>.png",
            shapes.read_either,
            _fits_flat_or_one_category,
            signs=_yollava_signs,
            words=YOLLAVA_WORDS,
            question_files=(
                "visual-qa.json",
                "yollava-visual-qa.json",
                "text-only-qa.json",
                "yollava-text-only-qa.json",
            ),
        ),
        Layout(
            "myvlm",
            "MyVLM",
            "<root>/<concept>/<n>.jpg",
            shapes.read_either,
            _fits_flat_or_one_category,
            signs=_concept_signs(
                MYVLM_WORDS,
                "MyVLM's objects",
                ("myvlm-visual-qa.json",),
                CONCEPT_COMPANIONS,
            ),
            words=MYVLM_WORDS,
            question_files=("visual-qa.json", "myvlm-visual-qa.json"),
        ),
        Layout(
            "dreambooth",
            "DreamBooth",
            "<root>/<concept>/<n>.jpg",
            shapes.read_either,
            _fits_flat_or_one_category,
            signs=_concept_signs(
                DREAMBOOTH_WORDS, "DreamBooth's subjects", ("prompts_and_classes.txt", "references_and_licenses.txt")
            ),
            words=DREAMBOOTH_WORDS,
        ),
        Layout(
            "this-is-my",
            "This-Is-My-Img",
            "<root>/train/<concept>/<n>.png and <root>/test/{Positive,Negative (Hard),…}/<concept>/<n>.png",
            shapes.read_kinds,
            shapes.is_kinds,
            signs=_kinds_signs,
            question_files=("visual-qa.json", "this-is-my-visual-qa.json", "this-is-my-visual-qa-ambiguity.json"),
            word_in_name=True,
        ),
        Layout("folders", "folders by category", _NESTED, shapes.read_nested, shapes.is_nested, is_general=True),
        Layout("flat", "folders without categories", _FLAT, shapes.read_flat, shapes.is_flat, is_general=True),
    )
}
EXPECTED = f"{_NESTED}, or without categories: {_FLAT}"
