"""How good packaged checkpoints are on look-alikes that no training has seen; fills the model card.

    python -m lewis_core.pocket.training.exam <models folder> <world folder>

All models run as users run them: transformers and open_clip, float32, one plain forward a batch.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from lewis_core.pocket.corruption import write_text
from lewis_core.pocket.language import (
    join_description,
    render_coarse,
    render_option,
    render_question,
)
from lewis_core.pocket.tasks import choose_options, judge_location, judge_state
from lewis_core.pocket.training.measure import area_under_curve
from lewis_core.pocket.truth import PhotoFacts, check_description, load_facts
from lewis_core.pocket.world import IDENTITY_KEYS
from lewis_core.prompts import CONCISE, LETTERS
from lewis_core.seeding import stable_rng

BATCH = 32
NUM_OPTIONS = 5


class Asked(NamedTuple):
    """A prompt with the photo that goes with it, if any, and the right answer."""

    prompt: str
    photo: str | None
    answer: str


class Checkpoint:
    """A packaged vision-language checkpoint and the world it is examined on."""

    def __init__(self, model_dir: Path, root: Path) -> None:
        """Load the model by its Auto classes."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.root = root
        self.processor: Any = AutoProcessor.from_pretrained(model_dir)  # type: ignore[no-untyped-call]
        model: Any = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.float32)
        self.model = model.eval()

    def encode(self, rows: Sequence[Asked]) -> Any:
        """Turn prompts and photos into a left-padded batch."""
        texts, images = [], []
        for row in rows:
            content: list[dict[str, str]] = [{"type": "text", "text": row.prompt}]
            if row.photo is not None:
                content.insert(0, {"type": "image"})
                images.append(Image.open(self.root / row.photo))
            texts.append(
                self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            )
        return self.processor(text=texts, images=images or None, padding=True, return_tensors="pt")

    @torch.no_grad()
    def answer_logits(self, rows: Sequence[Asked], answers: Sequence[str]) -> torch.Tensor:
        """Return logits ``(rows, answers)`` of the first answer token."""
        ids = [self.processor.tokenizer.encode(answer)[0] for answer in answers]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt))
        logits = torch.zeros(len(rows), len(answers))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            batch = self.encode([rows[index] for index in part])
            logits[part] = self.model(**batch, logits_to_keep=1).logits[:, -1, ids].float()
        return logits

    @torch.no_grad()
    def describe(self, rows: Sequence[Asked]) -> list[str]:
        """Answer greedily in words."""
        texts: list[str] = []
        for start in range(0, len(rows), BATCH):
            batch = self.encode(rows[start : start + BATCH])
            out = self.model.generate(**batch, max_new_tokens=96, do_sample=False)
            new = out[:, batch["input_ids"].shape[1] :]
            texts += self.processor.batch_decode(new, skip_special_tokens=True)
        return texts


def _families(facts: dict[str, PhotoFacts], split: str) -> dict[str, dict[str, list[str]]]:
    """Return photo paths by category and concept."""
    families: dict[str, dict[str, list[str]]] = {}
    for path, known in sorted(facts.items()):
        if known["split"] == split:
            concepts = families.setdefault(known["category"], {})
            concepts.setdefault(known["concept"], []).append(path)
    return families


def _true_description(known: PhotoFacts, name: str, keys: Sequence[str] = IDENTITY_KEYS) -> str:
    text = write_text(stable_rng(3, "exam", name), dict(known), keys)
    return join_description(render_coarse(known["category"]), text)


def _choice_accuracy(checkpoint: Checkpoint, rows: Sequence[Asked]) -> float:
    logits = checkpoint.answer_logits(rows, LETTERS[:6])
    right = [LETTERS[int(best)] == row.answer for best, row in zip(logits.argmax(1), rows, strict=True)]
    return float(np.mean(right))


