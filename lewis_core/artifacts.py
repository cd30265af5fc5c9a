"""Content-addressed artifacts: folders that are either whole or not there.

An artifact is a folder ``<store>/<kind>/<key>`` with a manifest that is written last. The key is the stage's
identity (settings, inputs' digests, source); the digest is that of the files' content. A folder is written beside
its place and renamed, so a killed process leaves nothing half-written; a file that was deleted, truncated or changed
makes :meth:`ArtifactStore.find` answer ``None``, and the stage runs again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from lewis_core.errors import ArtifactError
from lewis_core.records import Record

MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
"""When, where and with what it was made; differs between runs, so it is no part of the content."""
_digests: dict[tuple[str, int, int, int, int], str] = {}


def digest_file(path: Path) -> str:
    """Digest a file's bytes (sha256, hex); remembered while its size, inode and times of change stay the same."""
    status = path.stat()
    memo = (str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if memo not in _digests:
        with path.open("rb") as file:
            _digests[memo] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[memo]


def digest_json(value: object) -> str:
    """Digest a JSON value in canonical form (sha256, hex)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_folder(folder: Path) -> dict[str, tuple[int, str]]:
    """Digest every file below a folder but its manifest: relative path → (bytes, sha256), sorted by path."""
    skip = {MANIFEST, PROVENANCE}
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in skip
    )
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, digest_file(path)) for path in files}


class Manifest(Record):
    """What an artifact is; written last. The same inputs give the same bytes."""

    kind: str
    """Name of the stage that made it."""
    key: str
    """The stage's identity."""
    digest: str
    """Digest of ``files``."""
    files: dict[str, tuple[int, str]]
    """Relative path → (bytes, sha256)."""
    arguments: dict[str, Any]
    """Resolved settings and the digests of inputs."""
    source: str
    """Digest of the code that ran."""
    summary: dict[str, Any]
    """Counts and other small facts."""
    seal: str = ""
    """Digest of all other fields, so that a damaged manifest is not believed either."""

    @property
    def names(self) -> list[str]:
        """Every file of the artifact, the manifest last.

        Raises:
            ArtifactError: If one of them would lie outside of the artifact.
        """
        found = [*self.files, PROVENANCE, MANIFEST]
        if odd := [name for name in found if Path(name).is_absolute() or ".." in Path(name).parts]:
            raise ArtifactError(f"the manifest of {self.kind} {self.key} names a file outside of it: {odd[0]!r}")
        return found

    def expected_seal(self) -> str:
        """Digest of all fields but the seal."""
        return digest_json(self.model_dump(mode="json", exclude={"seal"}))


class ArtifactRef(Record):
    """Handle to an artifact: what tasks pass around instead of images, tensors or tables.

    Validating one checks that the artifact is there, so a cached handle to a lost artifact is refused.
    """

    kind: str
    key: str
    digest: str
    path: Path
    summary: dict[str, Any] = {}

    @model_validator(mode="after")
    def _there(self) -> "ArtifactRef":
        self.verify()
        return self

    def verify(self) -> Manifest:
        """Check that every file is there and unchanged.

        Raises:
            ArtifactError: If the folder, its manifest or a file is missing or was changed.
        """
        manifest = load_manifest(self.path)
        if manifest.digest != self.digest:
            raise ArtifactError(
                f"{self.path} now holds {manifest.digest[:12]}, not {self.digest[:12]}; run the stage again"
            )
        for name, (size, sha256) in manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise ArtifactError(f"{file} is missing; run the stage again")
            if file.stat().st_size != size or digest_file(file) != sha256:
                raise ArtifactError(f"{file} was changed after it was written; run the stage again")
        return manifest

    def file(self, name: str) -> Path:
        """Path of a file in the artifact.

        Raises:
            ArtifactError: If the artifact holds no such file.
        """
        if not (path := self.path / name).is_file():
            raise ArtifactError(f"artifact {self.kind} at {self.path} holds no file {name!r}")
        return path


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact's folder.

    Raises:
        ArtifactError: If it is missing, or was changed.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} holds no complete artifact; run the stage again") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if manifest.seal != manifest.expected_seal():
        raise ArtifactError(f"{folder / MANIFEST} was changed after it was written; run the stage again")
    return manifest


