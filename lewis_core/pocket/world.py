"""The pocket world's vocabulary: what a thing can look like, and families of look-alikes.

An :class:`Identity` never changes and tells one concept from another. A :class:`Scene` changes from
photo to photo. Together they give the *facts* that the language (:mod:`.language`) talks about:
six that identify (:data:`IDENTITY_KEYS`) and three that do not (:data:`TRANSIENT_KEYS`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

Facts = dict[str, str]
RGB = tuple[int, int, int]

RGB_BY_COLOR: Mapping[str, RGB] = {
    "red": (205, 36, 40),
    "orange": (240, 135, 30),
    "yellow": (245, 215, 50),
    "green": (45, 150, 65),
    "blue": (35, 85, 200),
    "purple": (125, 55, 165),
    "pink": (245, 145, 185),
    "brown": (115, 72, 40),
    "black": (35, 35, 38),
    "white": (240, 240, 238),
}
COLORS = tuple(RGB_BY_COLOR)
# Pairs that are hard to tell apart when one is painted on the other.
CLOSE_COLORS = frozenset(
    frozenset(pair.split())
    for pair in [
        "red orange",
        "orange yellow",
        "brown black",
        "brown red",
        "pink white",
        "yellow white",
        "purple blue",
        "brown orange",
        "blue black",
        "purple black",
        "red pink",
        "green blue",
        "brown purple",
        "purple pink",
    ]
)
PATTERNS = ("plain", "stripes", "dots", "checks", "zigzags")
MATERIALS = ("plastic", "metal", "wood", "wool")
SHAPES = ("slim", "regular", "wide")
LOGOS = ("none", "star", "heart", "moon", "flower", "cross", "triangle", "ring", "bolt")
POSES = ("upright", "tilted", "lying on its side")
LOCATIONS = (
    "table",
    "grass",
    "beach",
    "snow",
    "tiles",
    "carpet",
    "brick wall",
    "bookshelf",
    "window",
    "road",
)


class Kind(NamedTuple):
    """What is particular to a category: its coloured part, and the two states it can be in."""

    part: str
    states: tuple[str, str]


KINDS: Mapping[str, Kind] = {
    "mug": Kind("handle", ("empty", "steaming")),
    "bag": Kind("strap", ("closed", "open")),
    "bottle": Kind("cap", ("closed", "open")),
    "box": Kind("lid", ("closed", "open")),
    "hat": Kind("brim", ("clean", "dusty")),
    "shoe": Kind("sole", ("tied", "untied")),
    "umbrella": Kind("handle", ("dry", "dripping")),
    "lamp": Kind("base", ("switched off", "switched on")),
    "bear": Kind("scarf", ("awake", "asleep")),
    "vase": Kind("rim", ("empty", "full of flowers")),
}
CATEGORIES = tuple(KINDS)
IDENTITY_KEYS = ("color", "pattern", "material", "shape", "logo", "part")
TRANSIENT_KEYS = ("pose", "state", "location")
FACT_KEYS = IDENTITY_KEYS + TRANSIENT_KEYS

PLAIN_LOGO_FRAC = 0.25
DECORATION_RECOLOR_FRAC = 0.4
FAMILY_NUM_CHANGES = (1, 2, 2, 3)
POSE_PROBABILITIES = (0.5, 0.3, 0.2)


@dataclass(frozen=True)
class Identity:
    """How one concept looks in every photo of it.

    ``pattern_color`` and ``logo_color`` are always set; they show only if there is a pattern or a
    logo.
    """

    category: str
    color: str
    pattern: str
    pattern_color: str
    material: str
    shape: str
    logo: str
    logo_color: str
    part_color: str


@dataclass(frozen=True)
class Scene:
    """What one photo adds: pose, state, location, and the seed of light, noise and clutter."""

    pose: str
    state: str
    location: str
    seed: int


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Draw one of the options, all equally likely."""
    return options[int(rng.random() * len(options))]


def pick_other(rng: np.random.Generator, options: Iterable[str], *avoid: str) -> str:
    """Draw one of the options that is not in ``avoid``."""
    return pick(rng, [option for option in options if option not in avoid])


def pick_contrast(rng: np.random.Generator, color: str, *avoid: str) -> str:
    """Draw a color that shows on ``color``."""
    close = [other for other in COLORS if frozenset((other, color)) in CLOSE_COLORS]
    return pick_other(rng, COLORS, color, *close, *avoid)