def examine_matching(checkpoint: Checkpoint, facts: dict[str, PhotoFacts]) -> dict[str, float]:
    """Judge true descriptions against photos of the thing and of its look-alikes."""
    rows, games = [], []
    for category, concepts in _families(facts, "test").items():
        for name, paths in concepts.items():
            rng = stable_rng(4, "game", name)
            others = [other for other in concepts if other != name]
            chosen = rng.choice(len(others), size=NUM_OPTIONS, replace=False)
            photos = [paths[0], *(concepts[others[int(i)]][0] for i in chosen)]
            prompt = CONCISE.match(category, _true_description(facts[paths[0]], name))
            games.append(len(photos))
            for index, photo in enumerate(photos):
                rows.append(Asked(prompt, photo, "yes" if index == 0 else "no"))
    logits = checkpoint.answer_logits(rows, ("yes", "no"))
    scores, truth = logits[:, 0] - logits[:, 1], torch.tensor([r.answer == "yes" for r in rows])
    per_game = scores.view(len(games), games[0])
    return {
        "match_pairs": float(len(rows)),
        "match_auc": area_under_curve(scores, truth),
        "match_accuracy": float(((scores > 0) == truth).float().mean()),
        "match_true_yes": float((scores[truth] > 0).float().mean()),
        "match_false_no": float((scores[~truth] <= 0).float().mean()),
        "game_6_way": float((per_game.argmax(1) == 0).float().mean()),
    }


def examine_identification(checkpoint: Checkpoint, facts: dict[str, PhotoFacts]) -> float:
    """Choose among true descriptions of five look-alikes."""
    rows = []
    for category, concepts in _families(facts, "test").items():
        for name, paths in concepts.items():
            rng = stable_rng(4, "options", name)
            others = [other for other in concepts if other != name]
            chosen = [others[int(i)] for i in rng.permutation(len(others))[: NUM_OPTIONS - 1]]
            position = int(rng.integers(NUM_OPTIONS))
            chosen.insert(position, name)
            texts = [_true_description(facts[concepts[other][0]], other) for other in chosen]
            prompt = CONCISE.identification(category, texts)
            rows.append(Asked(prompt, paths[0], LETTERS[position]))
    return _choice_accuracy(checkpoint, rows)


def examine_questions(checkpoint: Checkpoint, facts: dict[str, PhotoFacts]) -> dict[str, float]:
    """Ask about identity facts with the image, the true description, or both."""
    rows: dict[str, list[Asked]] = {"text": [], "both": []}
    by_key: dict[str, list[Asked]] = {key: [] for key in IDENTITY_KEYS}
    for category, concepts in _families(facts, "test").items():
        for name, paths in concepts.items():
            known, rng = facts[paths[0]], stable_rng(4, "questions", name)
            description = _true_description(known, name)
            for key in IDENTITY_KEYS:
                values, position = choose_options(rng, key, category, known[key], 4)
                options = [render_option(key, value) for value in values]
                question, letter = render_question(key, category), LETTERS[position]
                bare = CONCISE.vqa(category, None, question, options)
                full = CONCISE.vqa(category, description, question, options)
                by_key[key].append(Asked(bare, paths[0], letter))
                rows["text"].append(Asked(full, None, letter))
                rows["both"].append(Asked(full, paths[0], letter))
    results = {f"vqa_{mode}": _choice_accuracy(checkpoint, asked) for mode, asked in rows.items()}
    results |= {f"sees_{key}": _choice_accuracy(checkpoint, v) for key, v in by_key.items()}
    results["vqa_image"] = float(np.mean([results[f"sees_{key}"] for key in IDENTITY_KEYS]))
    return results


def examine_judging(checkpoint: Checkpoint, facts: dict[str, PhotoFacts]) -> dict[str, float]:
    """Ask whether texts mention state or location."""
    results = {}
    for name, task in (("judge_state", judge_state), ("judge_location", judge_location)):
        rng = stable_rng(4, name)
        rows = [Asked(e.prompt, None, e.answer) for e in (task(rng, f) for f in facts.values())]
        logits = checkpoint.answer_logits(rows, ("yes", "no"))
        said = ["yes" if yes > no else "no" for yes, no in logits.tolist()]
        results[name] = float(np.mean([s == r.answer for s, r in zip(said, rows, strict=True)]))
    return results


