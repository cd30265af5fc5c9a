"""What is sent to MLflow."""

import pytest
from mlflow.utils.validation import _validate_metric_name

from tasks.tracking import flatten, metric_name


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("listener/accuracy", "listener/accuracy"),
        ("wall_s/mine-distractors/toys & games", "wall_s/mine-distractors/toys _ games"),
        ("wall_s/mine-distractors/it's (new)+", "wall_s/mine-distractors/it_s _new__"),
        ("wall_s/mine-distractors/Krüge", "wall_s/mine-distractors/Krüge"),
    ],
)
def test_metric_names_are_such_that_mlflow_takes_them(name: str, sent: str) -> None:
    assert metric_name(name) == sent
    _validate_metric_name(metric_name(name))


def test_settings_are_flattened() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": "x"}) == {"a.b": "1", "a.c": "{}", "d": "x"}
