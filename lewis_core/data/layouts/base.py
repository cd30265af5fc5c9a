"""What a layout is, and what reading a data root with one gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lewis_core.config.data import LayoutName
from lewis_core.data.tree import Folder, SetAside

Split = Literal["train", "test", "negative", "hard_negative", "unsplit"]
CONCEPT_NEGATIVES = ("laion", "negative_example", "negatives")
"""Folders in a concept's folder whose images do not show the concept."""
CONCEPT_COMPANIONS = ("captions.json", "captions_augmented.json", "additional_llava_vqa_data.json")
"""Files in a concept's folder that are about its images."""
COMMON_NEGATIVES = ("laion", "negatives", "random-images")
"""Folders in the data root whose images show none of the concepts; read to any depth."""
ONE_CATEGORY = "all"
"""The pseudo-category of data sets whose concepts have none."""


class FoundFile(NamedTuple):
    """A file that may be an image."""

    path: str
    """Relative to the data root, with forward slashes."""
    category: str
    """Empty for an image of no concept."""
    concept: str
    split: Split


@dataclass
class Listing:
    """What a data root holds, read with one layout; nothing has been opened yet."""

    layout: "Layout"
    evidence: tuple[str, ...] = ()
    """Why this layout was chosen, for people."""
    is_split: bool = False
    files: list[FoundFile] = field(default_factory=list)
    """Sorted by path."""
    set_aside: list[SetAside] = field(default_factory=list)
    """Links, and folders and names that are not read although images are expected there."""
    others: list[SetAside] = field(default_factory=list)
    """Not data: notes between the folders, folders beside ``train`` and ``test``."""
    strangers: list[str] = field(default_factory=list)
    """Paths of the folders and images among those: a ``val`` folder, photos in the data root."""
    companions: set[str] = field(default_factory=set)
    """Paths of files in concept folders that are about their images."""
    categories: set[str] = field(default_factory=set)
    """Names of all category folders, empty ones too."""
    concepts: set[tuple[str, str]] = field(default_factory=set)
    """(category, concept) of all concept folders, empty ones too."""

    def sort(self) -> "Listing":
        """Bring everything into the order of paths."""
        self.files.sort(key=lambda file: file.path)
        self.set_aside.sort(key=lambda entry: entry.path)
        self.others.sort(key=lambda entry: entry.path)
        return self


@dataclass(frozen=True)
class Layout:
    """How one data set lies on disk."""

    name: LayoutName
    title: str
    """For people."""
    picture: str
    """Where an image lies, for messages."""
    read: Callable[[Folder, Listing], None]
    """Fill a listing from a data root that has this shape."""
    fits: Callable[[Folder], bool]
    """Whether a data root has this shape."""
    is_general: bool = False
    """Any data root of this shape is one; others need a sign."""
    signs: Callable[[Folder], list[str]] = lambda root: []
    """What tells this data set from others of the same shape."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Word for a concept's kind, by the concept's name."""
    question_files: tuple[str, ...] = ("visual-qa.json",)
    """Files of questions in the data root."""
    word_in_name: bool = False
    """The word for a concept's kind stands in its name, behind the last dash."""
