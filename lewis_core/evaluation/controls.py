"""Control arms that need no model: what answering without looking would score; and whose words are the wrong ones.

Arms that are asked (without image, without description, …) lie with the evaluations; their predictions carry the arm's
name in the tag ``mode`` and go to ``controls.jsonl``.
"""

from collections import Counter
from collections.abc import Sequence

from lewis_core.evaluation.io import Subject
from lewis_core.evaluation.records import Prediction
from lewis_core.evaluation.statistics import Measure, mean_measure
from lewis_core.seeding import stable_rng

NO_DESCRIPTION, WRONG_DESCRIPTION, NO_IMAGE = "no_description", "wrong_description", "no_image"
IMAGE_ONLY, IMAGE_AND_TEXT, TEXT_ONLY, BLIND = "image_only", "image_and_text", "text_only", "blind"


def always_a(predictions: Sequence[Prediction]) -> Measure:
    """Accuracy of answering the first option every time."""
    return mean_measure([(p.concept, float(p.expected == 0)) for p in predictions])


def majority_position(predictions: Sequence[Prediction]) -> Measure:
    """Accuracy of answering the position that is right most often; the first of several such.

    It is chosen by the very items that it is scored on, so with few items it lies above the chance level.
    """
    right = Counter(p.expected for p in predictions if p.expected is not None)
    top = min(right, key=lambda place: (-right[place], place), default=0)
    return mean_measure([(p.concept, float(p.expected == top)) for p in predictions])


def majority_text(predictions: Sequence[Prediction]) -> Measure:
    """Accuracy of choosing the option that is right most often in the questions about other concepts.

    Texts are compared without case. Among options that are right equally often, a guess: one half for two of them.
    """
    right = Counter(_key(p, p.expected) for p in predictions if p.expected is not None)
    own: dict[str, Counter[str]] = {}
    for p in predictions:
        if p.expected is not None:
            own.setdefault(p.concept, Counter())[_key(p, p.expected)] += 1
    values = []
    for p in predictions:
        elsewhere = [right[key] - own[p.concept][key] for key in (_key(p, index) for index in range(len(p.options)))]
        best = [index for index, count in enumerate(elsewhere) if count == max(elsewhere)]
        values.append((p.concept, 1 / len(best) if p.expected in best else 0.0))
    return mean_measure(values)


def _key(prediction: Prediction, index: int) -> str:
    return prediction.options[index].casefold().strip()


def draw_others(
    subjects: Sequence[Subject], without: Sequence[Subject], count: int, seed: int, *names: str
) -> list[Subject]:
    """Draw described concepts whose words are put in place of the right ones; those of the same category first.

    Args:
        subjects: Concepts to draw from.
        without: Concepts that are asked about; the first one's category goes first.
        count: How many.
        seed: Of the draw.
        names: What is asked, for the draw's own stream of random numbers.

    Returns:
        At most ``count`` concepts; fewer when there are no more.
    """
    shown = {subject.id for subject in without}
    others = [other for other in subjects if other.id not in shown and other.failure is None]
    category = without[0].concept.category
    near = [other for other in others if other.concept.category == category]
    far = [other for other in others if other.concept.category != category]
    rng = stable_rng(seed, *names)
    return [group[int(i)] for group in (near, far) for i in rng.permutation(len(group))][:count]
