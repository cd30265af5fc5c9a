"""Sample completions as a page: the photo, what was written about it, and what the listener made of it."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment
from PIL import Image

from lewis_core.errors import ImageError

MAX_ROWS = 12
"""Completions on a page."""
THUMBNAIL = 112
"""Longest side of a photo on the page, in pixels."""
Load = Callable[[str], Image.Image]
_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Step {{ step }}: sample completions</title>
<style>
 body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; max-width: 72rem }
 table { border-collapse: collapse; width: 100% } td, th { vertical-align: top; padding: .5rem; text-align: left }
 tr { border-top: 1px solid #ddd } img { display: block; border-radius: 3px }
 .candidates { display: flex; gap: .4rem; flex-wrap: wrap } figure { margin: 0; padding: 3px; border: 2px solid #ddd }
 figure.target { border-color: #187a3c } figcaption { font-size: 12px; font-variant-numeric: tabular-nums }
 .text { white-space: pre-wrap; overflow-wrap: anywhere } .scores { font-size: 12px; color: #555 }
</style>
<h1>Step {{ step }}: {{ rows|length }} of {{ total }} completions</h1>
<p>Under each candidate: the listener's P(yes). The target has a green frame.</p>
<table><tr><th>photo</th><th>completion</th><th>candidates</th></tr>
{% for row in rows %}
<tr><td>{% for photo in row.photos %}{{ picture(photo) }}{% endfor %}</td>
<td><div class="text">{{ row.completion }}</div>
<div class="scores">{% for name, value in row.scores %}{{ name }} {{ value }}{{ ", " if not loop.last }}{% endfor %}
{% if row.noticed %}<br>noticed: {{ row.noticed }}{% endif %}</div></td>
<td><div class="candidates">{% for one in row.candidates %}
<figure{% if one.is_target %} class="target"{% endif %}>{{ picture(one.photo) }}
<figcaption>{{ one.shown }}{% if one.is_target %} · target{% endif %}</figcaption></figure>
{% endfor %}</div></td></tr>
{% endfor %}
</table></html>
""")


class Candidate(NamedTuple):
    """One of the photos that the listener chose from."""

    photo: str
    shown: str
    is_target: bool


class Shown(NamedTuple):
    """A row of the page."""

    photos: Sequence[str]
    completion: str
    scores: Sequence[tuple[str, str]]
    noticed: str
    candidates: Sequence[Candidate]


def sample_rows(logs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A step's completions, from what TRL has logged of it: one row each, with rewards, advantage and extra columns."""
    if same := set(logs["rewards"]) & set(logs["extra"]):
        raise ValueError(f"a reward and what is logged beside it have the same name: {', '.join(sorted(same))}")
    columns = {
        "completion": [messages[-1]["content"] for messages in logs["completion"]],
        **{name: list(values) for name, values in logs["rewards"].items()},
        **{name: list(values) for name, values in logs["extra"].items()},
        "advantage": list(logs["advantages"]),
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=False)]


def render_page(step: int, samples: Sequence[Mapping[str, Any]], load_photo: Load, load_candidate: Load) -> str:
    """Render a step's completions, evenly chosen from all of them.

    Args:
        step: The step.
        samples: Rows of the trainer's samples.
        load_photo: Finds what the speaker saw.
        load_candidate: Finds what the listener saw.
    """
    from markupsafe import Markup, escape

    count = min(MAX_ROWS, len(samples))
    chosen = [samples[index * len(samples) // count] for index in range(count)]
    queries = {photo for row in chosen for photo in row.get("photos") or ()}
    uris: dict[str, str] = {}

    def picture(reference: str) -> Markup:
        if reference not in uris:
            uris[reference] = _data_uri(load_photo if reference in queries else load_candidate, reference)
        uri, alt = uris[reference], escape(reference)
        return Markup('<img src="{}" alt="{}" title="{}">').format(uri, alt, alt) if uri else Markup(f"<i>{alt}</i>")

    return _PAGE.render(step=step, total=len(samples), rows=[_shown(row) for row in chosen], picture=picture)


def _shown(row: Mapping[str, Any]) -> Shown:
    candidates = row.get("candidates") or ()
    chances = row.get("yes_probability") or [None] * len(candidates)
    target = row.get("target_index")
    skipped = ("completion", "noticed", "candidates", "photos", "yes_probability", "target_index")
    scores = [(name, f"{value + 0.0:.3g}") for name, value in row.items() if name not in skipped and _is_number(value)]
    return Shown(
        photos=row.get("photos") or (),
        completion=str(row.get("completion", "")),
        scores=scores,
        noticed=row.get("noticed") or "",
        candidates=[
            Candidate(photo, "not judged" if chance is None else f"{chance:.3f}", index == target)
            for index, (photo, chance) in enumerate(zip(candidates, chances, strict=True))
        ],
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _data_uri(load: Load, reference: str) -> str:
    """A small JPEG; empty if the photo cannot be read, so that the page shows its name instead."""
    try:
        image = load(reference).convert("RGB")
    except ImageError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
