"""Throw-away heads that read attributes off the visual tokens.

Learning to see through next-token losses alone is several times slower; with these heads the
vision tower is trained on the attributes themselves first. They are not part of a checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lewis_core.pocket.world import (
    CATEGORIES,
    COLORS,
    KINDS,
    LOCATIONS,
    LOGOS,
    MATERIALS,
    PATTERNS,
    POSES,
    SHAPES,
    Identity,
    Scene,
)

CLASSES_BY_ATTRIBUTE: dict[str, tuple[str, ...]] = {
    "category": CATEGORIES,
    "color": COLORS,
    "pattern": PATTERNS,
    "pattern_color": COLORS,
    "material": MATERIALS,
    "shape": SHAPES,
    "logo": LOGOS,
    "logo_color": COLORS,
    "part_color": COLORS,
    "pose": POSES,
    "state": tuple(sorted({state for kind in KINDS.values() for state in kind.states})),
    "location": LOCATIONS,
}
ATTRIBUTES = tuple(CLASSES_BY_ATTRIBUTE)
HIDDEN = -100
"""Label of an attribute that does not show, such as the color of no logo."""


def attribute_labels(identity: Identity, scene: Scene) -> list[int]:
    """Return the class index of every attribute, or :data:`HIDDEN`."""
    values = {**vars(identity), **vars(scene)}
    hidden = {"pattern_color": identity.pattern == "plain", "logo_color": identity.logo == "none"}
    return [
        HIDDEN if hidden.get(name) else classes.index(values[name]) for name, classes in CLASSES_BY_ATTRIBUTE.items()
    ]


class AttributeProbe(nn.Module):
    """One attention-pooling classifier per attribute over visual tokens."""

    def __init__(self, width: int, query_width: int = 64) -> None:
        """Build heads for visual tokens of the given width."""
        super().__init__()
        count = len(ATTRIBUTES)
        num_classes = max(len(classes) for classes in CLASSES_BY_ATTRIBUTE.values())
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(count, query_width) * 0.02)
        self.key, self.value = nn.Linear(width, query_width), nn.Linear(width, width)
        self.heads = nn.Parameter(torch.randn(count, width, num_classes) * width**-0.5 * 0.2)
        unused = torch.zeros(count, num_classes)
        for row, classes in enumerate(CLASSES_BY_ATTRIBUTE.values()):
            unused[row, len(classes) :] = -1e4
        self.register_buffer("unused", unused)

    def forward(self, visual: Tensor) -> Tensor:
        """Return logits ``(N, attributes, classes)`` from visual tokens ``(N, T, width)``."""
        x = self.norm(visual.float())
        attention = torch.softmax(self.queries @ self.key(x).transpose(1, 2), -1)  # (N, A, T)
        pooled = attention @ self.value(x)  # (N, A, width)
        return torch.einsum("nad,adc->nac", pooled, self.heads) + self.get_buffer("unused")

    def loss(self, visual: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy; labels are ``(N, attributes)``."""
        logits = self(visual).flatten(0, 1)
        return F.cross_entropy(logits, labels.flatten(), ignore_index=HIDDEN)
