"""The page that goes with a trained adapter or model: what it is made of, how, what it reached, its limits."""

import json
from collections.abc import Mapping, Sequence

from lewis_core.config.grpo import GrpoConfig
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.records import JsonObject

CARD = "README.md"
_SHOWN = (
    ("reward", "reward", "weighted sum of all rewards"),
    (
        "listener/accuracy",
        "listener accuracy",
        "share of completions with which the training listener finds the target",
    ),
    ("listener/posterior", "listener posterior", "mean share of the target among the candidates"),
    ("held_out/accuracy", "held-out accuracy", "the same by a listener that was not trained against"),
    ("answers/accuracy", "right answers", "share of a listener's answers that are right, unreadable ones are not"),
    ("answers/yes", "answers yes", "share of a listener's answers"),
    ("held_out_answers/accuracy", "right answers, held-out", "greedy, about things that are not trained on"),
    ("held_out_answers/yes", "answers yes, held-out", "share of these"),
    ("held_out/gap", "private code", "accuracy of the training listener minus that of the held-out one, same texts"),
    ("kl", "KL divergence", "nats per token from the base"),
    ("completions/mean_length", "length", "tokens of a completion"),
    ("hacks/state", "state", "share of completions with a passing state"),
    ("hacks/location", "location", "share of completions with a place"),
    ("hacks/malformed", "malformed", "share of completions that cannot be read"),
)


_AIMS = {
    True: (
        "GRPO of a vision-language model whose descriptions of personal things are rewarded when a listener finds the "
        "thing by them."
    ),
    False: (
        "GRPO of a vision-language model that is asked yes-or-no questions about photos of personal things, and "
        "rewarded for the right answer."
    ),
}
"""What was trained: a speaker or not."""
_LIMITS = {
    True: """\
- It was trained to be understood by one listener. Where a held-out listener understands less, part of its language is
  a private code; compare both before use.
- Descriptions may claim what is not in the photo: the listener cannot tell.
- It describes things; people, and what identifies them, were no part of its training, and it must not be used to
  identify them.""",
    False: """\
- It was trained on one kind of question, and on descriptions of one speaker or none; other questions may have become
  worse. Its yes is no probability that was calibrated.
- It was asked about things; people, and what identifies them, were no part of its training, and it must not be used to
  identify them.""",
}


def render_card(config: GrpoConfig, metrics: Sequence[Mapping[str, float]], lineage: JsonObject) -> str:
    """Write the model card; the same run writes the same bytes.

    Args:
        config: Settings of training.
        metrics: Rows of the metrics file.
        lineage: Where it comes from: digests, and who judged.
    """
    base, is_speaker, is_whole = config.model.path, isinstance(config, TrainSpeakerConfig), config.full_finetuning
    front = {
        "base_model": base,
        "library_name": "transformers" if is_whole else "peft",
        "pipeline_tag": "image-text-to-text",
    }
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    what = "All weights of a language model" if is_whole else "A LoRA adapter"
    return f"""\
---
{head}
tags: [{"" if is_whole else "lora, "}grpo, lewis]
---

# {"Trained from" if is_whole else "Adapter for"} {base}

{what}, trained with the Lewis game: {_AIMS[is_speaker]}

## Where it comes from

{_table(("", ""), [(key.replace("_", " "), str(value)) for key, value in lineage.items()])}

## Results at the end of training

On training games, with sampling; evaluations of held-out things are in the run's report.

{_table(("", "first step", "last step", "what it is"), _results(metrics))}

## Settings

{_table(("setting", "value"), _settings(config))}

## How to use it

{_use_of_model() if is_whole else _use_of_adapter(base)}

## Limits

{_LIMITS[is_speaker]}
- It has the limits and the licence of its base, and of the photos that it was trained on.
"""


def _use_of_adapter(base: str) -> str:
    return f"""\
With the settings' model `{base}` and this folder as its `adapter`, or:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained({base!r}), "this folder")
processor = AutoProcessor.from_pretrained({base!r})
```

Merging it into bfloat16 weights changes answers: `python -m lewis_core.training.export` measures by how much."""


def _use_of_model() -> str:
    return """\
With this folder as the settings' model, or:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this folder")
processor = AutoProcessor.from_pretrained("this folder")
```"""


def _results(metrics: Sequence[Mapping[str, float]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, shown, meaning in _SHOWN:
        values = [row[name] for row in metrics if name in row]
        if values:
            rows.append((shown, f"{values[0]:.4g}", f"{values[-1]:.4g}", meaning))
    return rows


def _settings(config: GrpoConfig) -> Sequence[tuple[str, ...]]:
    """Settings that decide the result, flat, by name."""

    def flatten(value: object, prefix: str) -> list[tuple[str, str]]:
        if isinstance(value, dict) and value:
            return [pair for key, item in value.items() for pair in flatten(item, f"{prefix}{key}.")]
        return [(prefix.rstrip("."), f"`{json.dumps(value)}`")]

    plain = config.model_dump(mode="json", exclude={"watchdogs", "patience", "distributed", "memory_check"})
    return sorted(flatten(plain, ""))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
