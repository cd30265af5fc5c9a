"""Exercises with known answers, made from facts: what the pocket models are trained and tested on.

An exercise is a prompt of the ``concise`` set, its only right answer, and whether an image goes
with it. Speaker exercises imitate captions from the web: sparse, a little wrong, and full of state
and location, so that the game has something to teach.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lewis_core.pocket.corruption import (
    break_text,
    corrupt_facts,
    describe_other_kind,
    random_keys,
    unfit_description,
    write_text,
    wrong_value,
)
from lewis_core.pocket.language import (
    PLACE_BY_LOCATION,
    VALUES,
    join_description,
    parse_coarse,
    render_coarse,
    render_completion,
    render_option,
    render_question,
    with_article,
)
from lewis_core.pocket.world import (
    CATEGORIES,
    FACT_KEYS,
    IDENTITY_KEYS,
    TRANSIENT_KEYS,
    Facts,
    pick,
    pick_other,
)
from lewis_core.prompts import CONCISE, LETTERS

LIST_PROMPT = "List every attribute of the {category}."
CAPTION_MENTION_FRAC: Mapping[str, float] = {
    "color": 0.60,
    "pattern": 0.30,
    "material": 0.20,
    "shape": 0.15,
    "logo": 0.25,
    "part": 0.20,
    "pose": 0.40,
    "state": 0.45,
    "location": 0.75,
}
"""How often a caption of the web kind mentions a fact."""
CAPTION_ERROR_FRAC = 0.04
COARSE_FRAC = 0.8
MAX_OPTIONS = 6


class Exercise(NamedTuple):
    """A prompt, its only right answer, and whether an image goes with it."""

    prompt: str
    answer: str
    has_image: bool


def mixed_keys(rng: np.random.Generator) -> list[str]:
    """Draw which facts a description mentions: from a web caption's to all of them."""
    draw = rng.random()
    if draw < 0.3:
        keys = [key for key in FACT_KEYS if rng.random() < CAPTION_MENTION_FRAC[key]]
    elif draw < 0.75:
        keys = random_keys(rng, rng.uniform(0.15, 1))
    else:
        keys = random_keys(rng, rng.uniform(0.1, 1))
        keys += random_keys(rng, rng.uniform(0, 1), TRANSIENT_KEYS)
    return keys or [pick(rng, FACT_KEYS)]


def write_caption(rng: np.random.Generator, facts: Facts) -> str:
    """Write what an untrained speaker says: much scene, little identity, some errors."""
    category = facts["category"]
    keys = [key for key in FACT_KEYS if rng.random() < CAPTION_MENTION_FRAC[key]] or ["location"]
    said = dict(facts)
    for key in keys:
        if key in IDENTITY_KEYS and rng.random() < CAPTION_ERROR_FRAC:
            said[key] = wrong_value(rng, key, category, facts[key])
    noun, place = with_article(category), PLACE_BY_LOCATION[facts["location"]]
    thinking = pick(rng, [f"I see {noun}.", f"I see {noun} {place}.", f"I see {noun}. It is {facts['state']}."])
    return render_completion(thinking, render_coarse(category), write_text(rng, said, keys))


def _with_coarse(rng: np.random.Generator, category: str, detailed: str) -> str:
    if rng.random() < COARSE_FRAC:
        return join_description(render_coarse(category), detailed)
    return detailed


def judged_description(rng: np.random.Generator, facts: Facts) -> tuple[str, bool]:
    """Write a description and tell whether a listener should accept it for a photo."""
    keys = mixed_keys(rng)
    if rng.random() < 0.5:
        return _with_coarse(rng, facts["category"], write_text(rng, facts, keys)), True
    has_coarse = rng.random() < COARSE_FRAC
    return unfit_description(rng, facts, keys, has_coarse=has_coarse), False


def speak(rng: np.random.Generator, facts: Facts) -> Exercise:
    """Describe the thing as a web caption would."""
    return Exercise(CONCISE.speaker(facts["category"]), write_caption(rng, facts), True)


def match(rng: np.random.Generator, facts: Facts) -> Exercise:
    """Say whether a description fits the image."""
    description, fits = judged_description(rng, facts)
    return Exercise(CONCISE.match(facts["category"], description), _yes_no(fits), True)


def recognise(rng: np.random.Generator, facts: Facts) -> Exercise:
    """Say whether the described thing is in the image; without a description, whether its kind is."""
    draw, category = rng.random(), facts["category"]
    if draw < 0.08:
        asked = category if rng.random() < 0.5 else pick_other(rng, CATEGORIES, category)
        return Exercise(CONCISE.recognition(asked, None), _yes_no(asked == category), True)
    if draw < 0.2:
        coarse, detailed = describe_other_kind(rng, facts, mixed_keys(rng))
        other = parse_coarse(coarse) or category
        description = _with_coarse(rng, other, detailed)
        return Exercise(CONCISE.recognition(other, description), "no", True)
    description, fits = judged_description(rng, facts)
    return Exercise(CONCISE.recognition(category, description), _yes_no(fits), True)


def _wrong_option(rng: np.random.Generator, facts: Facts, keys: Sequence[str]) -> str:
    """Describe another thing, near or far, or write an unfit text about this one."""
    if rng.random() < 0.06:
        return break_text(rng, facts, keys)
    if rng.random() < 0.1:
        everything = {key: wrong_value(rng, key, facts["category"], facts[key]) for key in keys}
        return write_text(rng, {**facts, **everything}, keys)
    return write_text(rng, corrupt_facts(rng, facts, keys), keys)


