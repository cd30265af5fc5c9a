"""How much work a question is, about: enough to cut a queue into calls of similar length. Imports no torch."""

from lewis_core.listener.schemas import ChoiceItem, GenerateItem, ScoreGame

CHARACTERS_PER_TOKEN = 3
QUESTION_TOKENS = 24
"""What prompts and chat templates add to a text."""


def estimate_tokens(item: ScoreGame | ChoiceItem | GenerateItem, image_tokens: int) -> int:
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
