"""A pocket world on disk, in the layout of a data set of personal photos.

    <root>/{train,test}/<category>/<concept>/<n>.jpg
    <root>/facts.json        what is true of each photo, by path
    <root>/visual-qa.json    multiple-choice questions about test photos

The concepts of a category are look-alikes. Their names are opaque codes of three consonants, unique
in the whole world, so that no name says anything about the thing. ``facts.json`` maps a photo's
path to a flat object: ``category``, ``concept``, ``split``, the six facts that identify (``color``,
``pattern``, ``material``, ``shape``, ``logo``, ``part``) and the three that do not (``pose``,
``state``, ``location``), all as values of :mod:`.language`. No pipeline stage but the measurement
of descriptions reads it.
"""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lewis_core.config.base import Runtime
from lewis_core.pocket.config import PocketWorldConfig
from lewis_core.pocket.render import render
from lewis_core.pocket.truth import PhotoFacts, build_questions
from lewis_core.pocket.world import (
    CATEGORIES,
    Identity,
    Scene,
    build_family,
    photo_facts,
    random_scene,
)
from lewis_core.records import JsonObject
from lewis_core.reporting import NullReporter, Reporter
from lewis_core.seeding import stable_rng

FACTS_FILE, QUESTIONS_FILE = "facts.json", "visual-qa.json"
CONSONANTS = "bcdfghjklmnpqrstvwxz"


class PlannedPhoto(NamedTuple):
    """One photo before it is rendered; ``path`` is relative to the root."""

    path: str
    identity: Identity
    scene: Scene


class PlannedConcept(NamedTuple):
    """One concept and all its photos."""

    name: str
    category: str
    photos: tuple[PlannedPhoto, ...]


def plan_world(config: PocketWorldConfig) -> tuple[PlannedConcept, ...]:
    """Decide everything about a world but its pixels; the same config gives the same plan."""
    categories = CATEGORIES if config.categories == "all" else config.categories
    names = _concept_names(config.seed)
    plan = []
    for category in sorted(categories):
        family = build_family(stable_rng(config.seed, "family", category), category, config.concepts_per_category)
        first = CATEGORIES.index(category) * config.concepts_per_category
        for index, identity in enumerate(family):
            name = names[first + index]
            photos = tuple(_plan_photos(config, name, identity))
            plan.append(PlannedConcept(name, category, photos))
    return tuple(plan)


def _concept_names(seed: int) -> list[str]:
    """Return all codes of three consonants, shuffled."""
    codes = [a + b + c for a in CONSONANTS for b in CONSONANTS for c in CONSONANTS]
    order = stable_rng(seed, "names").permutation(len(codes))
    return [codes[int(index)] for index in order]


def _plan_photos(config: PocketWorldConfig, name: str, identity: Identity) -> Iterator[PlannedPhoto]:
    for split, count in (("train", config.train_photos), ("test", config.test_photos)):
        rng = stable_rng(config.seed, "scenes", name, split)
        for index in range(count):
            path = f"{split}/{identity.category}/{name}/{index}.jpg"
            yield PlannedPhoto(path, identity, random_scene(rng, identity.category))


def list_facts(plan: tuple[PlannedConcept, ...]) -> dict[str, PhotoFacts]:
    """Return what is true of each photo, by path."""
    return {
        photo.path: {
            "concept": concept.name,
            "split": photo.path.partition("/")[0],
            **photo_facts(photo.identity, photo.scene),
        }
        for concept in plan
        for photo in concept.photos
    }


def render_photos(
    output_dir: Path,
    config: PocketWorldConfig,
    runtime: Runtime | None = None,
    reporter: Reporter | None = None,
) -> JsonObject:
    """Render a pocket world.

    Args:
        output_dir: Root of the data set; photos that are there are overwritten.
        config: Which world.
        runtime: ``num_workers`` processes render; the bytes do not depend on it.
        reporter: Receives progress.

    Returns:
        Counts of categories, concepts, photos and questions.
    """
    reporter, plan = reporter or NullReporter(), plan_world(config)
    num_workers = runtime.num_workers if runtime else 1
    done, total = 0, sum(len(concept.photos) for concept in plan)
    for count in _render_all(plan, output_dir, config, num_workers):
        done += count
        reporter.progress(done, total, "photos")
    facts = list_facts(plan)
    questions = build_questions(facts, config.seed)
    _write_json(output_dir / FACTS_FILE, facts)
    _write_json(output_dir / QUESTIONS_FILE, questions)
    return {
        "categories": len({concept.category for concept in plan}),
        "concepts": len(plan),
        "photos": done,
        "questions": sum(len(entry) for photos in questions.values() for entry in photos.values()),
    }


def _render_all(
    plan: tuple[PlannedConcept, ...], root: Path, config: PocketWorldConfig, num_workers: int
) -> Iterator[int]:
    """Render category by category; yields how many photos were added each time."""
    categories = sorted({concept.category for concept in plan})
    shares = [
        ([photo for c in plan if c.category == category for photo in c.photos], root, config) for category in categories
    ]
    if num_workers == 1 or len(shares) == 1:
        yield from map(_render_share, shares)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(shares)), mp_context=context) as pool:
        yield from pool.map(_render_share, shares)


def _render_share(share: tuple[list[PlannedPhoto], Path, PocketWorldConfig]) -> int:
    photos, root, config = share
    for photo in photos:
        path = root / photo.path
        path.parent.mkdir(parents=True, exist_ok=True)
        image = render(photo.identity, photo.scene, config.image_size)
        image.save(path, quality=config.quality)
    return len(photos)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
