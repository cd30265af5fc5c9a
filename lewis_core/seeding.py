"""Randomness that is the same in every process, on every day.

Seeds come from content: ``stable_rng(seed, "split", category)``. Python's ``hash()`` is salted per process and
is never used.
"""

import hashlib

import numpy as np


def stable_seed(seed: int, *names: str | int) -> int:
    """Derive a 64-bit seed from a base seed and the names of what it is for.

    Args:
        seed: The run's seed.
        names: What the numbers are for, e.g. ``"games", category, concept``; order matters.

    Returns:
        An integer in ``[0, 2**64)``; equal arguments give equal seeds in every process.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stable_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Make a generator seeded by :func:`stable_seed` of the same arguments."""
    return np.random.default_rng(stable_seed(seed, *names))
