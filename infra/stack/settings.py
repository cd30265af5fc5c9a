"""Settings of the stack, from environment variables ``LEWIS_STACK_*``."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[2]


class StackSettings(BaseSettings):
    """Where the stack keeps its data, and which ports of the loopback interface it takes."""

    model_config = SettingsConfigDict(env_prefix="LEWIS_STACK_", extra="ignore", use_attribute_docstrings=True)

    dir: Path = Path("runs/stack")
    """Folder of databases, logs, process ids and the stack's password."""
    database: Literal["auto", "postgres", "sqlite"] = "auto"
    """``auto`` takes PostgreSQL if its programs are found, else sqlite, and says so."""
    postgres_port: int = Field(default=5433, ge=1, le=65_535)
    """Port of PostgreSQL."""
    postgres_user: str = "postgres"
    """Operating system user that PostgreSQL runs as when the stack is started by root, which it refuses."""
    prefect_port: int = Field(default=4200, ge=1, le=65_535)
    """Port of the Prefect server and its UI."""
    mlflow_port: int = Field(default=5000, ge=1, le=65_535)
    """Port of the MLflow server and its UI."""
    listener_port: int = Field(default=9000, ge=1, le=65_535)
    """Port of the model service."""
    listener_model: str = "pocket:listener"
    """What the model service serves: a folder, a hub id or ``pocket:<name>``; empty: no service."""
    image_root: Path = Path("runs")
    """Folder that the model service's image references are relative to."""
    pool: str = "lewis"
    """Name of the work pool; the deployments' own."""
    start_timeout_s: float = Field(default=180.0, gt=0)
    """Longest wait until a part answers."""

    @property
    def folder(self) -> Path:
        """The folder, absolute."""
        return (ROOT / self.dir.expanduser()).resolve()

    @property
    def prefect_api(self) -> str:
        """Address of Prefect's API."""
        return f"http://127.0.0.1:{self.prefect_port}/api"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow."""
        return f"http://127.0.0.1:{self.mlflow_port}"
