"""Limits that settings and image reading share, in a module that costs nothing to import."""

MAX_IMAGE_PIXELS = 100_000_000
"""No stage opens larger images."""
