"""Settings: frozen, closed, self-documenting. Importing this package loads no torch."""

from lewis_core.config.base import FrozenConfig, ModelRef, Runtime

__all__ = ["FrozenConfig", "ModelRef", "Runtime"]
