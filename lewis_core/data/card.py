"""The card of a data set: what it is, what its columns mean, how it is read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lewis_core.data.rows import COLUMNS
from lewis_core.prompts import PromptSet
from lewis_core.prompts.pairs import pair_prompt
from lewis_core.records import Game

if TYPE_CHECKING:
    from datasets import Features

_ABOUT = {
    "speaker": """\
# Speaker games

Training rows of the Lewis game: a speaker describes the query photo so that a listener finds another photo of the same
thing among look-alikes. Paths are relative to the data root.""",
    "listener": """\
# Listener pairs

Training rows for a listener of the Lewis game: do two photos show the same thing, or two look-alikes? Paths are
relative to the data root.""",
}
_CARD = """\
---
task_categories:
- {task}
language:
- en
configs:
- config_name: default
  data_files: dataset/*.arrow
---

{about}

{counts}

{answers}

| column | type | meaning |
|---|---|---|
{columns}

Built from games `{digest}` with the `{prompts}` prompts:

```
{example}
```

Photos are {photos}.

```python
from datasets import load_dataset, load_from_disk

rows = load_from_disk("dataset")
row_by_row = load_dataset("arrow", data_files="dataset/*.arrow", split="train", streaming=True)
```
"""


def render_card(
    games: Sequence[Game],
    role: str,
    features: "Features",
    answers: Mapping[str, int],
    digest: str,
    words: PromptSet,
) -> str:
    """Write the card.

    Args:
        games: The games that rows were made from.
        role: Whose rows.
        features: Types of the columns.
        answers: How often each answer is the right one: positions of the target, or kinds of pairs.
        digest: Of the games.
        words: Prompts.
    """
    sizes = Counter(game.category for game in games)
    widths = sorted({len(game.candidates) for game in games})
    counts = [
        f"- {len(games)} games of {len({game.concept for game in games})} concepts, "
        f"{' or '.join(map(str, widths))} candidates each",
        *(f"- {category}: {count} games" for category, count in sorted(sizes.items())),
    ]
    types = {name: _type_name(feature) for name, feature in features.items()}
    is_speaker, word = role == "speaker", games[0].category_word
    return _CARD.format(
        task="image-to-text" if is_speaker else "visual-question-answering",
        about=_ABOUT[role],
        counts="\n".join(counts),
        answers=_balance("position of the target" if is_speaker else "pair", answers),
        columns="\n".join(f"| `{name}` | {types[name]} | {meaning} |" for name, meaning in COLUMNS[role].items()),
        digest=digest[:12],
        prompts=words.name,
        example=words.speaker(word) if is_speaker else pair_prompt(words.name, word),
        photos="stored in the rows" if "Image" in " ".join(types.values()) else "not stored in the rows",
    )


def _balance(what: str, answers: Mapping[str, int]) -> str:
    total = sum(answers.values())
    lines = [f"| {answer} | {count} | {count / total:.1%} |" for answer, count in answers.items()]
    return "\n".join([f"| {what} | rows | share |", "|---|---|---|", *lines])


def _type_name(feature: Any) -> str:
    """Name a column's type for people."""
    if hasattr(feature, "feature"):
        inner = feature.feature
        return f"list of {'messages' if isinstance(inner, dict) else _type_name(inner)}"
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__
