"""Who may ask a service: bearer tokens, several at a time so that they can be changed without an outage."""

import hashlib
import hmac
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from lewis_core.errors import ConfigError

logger = logging.getLogger(__name__)
MIN_TOKEN = 16
"""Shorter tokens can be guessed."""
_TOKEN = re.compile(r"[\x21-\x7e]+")


class Access:
    """Bearer tokens that a service admits. Only their digests are kept, so that no log or dump can show them.

    Args:
        tokens: The tokens; none means that everybody may ask.
    """

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._digests: tuple[bytes, ...] = ()
        self.replace(tokens)

    def replace(self, tokens: Iterable[str]) -> None:
        """Admit these tokens and no others, from the next request on."""
        self._digests = tuple(_digest(token.encode()) for token in tokens)

    @property
    def is_open(self) -> bool:
        """Whether everybody may ask."""
        return not self._digests

    def admits(self, authorization: bytes) -> bool:
        """Whether an ``Authorization`` header carries one of the tokens; takes the same time whichever it is."""
        scheme, _, token = authorization.partition(b" ")
        given, found = _digest(token.strip()), False
        for known in self._digests:
            found |= hmac.compare_digest(given, known)
        return self.is_open or (found and scheme.lower() == b"bearer")


def parse_tokens(text: str, source: str) -> tuple[str, ...]:
    """Read tokens, one a line; lines that begin with ``#`` are comments.

    Args:
        text: The lines.
        source: Where they come from, for errors; their content is never shown.

    Raises:
        ConfigError: If there is none, or one is short or not of visible ASCII characters.
    """
    lines = [line.strip() for line in text.splitlines()]
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise ConfigError(f"{source} is empty; it must hold one token a line")
    for number, token in enumerate(tokens, 1):
        if len(token) < MIN_TOKEN or not _TOKEN.fullmatch(token):
            raise ConfigError(
                f"token {number} of {source} must have at least {MIN_TOKEN} visible ASCII characters; "
                'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    return tokens


def read_token_file(path: Path) -> tuple[str, ...]:
    """Read tokens from a file; warns if others than its owner may read it.

    Raises:
        ConfigError: As :func:`parse_tokens`, or if it cannot be read.
    """
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"the token file {path} cannot be read: {reason}") from error
    if mode & 0o077:
        logger.warning("others may read the token file %s; chmod 600 it", path)
    return parse_tokens(text, f"the token file {path}")


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