def identify(rng: np.random.Generator, facts: Facts) -> Exercise:
    """Choose the description that fits, among two to six."""
    category, num_options = facts["category"], 2 + int(rng.integers(MAX_OPTIONS - 1))
    shared_keys = mixed_keys(rng) if rng.random() < 0.5 else None
    has_coarse, answer = rng.random() < COARSE_FRAC, int(rng.integers(num_options))
    options = []
    for index in range(num_options):
        keys = shared_keys or mixed_keys(rng)
        right = index == answer
        text = write_text(rng, facts, keys) if right else _wrong_option(rng, facts, keys)
        options.append(join_description(render_coarse(category), text) if has_coarse else text)
    return Exercise(CONCISE.identification(category, options), LETTERS[answer], True)


def choose_options(
    rng: np.random.Generator, key: str, category: str, truth: str, num_options: int
) -> tuple[list[str], int]:
    """Draw answer options from a fact's own values.

    Returns:
        Up to ``num_options`` different values in random order (fewer if the fact has fewer), and
        the position of the truth.
    """
    wrong = [value for value in VALUES[key, category] if value != truth]
    chosen = rng.choice(len(wrong), size=min(num_options - 1, len(wrong)), replace=False)
    options = [wrong[int(index)] for index in chosen]
    position = int(rng.integers(len(options) + 1))
    options.insert(position, truth)
    return options, position


def _ask(rng: np.random.Generator, facts: Facts, key: str, description: str | None, *, has_image: bool) -> Exercise:
    category, num_options = facts["category"], 2 + int(rng.integers(3))
    values, position = choose_options(rng, key, category, facts[key], num_options)
    options = [render_option(key, value) for value in values]
    question = render_question(key, category)
    prompt = CONCISE.vqa(category, description, question, options)
    return Exercise(prompt, LETTERS[position], has_image)


def _question_key(rng: np.random.Generator) -> str:
    return pick(rng, IDENTITY_KEYS if rng.random() < 0.75 else TRANSIENT_KEYS)


def answer_from_image(rng: np.random.Generator, facts: Facts) -> Exercise:
    """Answer a multiple-choice question from the image, with or without a description."""
    key, description = _question_key(rng), None
    if rng.random() < 0.5:
        description = _with_coarse(rng, facts["category"], write_text(rng, facts, mixed_keys(rng)))
    return _ask(rng, facts, key, description, has_image=True)


def answer_from_text(rng: np.random.Generator, facts: Facts) -> Exercise:
    """Answer a multiple-choice question from the description alone.

    Now and then the description does not say it, or there is none; as the truth's position is
    random, the letters are then equally likely.
    """
    key, keys = _question_key(rng), mixed_keys(rng)
    draw = rng.random()
    if draw < 0.03:
        return _ask(rng, facts, key, None, has_image=False)
    keys = [other for other in keys if other != key]
    if draw > 0.12 or not keys:
        keys.append(key)
    description = _with_coarse(rng, facts["category"], write_text(rng, facts, keys))
    return _ask(rng, facts, key, description, has_image=False)


def answer_openly(rng: np.random.Generator, facts: Facts) -> Exercise:
    """Answer a question about the image in words."""
    key = pick(rng, FACT_KEYS)
    answer = render_option(key, facts[key])
    return Exercise(render_question(key, facts["category"]), answer, True)


def list_attributes(rng: np.random.Generator, facts: Facts) -> Exercise:
    """Name all facts in a fixed order; the densest lesson in seeing."""
    del rng
    answer = ", ".join(facts[key] for key in FACT_KEYS)
    return Exercise(LIST_PROMPT.format(category=facts["category"]), answer, True)


def _judge(rng: np.random.Generator, facts: Facts, judged: Sequence[str]) -> tuple[str, bool]:
    keys = [key for key in mixed_keys(rng) if key not in judged]
    mentions = bool(rng.random() < 0.5)
    if mentions or not keys:
        keys = keys or [pick(rng, IDENTITY_KEYS)]
        keys += [pick(rng, judged)] if mentions else []
    return _with_coarse(rng, facts["category"], write_text(rng, facts, keys)), mentions


def judge_state(rng: np.random.Generator, facts: Facts) -> Exercise:
    """Say whether a text mentions pose or state."""
    text, mentions = _judge(rng, facts, ("pose", "state"))
    return Exercise(CONCISE.judge_state(text), _yes_no(mentions), False)


def judge_location(rng: np.random.Generator, facts: Facts) -> Exercise:
    """Say whether a text mentions the location."""
    text, mentions = _judge(rng, facts, ("location",))
    return Exercise(CONCISE.judge_location(text), _yes_no(mentions), False)


def _yes_no(answer: bool) -> str:
    return "yes" if answer else "no"


Task = Callable[[np.random.Generator, Facts], Exercise]

TASKS: Mapping[str, Task] = {
    "list": list_attributes,
    "open": answer_openly,
    "speak": speak,
    "match": match,
    "recognise": recognise,
    "identify": identify,
    "vqa": answer_from_image,
    "vqa_text": answer_from_text,
    "judge_state": judge_state,
    "judge_location": judge_location,
}
"""Every kind of exercise by name."""
