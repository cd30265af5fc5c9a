"""How much a service takes, of one request and of all together. Beyond it a request is refused, never cut short."""

from pydantic import Field

from lewis_core.config.base import FrozenConfig
from lewis_core.listener.schemas import MAX_TEXT


class ServiceLimits(FrozenConfig):
    """Limits of a service; what is beyond them gets the status named."""

    max_body_bytes: int = Field(default=16 << 20, ge=1)
    """Bytes of a request's body, whether it says its length or comes in chunks; 413."""
    max_buffered_bytes: int = Field(default=256 << 20, ge=1)
    """Bytes of all bodies that are held at the same time; 503."""
    max_rows: int = Field(default=65_536, ge=1)
    """Pairs, questions or completions of one request; 413."""
    max_images: int = Field(default=4096, ge=1)
    """Images that one request names; 413."""
    max_description_chars: int = Field(default=MAX_TEXT, ge=1)
    """Characters of one description; 422."""
    max_prompt_chars: int = Field(default=MAX_TEXT * 4, ge=1)
    """Characters of one prompt or question; 422."""
    max_waiting: int = Field(default=128, ge=1)
    """Requests that wait for the model; 503."""
    max_wait_s: float = Field(default=300.0, gt=0)
    """Seconds that a request may wait for its turn. One that has waited longer gets 503, and so does a new one that
    would, at the pace of the last calls."""
    deadline_s: float = Field(default=900.0, gt=0)
    """Seconds until a request's answer; 504. A request may name a shorter time, in ``timeout_s`` or in the header
    ``X-Request-Timeout``."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds until a body has arrived; 408."""
    max_call_s: float = Field(default=1800.0, gt=0)
    """Seconds of one call of the model; after that the service gives itself up, to be started again."""
    call_tokens: int = Field(default=65_536, ge=1)
    """Waiting requests of the same kind share a call of the model up to about this many tokens; larger ones are served
    in slices, between which the others have their turn."""
    image_tokens: int = Field(default=512, ge=1)
    """About how many visual tokens an image has."""
