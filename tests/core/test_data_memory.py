"""A second catalog of the same folder opens new and changed files only, and is right whatever happened to them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lewis_core.artifacts import ArtifactStore
from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data import images, memory, readers, workers
from lewis_core.data.catalog import build_catalog
from lewis_core.data.contact_sheet import encode_contact_sheet
from lewis_core.data.layout import scan_tree
from lewis_core.errors import DataError, ImageError
from lewis_core.pipeline import BUILD_CATALOG
from lewis_core.records import Catalog, load_record
from lewis_core.reporting import NullReporter
from lewis_core.stages import run_stage
from lewis_core.testing import write_image, write_photo_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories of two concepts with two photos in each of train and test: 16 photos."""
    write_photo_tree(tmp_path / "root", concepts=2, photos=2)
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def _every_file_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SETTLED_NS", -(10**18))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the files that are opened."""
    paths: list[str] = []
    sample = images.sample_image

    def note(root: Path, path: str, max_pixels: int) -> images.Sampled:
        paths.append(path)
        return sample(root, path, max_pixels)

    monkeypatch.setattr(workers, "sample_image", note)
    return paths


def build(root: Path, cache: Path | None = None, config: CatalogConfig = CatalogConfig()) -> dict[str, bytes]:
    """Build beside the root: files by name."""
    output = root.with_name(f"out{len(list(root.parent.iterdir()))}")
    output.mkdir()
    cache = cache or root.with_name("cache")
    build_catalog("f", output, config, root, Runtime(num_workers=1), NullReporter(), None, cache)
    return {path.name: path.read_bytes() for path in output.iterdir()}


def test_only_new_and_changed_files_are_opened(root: Path, opened: list[str]) -> None:
    first = build(root)
    assert len(opened) == 16
    assert build(root) == first
    assert len(opened) == 16
    write_image(root / "train/bag/b00/new.jpg", 99)
    write_image(root / "train/bag/b00/1.jpg", 98)
    (root / "test/mug/m00/0.jpg").unlink()
    del opened[:]
    second = build(root)
    assert opened == ["train/bag/b00/1.jpg", "train/bag/b00/new.jpg"]
    assert second == build(root, root.with_name("another cache"))


