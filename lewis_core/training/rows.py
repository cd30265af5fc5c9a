"""Training rows: the data set of a run, read and checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lewis_core.config.grpo import GrpoConfig
from lewis_core.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def load_rows(folder: Path, config: GrpoConfig, columns: Sequence[str]) -> "Dataset":
    """Load the data set.

    Args:
        folder: Where it was saved.
        config: Prompts of a step.
        columns: Columns that training needs.

    Raises:
        DataError: If it is missing, lacks a column, or has fewer rows than one step needs.
    """
    from datasets import Dataset, load_from_disk

    try:
        rows = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no data set: {error}; build it again") from error
    if not isinstance(rows, Dataset):
        raise DataError(f"{folder} holds a {type(rows).__name__}; expected one table; build it again")
    if missing := sorted(set(columns) - set(rows.column_names)):
        raise DataError(f"{folder} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}")
    if len(rows) < config.prompts_per_step:
        raise DataError(
            f"{folder} has {len(rows)} rows, one step needs training.prompts_per_step = {config.prompts_per_step}; "
            "build more games, or lower it"
        )
    return rows
