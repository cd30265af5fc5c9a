"""The pocket world: procedural photos of personal things, exact truth, and three tiny models.

It lets the whole pipeline run, and learn, on a machine without weights and data sets.

Reading order: ``world`` (what a thing can look like), ``language`` (facts to sentences and back),
``render`` with ``objects``, ``surfaces`` and ``backgrounds`` (facts to pixels), ``photos`` (a data
set on disk), ``truth`` (exact measurements of descriptions), ``tasks`` and ``corruption``
(exercises for models), ``training`` (how the shipped models were made). The checkpoints lie in
:data:`MODELS_DIR`; ``models/MODEL_CARD.md`` says what they can and cannot do.
"""

from pathlib import Path

MODELS_DIR = Path(__file__).parent / "models"
"""Folder of the shipped checkpoints: ``base``, ``listener`` and ``clip``."""