def random_identity(rng: np.random.Generator, category: str | None = None) -> Identity:
    """Draw a concept's looks, of the given category or of any."""
    color = pick(rng, COLORS)
    has_logo = rng.random() >= PLAIN_LOGO_FRAC
    return Identity(
        category=category or pick(rng, CATEGORIES),
        color=color,
        pattern=pick(rng, PATTERNS),
        pattern_color=pick_contrast(rng, color),
        material=pick(rng, MATERIALS),
        shape=pick(rng, SHAPES),
        logo=pick(rng, LOGOS[1:]) if has_logo else "none",
        logo_color=pick_contrast(rng, color),
        part_color=pick(rng, COLORS),
    )


def random_scene(rng: np.random.Generator, category: str) -> Scene:
    """Draw the circumstances of one photo."""
    return Scene(
        pose=POSES[int(rng.choice(len(POSES), p=POSE_PROBABILITIES))],
        state=pick(rng, KINDS[category].states),
        location=pick(rng, LOCATIONS),
        seed=int(rng.integers(2**31)),
    )


def _change_color(rng: np.random.Generator, identity: Identity) -> Identity:
    """Change the body's color, and that of decoration which would no longer show on it."""
    color = pick_other(rng, COLORS, identity.color)

    def visible(decoration: str) -> str:
        hidden = decoration == color or frozenset((decoration, color)) in CLOSE_COLORS
        return pick_contrast(rng, color) if hidden else decoration

    return replace(
        identity,
        color=color,
        pattern_color=visible(identity.pattern_color),
        logo_color=visible(identity.logo_color),
    )


def _change_decoration(rng: np.random.Generator, identity: Identity, key: str) -> Identity:
    """Change the kind or, if there is one, the color of the pattern or logo."""
    kind, color = getattr(identity, key), getattr(identity, f"{key}_color")
    kinds = PATTERNS if key == "pattern" else LOGOS
    if kind != kinds[0] and rng.random() < DECORATION_RECOLOR_FRAC:
        return replace(identity, **{f"{key}_color": pick_contrast(rng, identity.color, color)})
    return replace(identity, **{key: pick_other(rng, kinds, kind)})


def change_facts(rng: np.random.Generator, identity: Identity, keys: Iterable[str]) -> Identity:
    """Return the identity with the given facts changed; all are in :data:`IDENTITY_KEYS`."""
    for key in keys:
        if key == "color":
            identity = _change_color(rng, identity)
        elif key in ("pattern", "logo"):
            identity = _change_decoration(rng, identity, key)
        elif key == "material":
            identity = replace(identity, material=pick_other(rng, MATERIALS, identity.material))
        elif key == "shape":
            identity = replace(identity, shape=pick_other(rng, SHAPES, identity.shape))
        elif key == "part":
            identity = replace(identity, part_color=pick_other(rng, COLORS, identity.part_color))
        else:
            raise KeyError(key)
    return identity


def identity_facts(identity: Identity) -> Facts:
    """Return the category and the six facts that identify, as values of the language."""
    has_pattern, has_logo = identity.pattern != "plain", identity.logo != "none"
    return {
        "category": identity.category,
        "color": identity.color,
        "pattern": f"{identity.pattern_color} {identity.pattern}" if has_pattern else "plain",
        "material": identity.material,
        "shape": identity.shape,
        "logo": f"{identity.logo_color} {identity.logo}" if has_logo else "none",
        "part": identity.part_color,
    }


def photo_facts(identity: Identity, scene: Scene) -> Facts:
    """Return all that the language can say about a photo: the category and nine facts."""
    return {
        **identity_facts(identity),
        "pose": scene.pose,
        "state": scene.state,
        "location": scene.location,
    }


def build_family(rng: np.random.Generator, category: str, num_concepts: int) -> list[Identity]:
    """Draw look-alikes: one base identity with one to three facts changed, all different.

    Facts that two members share are therefore the rule, and a description that names a single
    fact rarely singles one out.
    """
    base = random_identity(rng, category)
    family: list[Identity] = []
    seen: set[tuple[str, ...]] = set()
    while len(family) < num_concepts:
        num_changes = FAMILY_NUM_CHANGES[int(rng.integers(len(FAMILY_NUM_CHANGES)))]
        chosen = rng.choice(len(IDENTITY_KEYS), size=num_changes, replace=False)
        identity = change_facts(rng, base, [IDENTITY_KEYS[index] for index in chosen])
        signature = tuple(identity_facts(identity).values())
        if signature not in seen:
            seen.add(signature)
            family.append(identity)
    return family
