"""How well a vision-language checkpoint in training does on things it has not seen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lewis_core.pocket.language import render_option, render_question
from lewis_core.pocket.tasks import TASKS, Exercise, Task
from lewis_core.pocket.training.encoding import IGNORED, ExerciseEncoder
from lewis_core.pocket.training.twin import QwenTwin
from lewis_core.pocket.world import FACT_KEYS, Facts
from lewis_core.seeding import stable_rng

ROWS = 256
YES_NO_TASKS = ("match", "recognise", "judge_state", "judge_location")
CHOICE_TASKS = ("identify", "vqa", "vqa_text")


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """Return the share of (positive, negative) pairs that the scores order rightly; ties half."""
    positive, negative = scores[labels], scores[~labels]
    difference = positive[:, None] - negative[None, :]
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())


def ask_key(key: str) -> Task:
    """Return the exercise that asks for one fact in words."""

    def ask(rng: object, facts: Facts) -> Exercise:
        del rng
        answer = render_option(key, facts[key])
        return Exercise(render_question(key, facts["category"]), answer, True)

    return ask


class Examiner:
    """Sets a model the same exercises every time: one of each kind per validation photo."""

    def __init__(self, encoder: ExerciseEncoder, pixels: Tensor, facts: Sequence[Facts], device: str) -> None:
        """Take photos ``(N, S, S, 3)`` and what is true of them."""
        self.encoder, self.pixels, self.facts, self.device = encoder, pixels, facts, device

    @torch.no_grad()
    def examine(self, model: QwenTwin) -> dict[str, float]:
        """Return accuracies by task, AUC of yes/no tasks, and accuracy by fact."""
        parts = range(0, len(self.facts), ROWS)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            images = [self.pixels[k : k + ROWS].permute(0, 3, 1, 2) for k in parts]
            visual = torch.cat([model.see(image.to(self.device)) for image in images])
            results: dict[str, float] = {}
            for task in (*YES_NO_TASKS, *CHOICE_TASKS):
                results |= self._grade(model, visual, task, TASKS[task])
            for key in FACT_KEYS:
                results |= self._grade(model, visual, f"says_{key}", ask_key(key))
        return results

    def _grade(self, model: QwenTwin, visual: Tensor, name: str, task: Task) -> dict[str, float]:
        rng = stable_rng(5, name)
        exercises = [task(rng, facts) for facts in self.facts]
        right, scores = [], []
        for start in range(0, len(exercises), ROWS):
            rows = exercises[start : start + ROWS]
            ids, labels = (torch.as_tensor(t, device=self.device) for t in self.encoder.pad_batch(rows))
            seen = visual[start : start + ROWS] if rows[0].has_image else None
            logits = model.logits(model.read(ids, seen)[:, :-1]).float()
            targets = labels[:, 1:]
            good = (logits.argmax(-1) == targets) | (targets == IGNORED)
            right.append(good.all(1).float())
            first = (targets != IGNORED).float().argmax(1)
            answers = logits[torch.arange(len(rows), device=self.device), first]
            scores.append(answers[:, self.encoder.yes] - answers[:, self.encoder.no])
        results = {name: float(torch.cat(right).mean())}
        if name in YES_NO_TASKS:
            truth = torch.tensor([exercise.answer == "yes" for exercise in exercises])
            results[f"{name}_auc"] = area_under_curve(torch.cat(scores).cpu(), truth)
        return results