def examine_speaking(checkpoint: Checkpoint, facts: dict[str, PhotoFacts]) -> dict[str, float]:
    """Describe one photo of each concept greedily, and read it exactly."""
    photos = [paths[0] for c in _families(facts, "train").values() for paths in c.values()]
    rows = [Asked(CONCISE.speaker(facts[photo]["category"]), photo, "") for photo in photos]
    texts = checkpoint.describe(rows)
    checks = []
    for photo, text in zip(photos, texts, strict=True):
        coarse = text.partition("<coarse>")[2].partition("</coarse>")[0]
        detailed = text.partition("<detailed>")[2].partition("</detailed>")[0]
        checks.append(check_description(detailed, facts[photo], coarse))
    named = sum(len(check.named) for check in checks)
    return {
        "says_category": float(np.mean([bool(check.category_right) for check in checks])),
        "says_state": float(np.mean([check.mentions_state for check in checks])),
        "says_location": float(np.mean([check.mentions_location for check in checks])),
        "says_identity_facts": named / len(checks),
        "identity_precision": sum(len(check.right) for check in checks) / max(1, named),
        "unparsed_frac": float(np.mean([check.num_unparsed > 0 for check in checks])),
        "repeated_frac": float(np.mean([check.num_repeated > 0 for check in checks])),
    }


@torch.no_grad()
def examine_clip(model_dir: Path, root: Path, facts: dict[str, PhotoFacts]) -> dict[str, float]:
    """Retrieve a test photo's concept among its category's, by a training photo or by text."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model_dir}")
    tokenizer, model = open_clip.get_tokenizer(f"local-dir:{model_dir}"), model.eval()

    def embed(photo: str) -> torch.Tensor:
        image = preprocess(Image.open(root / photo)).unsqueeze(0)
        features: torch.Tensor = model.encode_image(image, normalize=True)
        return features[0]

    hits: dict[str, list[float]] = {"image": [], "text": [], "top5": []}
    train = _families(facts, "train")
    for category, concepts in _families(facts, "test").items():
        names = list(concepts)
        references = torch.stack([embed(train[category][name][0]) for name in names])
        texts = [_true_description(facts[concepts[name][0]], name) for name in names]
        captions = model.encode_text(tokenizer(texts), normalize=True)
        for index, name in enumerate(names):
            query = embed(concepts[name][0])
            order = (references @ query).argsort(descending=True).tolist()
            hits["image"].append(float(order[0] == index))
            hits["top5"].append(float(index in order[:5]))
            hits["text"].append(float(int((captions @ query).argmax()) == index))
    return {f"clip_{name}": float(np.mean(values)) for name, values in hits.items()}


def examine(models_dir: Path, root: Path) -> dict[str, dict[str, float]]:
    """Examine all checkpoints of a folder on a rendered world."""
    facts = load_facts(root)
    results: dict[str, dict[str, float]] = {}
    for name in ("base", "listener"):
        checkpoint = Checkpoint(models_dir / name, root)
        results[name] = examine_matching(checkpoint, facts)
        results[name]["identify_5_way"] = examine_identification(checkpoint, facts)
        results[name] |= examine_questions(checkpoint, facts)
        results[name] |= examine_judging(checkpoint, facts)
        results[name] |= examine_speaking(checkpoint, facts)
    results["clip"] = examine_clip(models_dir / "clip", root, facts)
    return results


if __name__ == "__main__":
    found = examine(Path(sys.argv[1]), Path(sys.argv[2]))
    rounded = {name: {k: round(v, 3) for k, v in r.items()} for name, r in found.items()}
    sys.stdout.write(json.dumps(rounded, indent=1) + "\n")
