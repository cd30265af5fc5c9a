"""The second home of artifacts: whole or not there, checked when it comes back, never a reason to end a run."""

import json
import threading
from pathlib import Path

import pytest
from prefect import flow

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.config.storage import StorageConfig
from lewis_core.errors import ConfigError
from lewis_core.stages import Stage
from tasks.mirror import Mirror
from tasks.run import pipeline_run
from tests.orchestration.stand_ins import CountConfig

COUNT = Stage("count", "tests.orchestration.stand_ins:count")


def publish(store: ArtifactStore, text: str = "7") -> ArtifactRef:
    with store.building("count", "k") as folder:
        (folder / "deep/er").mkdir(parents=True)
        (folder / "deep/er/number.txt").write_text(text)
        (folder / "large.bin").write_bytes(bytes(range(256)) * 4096)
        return store.publish(folder, "count", "k", {"a": 1}, "source", {"number": 7}, {"wall_s": 1.0})


@pytest.fixture
def here(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "there")


@pytest.fixture(params=["file", "memory"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> StorageConfig:
    place = {"file": f"file://{tmp_path}/shared", "memory": f"memory://{tmp_path.name}"}
    return StorageConfig(url=place[request.param])


def test_an_artifact_is_the_same_on_another_machine(
    config: StorageConfig, here: ArtifactStore, there: ArtifactStore
) -> None:
    ref = publish(here)
    Mirror(config, here).push(ref)
    found = Mirror(config, there).fetch("count", "k")
    assert found is not None
    assert (found.digest, found.summary, found.path) == (ref.digest, {"number": 7}, there.place("count", "k"))
    assert found.file("deep/er/number.txt").read_text() == "7"
    assert there.find("count", "k") == found
    assert not list(there.root.glob("count/.*")), "something unfinished was left"
    assert Mirror(config, there).fetch("count", "other") is None


def test_nothing_is_uploaded_twice(tmp_path: Path, here: ArtifactStore) -> None:
    ref, config = publish(here), StorageConfig(url=f"file://{tmp_path}/shared")
    Mirror(config, here).push(ref)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*")}
    Mirror(config, here).push(ref)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*")} == times
    assert {path.name for path in times if path.is_file()} == {
        "manifest.json",
        "provenance.json",
        "number.txt",
        "large.bin",
    }


@pytest.mark.parametrize("harm", ["manifest gone", "file gone", "file cut", "file changed", "another's", "outside"])
def test_what_is_damaged_there_is_as_good_as_missing(
    tmp_path: Path, here: ArtifactStore, there: ArtifactStore, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = StorageConfig(url=f"file://{tmp_path}/shared")
    Mirror(config, here).push(publish(here))
    place = tmp_path / "shared/count/k"
    match harm:
        case "manifest gone":
            (place / "manifest.json").unlink()
        case "file gone":
            (place / "large.bin").unlink()
        case "file cut":
            (place / "large.bin").write_bytes(b"")
        case "file changed":
            (place / "deep/er/number.txt").write_text("8")
        case "another's":
            place.rename(place.with_name("k2"))
        case "outside":
            manifest = json.loads((place / "manifest.json").read_text())
            manifest["files"]["../../outside.txt"] = manifest["files"].pop("large.bin")
            (place / "manifest.json").write_text(json.dumps(manifest))
    assert Mirror(config, there).fetch("count", "k2" if harm == "another's" else "k") is None
    assert there.find("count", "k") is None
    assert not list(there.root.glob("count/*")) and not (there.root.parent / "outside.txt").exists()
    assert ("is not fetched" in caplog.text) is (harm != "manifest gone")


def test_a_mirror_that_is_away_ends_nothing_and_is_caught_up_with(
    tmp_path: Path, here: ArtifactStore, there: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "shared"
    blocked.write_text("a file where the folder should be")
    mirror = Mirror(StorageConfig(url=f"file://{blocked}/x"), here)
    mirror.push(publish(here))
    assert mirror.fetch("count", "k") is None
    assert caplog.text.count("WARNING") == 1
    blocked.unlink()
    mirror.close()
    assert Mirror(StorageConfig(url=f"file://{blocked}/x"), there).fetch("count", "k") is not None


def test_many_fetch_the_same_at_once(tmp_path: Path, here: ArtifactStore, there: ArtifactStore) -> None:
    config = StorageConfig(url=f"file://{tmp_path}/shared")
    Mirror(config, here).push(publish(here))
    found: list[ArtifactRef | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(Mirror(config, there).fetch("count", "k"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6 and None not in found


def test_an_address_that_nobody_knows_is_refused(here: ArtifactStore) -> None:
    with pytest.raises(ConfigError, match=r"run\.storage: nosuchthing://x cannot be opened"):
        Mirror(StorageConfig(url="nosuchthing://x"), here)


@pytest.mark.usefixtures("prefect_server")
def test_another_machine_s_run_computes_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, tracking_uri: str
) -> None:
    log = tmp_path / "computed.log"
    model = {"path": "pocket:base"}

    @flow(name="mirrored")
    def mirrored(config: PipelineConfig) -> int:
        with pipeline_run(config, "mirrored") as run:
            run.stage(COUNT, config=CountConfig(log=str(log)))
            return len(run.wall_s)

    def machine(name: str) -> PipelineConfig:
        run = {
            "work_dir": tmp_path / name,
            "tracking": {"experiment": "test", "uri": tracking_uri},
            "storage": {"url": f"file://{tmp_path}/shared"},
        }
        return PipelineConfig.model_validate(
            {
                "run": run,
                "source": {"type": "pocket"},
                "training": {"model": model, "listener": model},
                "evaluation": {"answering": model},
            }
        )

    assert [mirrored(machine("one")), mirrored(machine("two"))] == [1, 0]
    assert log.read_text() == "count\n"
