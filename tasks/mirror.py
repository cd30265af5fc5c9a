"""A second home for finished artifacts: a folder of any file system that fsspec knows, S3-compatible ones above all.

A finished artifact is uploaded file by file, its manifest last, so what has a manifest there is whole. One that is
missing here is fetched before its stage would be computed, checked file by file against its manifest, and moved to its
place in one step. What is damaged there is as good as missing. The mirror being away costs time, never a result.
"""

import json
import logging
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lewis_core.artifacts import MANIFEST, ArtifactRef, ArtifactStore, load_manifest
from lewis_core.config.storage import StorageConfig
from lewis_core.errors import ConfigError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")
THREADS = 8


class Mirror:
    """Artifacts of one store, elsewhere.

    Args:
        config: Where; without an address nothing is mirrored.
        store: The store here.

    Raises:
        ConfigError: If no installed file system knows the address.
    """

    def __init__(self, config: StorageConfig, store: ArtifactStore) -> None:
        self._store, self._url, self._lock = store, config.url, threading.Lock()
        self._files: AbstractFileSystem | None = None
        self._root, self._is_out = "", False
        self._missing: list[ArtifactRef] = []
        if config.url is not None:
            self._files, self._root = open_files(config.url, dict(config.options))

    def push(self, ref: ArtifactRef) -> None:
        """Upload a finished artifact unless it is there; what fails is tried again by :meth:`close`."""
        if self._files is not None and not self._attempt(lambda: self._upload(ref), f"{ref.kind} is not uploaded"):
            with self._lock:
                self._missing.append(ref)

    def close(self) -> None:
        """Try once more what could not be uploaded."""
        with self._lock:
            missing, self._missing = self._missing, []
        for ref in missing:
            self.push(ref)

    def _upload(self, ref: ArtifactRef) -> bool:
        assert self._files is not None
        files, place = self._files, self._place(ref.kind, ref.key)
        if files.exists(f"{place}/{MANIFEST}") and read_digest(files, place) == ref.digest:
            return True
        *names, last = ref.verify().names
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: put(files, ref.path / name, f"{place}/{name}"), names))
        put(files, ref.path / last, f"{place}/{last}")
        return True

    def fetch(self, kind: str, key: str) -> ArtifactRef | None:
        """Bring an artifact here; ``None`` if it is not there, not whole, or the mirror is away."""
        if self._files is None:
            return None
        ref = self._attempt(lambda: self._download(kind, key), f"{kind} is not fetched")
        if ref is not None:
            logger.info("%s %s was fetched from %s", kind, key, self._url)
        return ref

    def _download(self, kind: str, key: str) -> ArtifactRef | None:
        assert self._files is not None
        files, place = self._files, self._place(kind, key)
        if not files.exists(f"{place}/{MANIFEST}"):
            return None
        with self._store.lock(kind, key):
            if found := self._store.find(kind, key):  # somebody else was faster
                return found
            return self._bring(place, kind, key)

    def _bring(self, place: str, kind: str, key: str) -> ArtifactRef:
        """Download a whole artifact; the caller holds its lock."""
        assert self._files is not None
        files = self._files
        with self._store.building(kind, key) as folder:
            get(files, f"{place}/{MANIFEST}", folder / MANIFEST)
            *names, _ = load_manifest(folder).names
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda name: get(files, f"{place}/{name}", folder / name), names))
            return self._store.adopt(folder, kind, key)

    def _place(self, kind: str, key: str) -> str:
        return f"{self._root}/{kind}/{key}"

    def _attempt(self, call: Callable[[], Answer], what: str) -> Answer | None:
        try:
            answer = call()
        except Exception as error:  # noqa: BLE001 - a second home that is away is no reason to end a run
            with self._lock:
                level = logging.DEBUG if self._is_out else logging.WARNING
                self._is_out = True
            logger.log(level, "%s (%s: %s): %s", what, type(error).__name__, str(error)[:300], self._url)
            return None
        self._is_out = False
        return answer


def open_files(url: str, options: dict[str, Any]) -> "tuple[AbstractFileSystem, str]":
    """Open a file system.

    Raises:
        ConfigError: If none is installed that knows the address.
    """
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise ConfigError(
            f"run.storage.url {url}: {error}; for s3:// install the extra: pip install 'lewis[s3]'"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"run.storage: {url} cannot be opened: {error}") from error
    return files, str(root).rstrip("/")


def put(files: "AbstractFileSystem", source: Path, target: str) -> None:
    """Upload one file; readers see all of it or nothing."""
    files.makedirs(target.rpartition("/")[0], exist_ok=True)
    unfinished = f"{target}.{uuid.uuid4().hex[:8]}" if "file" in protocols(files) else target
    files.put_file(str(source), unfinished)
    if unfinished != target:  # object stores write a whole object or none
        files.mv(unfinished, target)


def get(files: "AbstractFileSystem", source: str, target: Path) -> None:
    """Download one file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    files.get_file(source, str(target))


def protocols(files: "AbstractFileSystem") -> tuple[str, ...]:
    """Names of a file system."""
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def read_digest(files: "AbstractFileSystem", place: str) -> str:
    """Digest of the artifact that lies in a place, as its manifest says; empty if it cannot be read."""
    try:
        return str(json.loads(files.cat_file(f"{place}/{MANIFEST}"))["digest"])
    except (ValueError, LookupError, TypeError):
        return ""
