"""Finished runs, found again on disk: which artifacts belong together, by the digests in their manifests.

A run is named by its work folder (its newest report counts), by the folder of a report, or by that of one evaluation.
Nothing but the artifact store is needed, so a store that was copied from another machine will do; only the photos may
have stayed behind.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lewis_core.artifacts import MANIFEST, PROVENANCE, ArtifactRef, Manifest
from lewis_core.errors import ArtifactError, EvaluationError
from lewis_core.records import JsonObject, load_record

REPORT = "build-report"
PHOTOS = "render-photos"
EVALUATIONS = (
    "play-games",
    "evaluate-identification",
    "evaluate-recognition",
    "evaluate-vqa",
    "evaluate-descriptions",
)
"""Kinds of artifacts that hold an evaluation."""


@dataclass(frozen=True)
class FinishedRun:
    """What a run left behind, as far as a report needs it."""

    label: str
    catalog: ArtifactRef
    databases: tuple[ArtifactRef, ...]
    evaluations: tuple[ArtifactRef, ...]
    training: ArtifactRef | None = None
    facts: JsonObject = field(default_factory=dict)
    photos: Path | None = None
    """Folder that image paths are relative to, if it is on this machine."""


def open_run(path: Path, photos: Path | None = None) -> FinishedRun:
    """Find the artifacts of a finished run.

    Args:
        path: A work folder, the folder of a report, or that of an evaluation.
        photos: Folder that image paths are relative to, where the run's own is not on this machine.

    Raises:
        EvaluationError: If there is no finished run or evaluation, or parts of it are missing.
    """
    path = path.expanduser().absolute()
    if (path / MANIFEST).is_file():
        manifest = load_record(path / MANIFEST, Manifest)
        if manifest.kind == REPORT or manifest.kind in EVALUATIONS:
            return _assemble(path, manifest, photos)
        raise EvaluationError(
            f"{path} holds an artifact of {manifest.kind}; expected a work folder, a report ({REPORT}) or an "
            f"evaluation ({', '.join(EVALUATIONS)})"
        )
    store = path / "store" if (path / "store").is_dir() else path
    reports = sorted(store.glob(f"{REPORT}/*/{MANIFEST}"), key=lambda file: (_started(file.parent), file.as_posix()))
    if not reports:
        raise EvaluationError(
            f"{path} holds no finished run: expected a work folder with a report in store/{REPORT}; name the folder "
            "that run.work_dir said, after the flow has ended, or the folder of one evaluation"
        )
    return _assemble(reports[-1].parent, load_record(reports[-1], Manifest), photos)


def _assemble(folder: Path, manifest: Manifest, photos: Path | None) -> FinishedRun:
    store = folder.parent.parent
    known = _index(store)
    arguments = manifest.arguments

    def find(reference: Any) -> ArtifactRef:
        return _find(known, reference, folder)

    is_report = manifest.kind == REPORT
    catalog = find(arguments.get("catalog"))
    return FinishedRun(
        label=store.parent.name if store.name == "store" else store.name,
        catalog=catalog,
        databases=tuple(map(find, arguments["databases"] if is_report else [arguments.get("database")])),
        evaluations=tuple(map(find, arguments["evaluations"])) if is_report else (_open(folder),),
        training=find(arguments["training"]) if is_report and arguments.get("training") else None,
        facts=arguments.get("facts", {}) if is_report else {},
        photos=photos or _photos(store, folder),
    )


def _index(store: Path) -> dict[tuple[str, str], Path]:
    """Every artifact of a store by kind and digest."""
    found: dict[tuple[str, str], Path] = {}
    for file in sorted(store.glob(f"*/*/{MANIFEST}")):
        try:
            content = json.loads(file.read_bytes())
            found[content["kind"], content["digest"]] = file.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _find(known: Mapping[tuple[str, str], Path], reference: Any, wanted_by: Path) -> ArtifactRef:
    place = (reference["artifact"], reference["digest"]) if isinstance(reference, Mapping) else ("", "")
    if place not in known:
        raise EvaluationError(
            f"{wanted_by} was made from {place[0] or 'an artifact'} {place[1][:12]}, which its store does not hold any "
            "more; run the flow again, or copy the whole store"
        )
    return _open(known[place])


def _open(folder: Path) -> ArtifactRef:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        return ArtifactRef(
            kind=manifest.kind, key=manifest.key, digest=manifest.digest, path=folder, summary=manifest.summary
        )
    except (OSError, ValueError, ArtifactError) as error:
        raise EvaluationError(f"{folder} is damaged: {error}; run the flow again") from error


def _started(folder: Path) -> float:
    """When an artifact was made; 0 if nobody knows."""
    try:
        return float(json.loads((folder / PROVENANCE).read_bytes())["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _photos(store: Path, folder: Path) -> Path | None:
    """Folder of the photos: as the run was told, or those that it rendered itself."""
    told = store.parent / "logs" / f"{folder.parent.name}-{folder.name}.json"
    rendered = sorted(store.glob(f"{PHOTOS}/*"), key=_started, reverse=True)
    return next((place for place in (*_told(told), *rendered) if place.is_dir()), None)


def _told(file: Path) -> Iterable[Path]:
    try:
        yield Path(json.loads(file.read_bytes())["runtime"]["data_root"])
    except (OSError, ValueError, KeyError, TypeError):
        return
