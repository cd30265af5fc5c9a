"""The model registry of MLflow: which adapters there are, where their files are, and who is the champion."""

import logging
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lewis_core.artifacts import ArtifactStore, digest_json
from lewis_core.config.base import ModelRef
from lewis_core.errors import ModelError, TrackingError
from lewis_core.models.adapters import adapter_digest, check_adapter, foreign_base
from lewis_core.models.files import model_identity
from lewis_core.pipeline import TRAIN_SPEAKER

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)
CHAMPION = "champion"
PROMOTED = "lewis.promoted"
"""Tag of a version that was made champion once; if people take the alias away from it, it is not given back."""
EVALUATION = "lewis.evaluation"
"""Tag of a version: digest of the evaluations whose numbers its other tags hold."""
Answer = TypeVar("Answer")


def base_digest(base: ModelRef) -> str:
    """Digest of a base model's weights, as versions carry it in their tag ``base_digest``."""
    return digest_json(model_identity(base.model_copy(update={"adapter": None}))["weights"])


class Registry:
    """Versions of one registered model.

    Args:
        uri: Tracking URI.
        name: Name of the registered model.
        folder: Where adapters are downloaded to.
        store: Artifacts of this work folder: an adapter that was trained here needs no download.
    """

    def __init__(self, uri: str, name: str, folder: Path, store: ArtifactStore) -> None:
        self._uri, self.name, self._folder, self._store = uri, name, folder, store

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        from mlflow import MlflowClient

        return self._attempt(lambda: getattr(MlflowClient(self._uri), method)(*arguments, **named))

    def _attempt(self, ask: Callable[[], Answer]) -> Answer:
        """Ask the registry.

        Raises:
            TrackingError: If it cannot be asked, or refuses.
        """
        try:
            return ask()
        except Exception as error:
            reason = str(error).splitlines()[0][:300] if str(error) else ""
            raise TrackingError(
                f"the model registry at {self._uri} cannot be asked about {self.name} ({type(error).__name__}: "
                f"{reason}); check run.tracking.uri or MLFLOW_TRACKING_URI, or switch reevaluation.registry off"
            ) from error

    def versions(self) -> "list[ModelVersion]":
        """All versions, oldest first."""
        found, token = [], None
        while True:
            page = self._ask("search_model_versions", f"name = '{self.name}'", page_token=token)
            found.extend(page)
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))

    def champion(self) -> str | None:
        """Number of the version that has the alias; ``None`` if there is none."""
        if not self._ask("search_registered_models", f"name = '{self.name}'"):
            return None
        aliases: dict[str, str] = self._ask("get_registered_model", self.name).aliases
        number = aliases.get(CHAMPION)
        return None if number is None else str(number)

    def promote(self, version: str) -> None:
        """Give a version the alias."""
        self._ask(
            "set_model_version_tag", self.name, version, PROMOTED, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        )
        self._ask("set_registered_model_alias", self.name, CHAMPION, version)

    def note(self, version: str, tags: dict[str, str]) -> None:
        """Write tags of a version."""
        for key, value in tags.items():
            self._ask("set_model_version_tag", self.name, version, key, value[:5000])

    def why_not(self, version: "ModelVersion", base: ModelRef) -> str:
        """Why a version cannot be evaluated with these settings, as far as its tags say; empty if they say nothing."""
        if version.status not in ("READY", None, ""):
            return f"its status in the registry is {version.status}"
        wanted, found = base_digest(base), version.tags.get("base_digest")
        return f"its base has other weights than {base.path}" if found and found != wanted else ""

    def adapter(self, version: "ModelVersion", base: ModelRef) -> Path:
        """Folder of a version's adapter: trained here, downloaded before, or downloaded now.

        Raises:
            ModelError: If it is not whole, is not what was registered, or belongs to another model.
            TrackingError: If it cannot be downloaded.
        """
        here = self._store.find(TRAIN_SPEAKER.name, version.tags.get("adapter_key", ""))
        if here is not None and here.digest == version.tags.get("adapter_digest"):
            return here.path / "adapter"
        folder = self._folder / f"{self.name}-{version.version}-{digest_json(version.source)[:8]}"
        if not folder.is_dir():
            self._download(version, folder)
        check_adapter(folder)
        registered = version.tags.get("adapter_files")
        if registered and registered != adapter_digest(folder):
            shutil.rmtree(folder, ignore_errors=True)
            raise ModelError(f"{self.name} version {version.version}: its files are not those that were registered")
        if reason := foreign_base(folder, base):
            raise ModelError(reason)
        return folder

    def _download(self, version: "ModelVersion", folder: Path) -> None:
        import mlflow
        from mlflow.artifacts import download_artifacts

        mlflow.set_tracking_uri(self._uri)  # models:/ addresses are looked up through the global one
        unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
        unfinished.mkdir(parents=True)
        try:
            logger.info("downloading %s version %s", self.name, version.version)
            address = f"models:/{self.name}/{version.version}"
            place = Path(
                self._attempt(
                    lambda: download_artifacts(artifact_uri=address, dst_path=str(unfinished), tracking_uri=self._uri)
                )
            )
            try:
                place.rename(folder)
            except OSError:
                if not folder.is_dir():  # another run was faster
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
