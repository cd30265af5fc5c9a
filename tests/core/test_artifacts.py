"""Artifacts are whole or not there, whatever happens to the process or to the files."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lewis_core.artifacts import ArtifactRef, ArtifactStore, digest_folder, digest_json
from lewis_core.errors import ArtifactError


def publish(store: ArtifactStore, key: str = "k1", text: str = "hello", **fields: object) -> ArtifactRef:
    with store.building("kind", key) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(text)
        return store.publish(folder, "kind", key, {"n": 1}, "source", {"count": 2}, {"when": time.time(), **fields})


def test_what_is_published_is_found_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert store.find("kind", "k1") is None
    ref = publish(store)
    assert store.find("kind", "k1") == ref
    assert ref.path == tmp_path / "kind" / "k1"
    assert ref.file("sub/a.txt").read_text() == "hello"
    assert ref.summary == {"count": 2}


def test_digest_is_that_of_the_files_and_of_nothing_else(tmp_path: Path) -> None:
    first = publish(ArtifactStore(tmp_path / "one"), machine="a")
    second = publish(ArtifactStore(tmp_path / "two"), key="k2", machine="b")
    # sha256("hello") is a published constant; 5 is its length in bytes
    hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert first.verify().files == {"sub/a.txt": (5, hello)}
    assert first.digest == second.digest == digest_json({"sub/a.txt": [5, hello]})
    assert publish(ArtifactStore(tmp_path / "three"), text="hallo").digest != first.digest


def test_manifests_of_equal_inputs_are_equal_bytes(tmp_path: Path) -> None:
    first, second = (publish(ArtifactStore(tmp_path / name), machine=name) for name in ("one", "two"))
    assert (first.path / "manifest.json").read_bytes() == (second.path / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda p: (p / "sub/a.txt").unlink(), "a.txt is missing", id="deleted"),
        pytest.param(lambda p: (p / "sub/a.txt").write_text("hel"), "was changed", id="truncated"),
        pytest.param(lambda p: (p / "sub/a.txt").write_text("jello"), "was changed", id="same-size"),
        pytest.param(lambda p: (p / "manifest.json").unlink(), "no complete artifact", id="no-manifest"),
        pytest.param(lambda p: (p / "manifest.json").write_text("{"), "cannot be read", id="half-a-manifest"),
    ],
)
def test_a_damaged_artifact_is_not_found_and_its_handle_is_refused(tmp_path: Path, damage, message: str) -> None:
    store = ArtifactStore(tmp_path)
    ref = publish(store)
    handle = ref.model_dump_json()
    assert ArtifactRef.model_validate_json(handle) == ref
    damage(ref.path)
    assert store.find("kind", "k1") is None
    with pytest.raises(ArtifactError, match=message):
        ref.verify()
    with pytest.raises(ArtifactError, match=message):
        ArtifactRef.model_validate_json(handle)
    assert publish(store).digest == ref.digest
    assert store.find("kind", "k1") == ref


def test_a_handle_does_not_fit_other_content_at_its_place(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    old = publish(store)
    store.discard("kind", "k1")
    publish(store, text="other")
    with pytest.raises(ArtifactError, match="run the stage again"):
        old.verify()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no file 'b\.txt'"):
        publish(ArtifactStore(tmp_path)).file("b.txt")


def test_nothing_is_left_of_a_stage_that_raises(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(RuntimeError), store.building("kind", "k1") as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError
    assert list((tmp_path / "kind").iterdir()) == []
    assert store.find("kind", "k1") is None


def test_checkpoints_survive_until_the_artifact_is_there(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    checkpoint = store.work_dir("kind", "k1") / "checkpoint"
    checkpoint.write_text("step 3")
    with pytest.raises(RuntimeError), store.building("kind", "k1"):
        raise RuntimeError
    assert checkpoint.read_text() == "step 3"
    publish(store)
    assert not checkpoint.exists()


HOLD = """
import sys, time
from pathlib import Path
from lewis_core.artifacts import ArtifactStore
store = ArtifactStore(Path(sys.argv[1]))
with store.lock("kind", "k1"), store.building("kind", "k1") as folder:
    (folder / "half.txt").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
COUNT_UP = """
import sys, time
from pathlib import Path
from lewis_core.artifacts import ArtifactStore
with ArtifactStore(Path(sys.argv[1])).lock("kind", "k1"):
    counter = Path(sys.argv[1]) / "counter"
    value = int(counter.read_text())
    time.sleep(0.2)
    counter.write_text(str(value + 1))
"""


def start(code: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Store of a process that was killed while it built ``kind/k1``."""
    with start(HOLD, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    return tmp_path


def test_a_killed_builder_leaves_its_lock_free_and_its_remains_are_swept(killed: Path) -> None:
    store = ArtifactStore(killed)
    assert len(list((killed / "kind").glob(".building-*"))) == 1
    assert store.find("kind", "k1") is None
    with store.lock("kind", "k1"):
        ref = publish(store)
    assert [path.name for path in (killed / "kind").iterdir()] == ["k1"]
    assert list(digest_folder(ref.path)) == ["sub/a.txt"]


def test_the_lock_excludes_other_processes(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    for process in [start(COUNT_UP, tmp_path) for _ in range(3)]:
        with process:
            assert process.wait() == 0
    assert (tmp_path / "counter").read_text() == "3"


def test_canonical_json_ignores_the_order_of_keys() -> None:
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json(json.loads('{"b": [1, 2], "a": 1}'))
    assert digest_json({"b": [2, 1]}) != digest_json({"b": [1, 2]})


def test_a_summary_that_json_cannot_hold_exactly_is_sealed_as_it_will_be_read(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with store.building("kind", "key") as folder:
        (folder / "a.txt").write_text("a")
        summary = {"nan": float("nan"), "path": Path("x"), "pair": (1, 2), "x": 0.1}
        store.publish(folder, "kind", "key", {}, "source", summary, {})
    assert store.find("kind", "key") is not None