def test_a_file_that_keeps_its_size_and_date_is_still_opened_when_it_changed(root: Path, opened: list[str]) -> None:
    """Both ways to fool a look at size and date: writing in place, and putting another file there."""
    build(root)
    for path, replaced in (("train/bag/b00/0.jpg", False), ("train/mug/m00/0.jpg", True)):
        file, other = root / path, root / "other"
        before = file.stat()
        content = bytearray(file.read_bytes())
        content[-20] ^= 1
        (other if replaced else file).write_bytes(content)
        if replaced:
            other.rename(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    del opened[:]
    found = build(root)
    assert opened == ["train/bag/b00/0.jpg", "train/mug/m00/0.jpg"]
    assert found == build(root, root.with_name("another cache"))


def test_what_changed_a_moment_ago_is_not_remembered(
    root: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SETTLED_NS", 10**15)
    build(root)
    build(root)
    assert len(opened) == 32


def test_unusable_files_are_looked_at_again(root: Path, opened: list[str]) -> None:
    (root / "train/bag/b00/0.jpg").write_bytes(b"")
    build(root, config=CatalogConfig(max_quarantine_frac=0.1))
    del opened[:]
    build(root, config=CatalogConfig(max_quarantine_frac=0.1))
    assert opened == ["train/bag/b00/0.jpg"]


def test_a_smaller_limit_applies_to_remembered_images(root: Path, opened: list[str]) -> None:
    write_image(root / "train/bag/b00/0.jpg", 1, size=64)
    build(root)
    del opened[:]
    config = CatalogConfig(max_image_pixels=2000, max_quarantine_frac=0.1)
    assert b"64 \xc3\x97 64 pixels, more than 2000 allowed" in build(root, config=config)["quarantine.jsonl"]
    assert opened == ["train/bag/b00/0.jpg"]


@pytest.mark.parametrize("damage", ["cut", "garbage", "version"])
def test_a_damaged_memory_costs_time_only(
    root: Path, opened: list[str], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_CHUNK", 1)  # a line for each
    first = build(root)
    [file] = (root.with_name("cache")).rglob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(
        {
            "cut": "".join(lines[:10]) + lines[10][:30],
            "garbage": "".join(lines[:5]) + "[1, 2]\n" + "".join(lines[5:]),
            "version": '["another version"]\n' + "".join(lines[1:]),
        }[damage]
    )
    del opened[:]
    assert build(root) == first
    assert len(opened) == {"cut": 7, "garbage": 12, "version": 16}[damage]
    del opened[:]
    assert build(root) == first
    assert opened == []


def test_two_folders_of_photos_have_two_memories(root: Path, tmp_path: Path, opened: list[str]) -> None:
    write_photo_tree(tmp_path / "second/root", concepts=2, photos=1)
    build(root)
    build(tmp_path / "second/root", root.with_name("cache"))
    del opened[:]
    build(root)
    assert opened == []


KILLED = """
import os, signal, sys
from pathlib import Path
from lewis_core.artifacts import ArtifactStore
from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig
from lewis_core.data import memory, readers
from lewis_core.pipeline import BUILD_CATALOG
from lewis_core.data.layout import scan_tree
from lewis_core.reporting import NullReporter
from lewis_core.stages import run_stage

class Killer(NullReporter):
    def progress(self, done, total, unit):
        if done >= int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

memory.SETTLED_NS = -(10**18)
readers._CHUNK = 4
root, arguments = Path(sys.argv[1]), {"fingerprint": scan_tree(Path(sys.argv[1])), "config": CatalogConfig()}
runtime = {"data_root": root, "runtime": Runtime(num_workers=2)}
run_stage(BUILD_CATALOG, ArtifactStore(Path(sys.argv[2])), arguments, runtime, Killer())
"""


def test_a_killed_run_goes_on_where_it_was_and_gives_the_same_bytes(
    root: Path, tmp_path: Path, opened: list[str]
) -> None:
    for killed_at in (8, 12):
        command = [sys.executable, "-c", KILLED, str(root), str(tmp_path / "killed"), str(killed_at)]
        result = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7"}, check=False)
        assert result.returncode == -signal.SIGKILL
    arguments = {"fingerprint": scan_tree(root), "config": CatalogConfig()}
    runtime = {"data_root": root, "runtime": Runtime(num_workers=1)}
    finished = run_stage(BUILD_CATALOG, ArtifactStore(tmp_path / "killed"), arguments, runtime)
    assert len(opened) == 4  # of 16
    never_killed = run_stage(BUILD_CATALOG, ArtifactStore(tmp_path / "other"), arguments, runtime)
    assert finished.digest == never_killed.digest
    assert [path.name for path in finished.path.parent.iterdir()] == [finished.key]


def test_worker_processes_find_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(readers, "_CHUNK", 3)
    (root / "train/bag/b00/bad.jpg").write_bytes(b"")
    outputs = []
    for num_workers in (1, 2):
        output = root.with_name(f"workers{num_workers}")
        output.mkdir()
        config, runtime = CatalogConfig(max_quarantine_frac=0.1), Runtime(num_workers=num_workers)
        build_catalog("f", output, config, root, runtime, NullReporter())
        outputs.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert outputs[0] == outputs[1]
    assert len(load_record(root.with_name("workers2") / "catalog.json", Catalog).concepts) == 4


def test_a_killed_process_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_WORTH_PROCESSES", 1)
    with readers.Readers(num_workers=2) as opened:
        opened.expect(num_files=1)
        [helper] = opened.helpers
        helper.process.kill()
        with pytest.raises(DataError, match=r"was killed, perhaps for want of memory; .*run\.runtime\.num_workers"):
            list(opened.examine(["train/bag/b00/0.jpg"] * 1000, root, 10_000))


def test_a_helper_says_what_went_wrong(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_WORTH_PROCESSES", 1)
    with readers.Readers(num_workers=2) as opened:
        opened.expect(num_files=1)
        sheet = opened.begin(encode_contact_sheet, [("", [images.Photo("train/none.jpg", "", 1, 1)])], root)
        with pytest.raises(ImageError, match=r"^train/none\.jpg: missing, or a link to nothing$"):
            sheet()


def test_a_helper_ends_with_the_process_that_it_helps(root: Path) -> None:
    """However that ends; the helper holds the pipe, too, that is read here to its end."""
    program = (
        "import os, signal; from lewis_core.data.readers import Readers; from pathlib import Path\n"
        "readers = Readers(num_workers=2)\nreaders.expect(num_files=10**6)\n"
        f"next(readers.examine(['train/bag/b00/0.jpg'] * 1000, Path({str(root)!r}), 10_000))\n"
        "print(readers.helpers[0].process.poll(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (-signal.SIGKILL, "None\n")


def test_an_image_error_names_its_file(root: Path) -> None:
    with pytest.raises(ImageError, match=r"^train/none\.jpg: missing, or a link to nothing$"):
        images.sample_image(root, "train/none.jpg")
