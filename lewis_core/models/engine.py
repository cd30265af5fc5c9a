"""What :class:`~lewis_core.models.vlm.VisionLanguageModel` needs of an engine, and the words both engines share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lewis_core.errors import ModelError
from lewis_core.listener.schemas import CacheStatistics
from lewis_core.models.sampling import Sampling

_MARK = "LEWISPROMPTGOESHERE"


@dataclass(frozen=True)
class Text:
    """What a model reads: an image, or none, and what follows it up to where the model's own words begin."""

    image: str | None
    """Reference."""
    digest: str | None
    """Of the image's content."""
    ids: list[int]
    """Tokens from the prompt's text to the end of the chat, at least one."""


Read = Callable[[Sequence[int], Tensor], None]
"""Takes the places of some texts in the caller's list, and the logits after each: (texts, vocabulary)."""


class Engine(Protocol):
    """A way to run a model."""

    def vision_cache(self) -> CacheStatistics | None:
        """How well vision features are reused; ``None`` if they are not kept."""

    def prompt_cache(self) -> CacheStatistics | None:
        """How well keys and values of photos are reused; ``None`` if they are not kept."""

    def answer(self, texts: Sequence[Text], read: Read) -> None:
        """Compute the logits of the token after each text, and hand them over, some texts at a time, in any order.

        A text may be handed over again if memory ran out; its last logits count.

        Raises:
            ImageError: If an image cannot be used.
            ModelError: If one text alone does not fit into memory.
        """

    def write(self, texts: Sequence[Text], text_of_row: Sequence[int], sampling: Sequence[Sampling]) -> list[list[int]]:
        """Continue texts.

        Args:
            texts: What is continued.
            text_of_row: Which of them each completion belongs to.
            sampling: How each completion is drawn.

        Returns:
            Tokens of each completion, without the one that ends it.

        Raises:
            ImageError: If an image cannot be used.
            ModelError: If one text alone does not fit into memory.
        """


@dataclass(frozen=True)
class Frame:
    """The chat around a prompt's text."""

    before: str
    """What stands before it, with a placeholder for the image if there is one."""
    opening: list[int]
    """Tokens of ``before``."""
    closing: list[int]
    """Tokens of what stands behind it."""


def read_frame(processor: Any, has_image: bool) -> Frame:
    """Ask the chat template what surrounds a prompt.

    Raises:
        ModelError: If the chat template drops or changes the text.
    """
    content = [{"type": "text", "text": _MARK}]
    if has_image:
        content.insert(0, {"type": "image"})
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    before, mark, after = chat.partition(_MARK)
    if not mark or _MARK in after:
        raise ModelError("the chat template does not show the user's text exactly once")
    opening, closing = (processor.tokenizer.encode(text, add_special_tokens=False) for text in (before, after))
    return Frame(before, opening, closing)


def eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end what a model says."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (*ids, tokenizer.eos_token_id) if token is not None})


def banned_ids(model: Any) -> list[int]:
    """Tokens that stand for images and videos: a model must not say them."""
    names = ("image_token_id", "video_token_id")
    return sorted({token for name in names if (token := getattr(model.config, name, None)) is not None})
