"""Fixtures for orchestration tests: settings of a run, stand-in stages."""

from pathlib import Path

import pytest

from lewis_core.config.pipeline import PipelineConfig

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests: making it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture
def config(tmp_path: Path, tracking_uri: str) -> PipelineConfig:
    """Settings of a run in a folder of its own."""
    model = {"path": "pocket:base"}
    return PipelineConfig.model_validate(
        {
            "run": {"work_dir": tmp_path / "work", "tracking": {"experiment": "test", "uri": tracking_uri}},
            "source": {"type": "pocket"},
            "training": {"model": model, "listener": model},
            "evaluation": {"answering": model},
        }
    )


@pytest.fixture(autouse=True)
def find_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stand-in stages importable in child processes."""
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
