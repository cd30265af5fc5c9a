"""A training row's prompt: its messages as text with places for photos, and as tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


def content_parts(content: str | Sequence[Message]) -> list[dict[str, Any]]:
    """A message's content as parts, without the empty fields that a table of parts has."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{name: value for name, value in part.items() if value is not None} for part in content]


def prompt_text(processor: Any, messages: Sequence[Message], **template: Any) -> str:
    """Render messages by the chat template, with the image in front of the first user's text if it has none.

    Args:
        processor: Of the model.
        messages: With a role and a content each; contents are texts or lists of parts.
        template: Further arguments of the chat template.
    """
    contents = [content_parts(message["content"]) for message in messages]
    first = next(index for index, message in enumerate(messages) if message["role"] == "user")
    if not any(part["type"] == "image" for part in contents[first]):
        contents[first].insert(0, {"type": "image"})
    chat = [{"role": m["role"], "content": c} for m, c in zip(messages, contents, strict=True)]
    text: str = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **template)
    return text


def prompt_tokens(processor: Any, text: str, visual_tokens: Sequence[int]) -> list[int]:
    """Tokens of a text with photos, where each placeholder is repeated as the processor does.

    Args:
        processor: Of the model.
        text: With one placeholder for each photo.
        visual_tokens: How many tokens each photo has.

    Raises:
        ValueError: If the text has another number of places than there are photos.
    """
    token: str = processor.image_token
    first, *rest = text.split(token)
    if len(rest) != len(visual_tokens):
        raise ValueError(f"the prompt has {len(rest)} places for photos, and the row {len(visual_tokens)} photos")
    text = first + "".join(token * size + after for size, after in zip(visual_tokens, rest, strict=True))
    ids: list[int] = processor.tokenizer.encode(text, add_special_tokens=False)
    return ids
