"""Models named by an address become folders: MLflow's registry, whole models and adapters; errors say what to check."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from lewis_core.config.base import FrozenConfig, ModelRef
from lewis_core.errors import ModelError, TrackingError
from tasks import serve
from tasks.models import download, resolve_models


class Settings(FrozenConfig):
    """Settings that hold models."""

    speaker: ModelRef
    others: tuple[ModelRef, ...] = ()
    name: str = "x"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> str:
    """A registry with one adapter, as the tracker registers it."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("registry")
    adapter = folder / "adapter"
    adapter.mkdir()
    content = {"peft_type": "LORA", "base_model_name_or_path": "pocket:base"}
    (adapter / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file({}, adapter / "adapter_model.safetensors")
    uri = tracking_uri
    client = MlflowClient(uri)
    experiment = client.create_experiment("addresses", artifact_location=(folder / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    client.create_registered_model("addressed-speaker")
    model = client.create_logged_model(experiment, name="addressed-speaker", source_run_id=run)
    import mlflow

    mlflow.set_tracking_uri(uri)
    client.log_model_artifacts(model.model_id, str(adapter))
    client.finalize_logged_model(model.model_id, "READY")
    made = client.create_model_version("addressed-speaker", f"models:/{model.model_id}", run, model_id=model.model_id)
    client.set_registered_model_alias("addressed-speaker", "champion", made.version)
    return uri


def test_addresses_become_folders(registry: str, tmp_path: Path) -> None:
    adapter_only = ModelRef(path="pocket:base", adapter=Path("models:/addressed-speaker@champion"))
    whole = ModelRef(path="models:/addressed-speaker/1", prompts="concise")
    plain = ModelRef(path="pocket:listener")
    found = resolve_models(Settings(speaker=adapter_only, others=(whole, plain)), registry, tmp_path)
    folder = tmp_path / "addressed-speaker-1"
    assert found.speaker == ModelRef(path="pocket:base", adapter=folder)
    assert found.others == (ModelRef(path="pocket:base", adapter=folder, prompts="concise"), plain)
    assert (folder / "adapter_model.safetensors").is_file()
    assert download("models:/addressed-speaker@champion", registry, tmp_path) == folder  # not brought again


def test_settings_without_addresses_stay_as_they_are(tmp_path: Path) -> None:
    settings = Settings(speaker=ModelRef(path="pocket:base"))
    assert resolve_models(settings, "sqlite:///nowhere.db", tmp_path) is settings


def test_wrong_addresses_say_what_to_check(registry: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected models:/name@alias or models:/name/version"):
        download("models:/addressed-speaker", registry, tmp_path)
    with pytest.raises(TrackingError, match=r"cannot be brought .* check the name, the alias"):
        download("models:/addressed-speaker@nobody", registry, tmp_path)


def test_serving_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        serve.main(["--help"])
    assert "lewis_core.listener, which needs --image-root and --port" in " ".join(capsys.readouterr().out.split())
