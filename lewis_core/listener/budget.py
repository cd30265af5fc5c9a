"""How much a request is, and whether that is too much. Imports no torch.

The tokens of a question are an estimate: enough to cut a queue into calls of similar length.
"""

from collections.abc import Sequence

from lewis_core.listener.limits import ServiceLimits
from lewis_core.listener.schemas import ChoiceItem, GenerateItem, ScoreGame

CHARACTERS_PER_TOKEN = 3
QUESTION_TOKENS = 24
"""What prompts and chat templates add to a text."""


Item = ScoreGame | ChoiceItem | GenerateItem


def check_items(items: Sequence[Item], rows: Sequence[int], limits: ServiceLimits) -> tuple[int, str] | None:
    """Say why a request is refused: status and reason; ``None`` if it is not.

    Args:
        items: What is asked.
        rows: Pairs, questions or completions of each item.
        limits: How much may be asked.
    """
    if sum(rows) > limits.max_rows:
        return 413, f"{sum(rows)} rows in one request; the limit is {limits.max_rows}"
    if (images := sum(map(_images, items))) > limits.max_images:
        return 413, f"{images} images in one request; the limit is {limits.max_images}"
    for item in items:
        is_game = isinstance(item, ScoreGame)
        limit = limits.max_description_chars if is_game else limits.max_prompt_chars
        if (longest := max(map(len, _texts(item)))) > limit:
            return 422, f"a {'description' if is_game else 'prompt'} of {longest} characters; the limit is {limit}"
    return None


def _images(item: Item) -> int:
    return len(item.candidates) if isinstance(item, ScoreGame) else int(item.image is not None)


def _texts(item: Item) -> Sequence[str]:
    if isinstance(item, ScoreGame):
        return item.descriptions
    return [item.prompt] if isinstance(item, GenerateItem) else [question.prompt for question in item.questions]


def estimate_tokens(item: Item, image_tokens: int) -> int:
    """Estimate the tokens that a model computes for an item: images once, texts once for each image, all completions.

    Args:
        item: What is asked.
        image_tokens: Visual tokens of an image.

    >>> estimate_tokens(ScoreGame(candidates=("a.jpg", "b.jpg"), descriptions=("red", "green!")), 100)
    302
    """
    if isinstance(item, ScoreGame):
        return len(item.candidates) * (image_tokens + sum(map(_text_tokens, item.descriptions)))
    image = image_tokens if item.image is not None else 0
    if isinstance(item, ChoiceItem):
        return image + sum(_text_tokens(question.prompt) for question in item.questions)
    return image + _text_tokens(item.prompt) + item.num_return * item.max_new_tokens


def _text_tokens(text: str) -> int:
    return QUESTION_TOKENS + -(-len(text) // CHARACTERS_PER_TOKEN)