class ArtifactStore:
    """Folders of artifacts, by kind and key.

    Args:
        root: Top folder; made when needed. Folders ``work``, ``locks`` and ``caches`` in it are scratch space.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def place(self, kind: str, key: str) -> Path:
        """Folder of an artifact, there or not."""
        return self.root / kind / key

    def work_dir(self, kind: str, key: str) -> Path:
        """Folder for checkpoints of an unfinished stage: survives a kill, removed when the artifact is published."""
        folder = self.root / "work" / f"{kind}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def cache_dir(self, kind: str) -> Path:
        """Folder for what all runs of a stage may share to save work; never part of a result, and kept."""
        folder = self.root / "caches" / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def find(self, kind: str, key: str) -> ArtifactRef | None:
        """Return a whole and unchanged artifact, or ``None``."""
        folder = self.place(kind, key)
        try:
            manifest = load_manifest(folder)
            if (manifest.kind, manifest.key) != (kind, key):
                return None
            return ArtifactRef(kind=kind, key=key, digest=manifest.digest, path=folder, summary=manifest.summary)
        except (ArtifactError, ValueError, OSError):
            return None

    @contextlib.contextmanager
    def lock(self, kind: str, key: str) -> Iterator[None]:
        """Hold the only right to make an artifact; the kernel frees it when the holder dies."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{kind}-{key}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def building(self, kind: str, key: str) -> Iterator[Path]:
        """Yield an empty folder to write into; it is removed afterwards unless :meth:`publish` moved it."""
        folder = self.root / kind / f".building-{key}-{uuid.uuid4().hex[:8]}"
        self._sweep(kind, key)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(
        self,
        folder: Path,
        kind: str,
        key: str,
        arguments: Mapping[str, Any],
        source: str,
        summary: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> ArtifactRef:
        """Write the manifest and move a finished folder to its place in one step.

        Args:
            folder: What :meth:`building` yielded, filled.
            kind: Name of the stage.
            key: Its identity.
            arguments: Resolved settings and inputs' digests, as JSON.
            source: Digest of the code that ran.
            summary: Counts and other small facts, as JSON.
            provenance: Times, versions, machine: not part of the content.

        Returns:
            Handle to the published artifact.
        """
        files = digest_folder(folder)
        digest = digest_json(files)
        manifest = Manifest(
            kind=kind,
            key=key,
            digest=digest,
            files=files,
            arguments=dict(arguments),
            source=source,
            summary=dict(summary),
        )
        manifest = Manifest.model_validate_json(manifest.model_dump_json())  # as it will be read
        manifest = manifest.model_copy(update={"seal": manifest.expected_seal()})
        (folder / PROVENANCE).write_text(json.dumps(dict(provenance), indent=1, default=str) + "\n")
        for path in folder.rglob("*"):
            _sync(path)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        _sync(folder / MANIFEST)
        place = self._move_in(folder, kind, key)
        shutil.rmtree(self.root / "work" / f"{kind}-{key}", ignore_errors=True)
        return ArtifactRef(kind=kind, key=key, digest=digest, path=place, summary=dict(summary))

    def adopt(self, folder: Path, kind: str, key: str) -> ArtifactRef:
        """Move a finished folder that came from elsewhere to its place, after checking every file of it.

        Args:
            folder: What :meth:`building` yielded, filled, with its manifest.
            kind: What it has to be.
            key: Its identity.

        Returns:
            Handle to the artifact.

        Raises:
            ArtifactError: If it is not whole, was changed, or is another artifact.
        """
        manifest = load_manifest(folder)
        if (manifest.kind, manifest.key) != (kind, key):
            raise ArtifactError(f"expected {kind} {key}, found {manifest.kind} {manifest.key}")
        ArtifactRef(kind=kind, key=key, digest=manifest.digest, path=folder)
        place = self._move_in(folder, kind, key)
        return ArtifactRef(kind=kind, key=key, digest=manifest.digest, path=place, summary=manifest.summary)

    def _move_in(self, folder: Path, kind: str, key: str) -> Path:
        """Put a finished folder in its place, in one step; a damaged one that is there makes room."""
        place = self.place(kind, key)
        if place.exists():
            damaged = place.with_name(f".building-{key}-old-{uuid.uuid4().hex[:8]}")
            place.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        folder.rename(place)
        return place

    def discard(self, kind: str, key: str) -> None:
        """Remove an artifact, so that its stage runs again."""
        shutil.rmtree(self.place(kind, key), ignore_errors=True)

    def _sweep(self, kind: str, key: str) -> None:
        """Remove what killed builders of this artifact left behind (the caller holds its lock)."""
        for left in (self.root / kind).glob(f".building-{key}-*"):
            shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    """Make a file's bytes durable before the manifest names them."""
    if path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
