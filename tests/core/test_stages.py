"""A stage's identity is what it computes, never where; the same identity is never computed twice."""

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from lewis_core.artifacts import ArtifactRef, ArtifactStore, digest_file
from lewis_core.config.base import FrozenConfig, ModelRef, Runtime
from lewis_core.config.data import CatalogConfig, EncoderConfig, GamesConfig
from lewis_core.errors import ConfigError, DataError, ModelError
from lewis_core.pipeline import STAGES
from lewis_core.stages import Stage, find_result, identity, module_file, run_stage, source_digest, stage_key

MODULE = """
from pathlib import Path
from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import Runtime
from lewis_core.config.data import GamesConfig
from lewis_core.errors import DataError

def write(text: str, output_dir: Path, config: GamesConfig) -> dict:
    (output_dir / "text.txt").write_text(text)
    with (Path(__file__).parent / "calls").open("a") as calls:
        calls.write(text + "\\n")
    return {"seed": config.seed}

def fail(text: str, output_dir: Path) -> dict:
    (output_dir / "half.txt").write_text(text)
    raise DataError("no")

def copy(source: ArtifactRef, output_dir: Path, data_root: Path, runtime: Runtime) -> dict:
    (output_dir / "copy.txt").write_text(source.file("text.txt").read_text())
    return {"workers": runtime.num_workers}
"""
WRITE = Stage("write", "stage_under_test:write")
FAIL = Stage("fail", "stage_under_test:fail")
COPY = Stage("copy", "stage_under_test:copy")


def forget_sources() -> None:
    """A process reads each source once; tests change them."""
    source_digest.cache_clear()
    module_file.cache_clear()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Make the module importable; answers which texts ``write`` was called with."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "stage_under_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    forget_sources()
    yield lambda: (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    sys.modules.pop("stage_under_test", None)
    forget_sources()


def test_a_second_call_computes_nothing(tmp_path: Path, calls: Callable[[], list[str]]) -> None:
    store, arguments = ArtifactStore(tmp_path / "store"), {"text": "a", "config": GamesConfig()}
    assert find_result(WRITE, store, arguments) is None
    first = run_stage(WRITE, store, arguments)
    assert run_stage(WRITE, store, arguments) == first == find_result(WRITE, store, arguments)
    assert calls() == ["a"]
    assert first.summary == {"seed": 23}
    assert first.verify().arguments["config"]["type"] == "GamesConfig"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.unlink(), id="deleted"),
        pytest.param(lambda file: file.write_text(""), id="truncated"),
        pytest.param(lambda file: file.write_text("b"), id="changed"),
    ],
)
def test_a_damaged_output_runs_again(tmp_path: Path, calls: Callable[[], list[str]], damage) -> None:
    store, arguments = ArtifactStore(tmp_path / "store"), {"text": "a", "config": GamesConfig()}
    first = run_stage(WRITE, store, arguments)
    damage(first.file("text.txt"))
    assert run_stage(WRITE, store, arguments) == first
    assert first.file("text.txt").read_text() == "a"
    assert calls() == ["a", "a"]


def test_other_arguments_are_another_artifact(tmp_path: Path, calls: Callable[[], list[str]]) -> None:
    store = ArtifactStore(tmp_path / "store")
    run_stage(WRITE, store, {"text": "a", "config": GamesConfig()})
    run_stage(WRITE, store, {"text": "b", "config": GamesConfig()})
    run_stage(WRITE, store, {"text": "b", "config": GamesConfig(seed=1)})
    assert calls() == ["a", "b", "b"]
    assert len(list((tmp_path / "store" / "write").iterdir())) == 3


def test_a_stage_that_fails_publishes_nothing(tmp_path: Path, calls: Callable[[], list[str]]) -> None:
    store = ArtifactStore(tmp_path / "store")
    with pytest.raises(DataError, match="no"):
        run_stage(FAIL, store, {"text": "a"})
    assert list((tmp_path / "store" / "fail").iterdir()) == []
    assert find_result(FAIL, store, {"text": "a"}) is None


def test_a_missing_runtime_value_is_named(tmp_path: Path, calls: Callable[[], list[str]]) -> None:
    store = ArtifactStore(tmp_path / "store")
    source = run_stage(WRITE, store, {"text": "a", "config": GamesConfig()})
    with pytest.raises(ValidationError, match="data_root"):
        run_stage(COPY, store, {"source": source}, {"runtime": Runtime()})


def test_where_and_how_are_no_part_of_the_identity(tmp_path: Path, calls: Callable[[], list[str]]) -> None:
    keys = []
    for place, workers in (("one", 1), ("two", 7)):
        store = ArtifactStore(tmp_path / place)
        source = run_stage(WRITE, store, {"text": "a", "config": GamesConfig()})
        runtime = {"data_root": tmp_path / place, "runtime": {"num_workers": workers}}
        keys.append(run_stage(COPY, store, {"source": source}, runtime).key)
    assert keys[0] == keys[1]


def test_an_input_counts_by_content(tmp_path: Path, calls: Callable[[], list[str]]) -> None:
    store = ArtifactStore(tmp_path / "store")
    # Another seed is another artifact of "write", but the same file.
    first, same, other = (
        run_stage(WRITE, store, {"text": text, "config": GamesConfig(seed=seed)})
        for text, seed in (("a", 1), ("a", 2), ("b", 1))
    )
    assert first.key != same.key
    assert stage_key(COPY, {"source": first}) == stage_key(COPY, {"source": same})
    assert stage_key(COPY, {"source": first}) != stage_key(COPY, {"source": other})


def test_the_key_changes_with_the_source(tmp_path: Path, calls: Callable[[], list[str]]) -> None:
    before = stage_key(WRITE, {"text": "a"})
    module = tmp_path / "modules" / "stage_under_test.py"
    module.write_text(MODULE + "\n# a comment is source, too\n")
    forget_sources()
    assert stage_key(WRITE, {"text": "a"}) != before


def test_the_source_of_imported_modules_counts_lazy_ones_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main_module.py").write_text("def f():\n    from lewis_core.data import splits\n")
    (tmp_path / "other_module.py").write_text("def f():\n    from lewis_core.data import games\n")
    (tmp_path / "third_module.py").write_text("def f():\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    read: list[str] = []

    monkeypatch.setattr("lewis_core.stages.digest_file", lambda path: read.append(path.name) or digest_file(path))
    forget_sources()
    source_digest("main_module")
    assert {"main_module.py", "splits.py", "records.py", "seeding.py"} <= set(read)
    assert "games.py" not in read
    read.clear()
    source_digest("third_module")
    assert read == ["third_module.py"]
    forget_sources()


def test_the_source_behind_a_service_counts_for_stages_that_ask_it(
    tmp_path: Path, calls: Callable[[], list[str]]
) -> None:
    behind = tmp_path / "modules" / "behind_service.py"
    asking = Stage("write", WRITE.function, asks=("behind_service",))

    def keys(source: str) -> list[str]:
        behind.write_text(source)
        forget_sources()
        return [stage_key(stage, {"text": "a"}) for stage in (WRITE, asking)]

    (plain, before), (still_plain, after) = keys("ANSWER = 1"), keys("ANSWER = 2")
    assert plain == still_plain
    assert len({plain, before, after}) == 3
    manifest = run_stage(asking, ArtifactStore(tmp_path / "store"), {"text": "a", "config": GamesConfig()}).verify()
    assert manifest.source == source_digest("stage_under_test", "behind_service") != WRITE.source


def test_every_stage_that_takes_a_service_counts_its_source() -> None:
    asking = {name for name, stage in STAGES.items() if "service_url" in inspect.signature(stage.load()).parameters}
    assert asking == {name for name, stage in STAGES.items() if stage.asks}
    assert all(module_file(module) for stage in STAGES.values() for module in stage.asks)


def test_identity_of_plain_values() -> None:
    assert identity({"b": (1, 2.5), "a": [None, True]}) == {"a": [None, True], "b": [1, 2.5]}
    assert list(identity({"b": 1, "a": 2})) == ["a", "b"]


@pytest.mark.parametrize("value", [Path("/x"), object(), {1, 2}])
def test_values_without_identity_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="cannot be part of a stage's identity"):
        identity({"x": value})


def test_two_settings_with_equal_fields_are_different() -> None:
    class One(FrozenConfig):
        seed: int = 1

    class Two(FrozenConfig):
        seed: int = 1

    assert identity(One()) != identity(Two())
    assert identity(CatalogConfig()) == identity(CatalogConfig.model_validate({}))


def write_encoder(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir()
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    return folder


def test_a_local_encoder_counts_by_content(tmp_path: Path) -> None:
    one, copy = write_encoder(tmp_path / "one"), write_encoder(tmp_path / "copy")
    other = write_encoder(tmp_path / "other", b"v")

    def of(folder: Path, **fields: str) -> object:
        return identity(EncoderConfig(model=f"local-dir:{folder}", **fields))

    assert of(one) == of(copy) == of(one, pretrained="ignored for folders")
    assert of(one) != of(other)
    assert of(one) != of(one, precision="bfloat16")
    assert str(tmp_path) not in json.dumps(of(one))


def test_an_encoder_by_name_counts_by_name_and_weights(tmp_path: Path) -> None:
    assert identity(EncoderConfig()) == identity(EncoderConfig(model="ViT-L-14-336", pretrained="openai"))
    assert identity(EncoderConfig()) != identity(EncoderConfig(pretrained="laion2b"))
    (tmp_path / "a.safetensors").write_bytes(b"same")
    (tmp_path / "b.safetensors").write_bytes(b"same")
    first, second = (identity(EncoderConfig(pretrained=str(tmp_path / f"{name}.safetensors"))) for name in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("pocket:nonsense", "no embedded checkpoint 'pocket:nonsense'"),
        ("local-dir:/nowhere", "/nowhere is not an open_clip folder; expected open_clip_config.json"),
    ],
)
def test_a_missing_encoder_has_no_identity(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        identity(EncoderConfig(model=model))


def test_a_local_model_counts_by_content(tmp_path: Path) -> None:
    for name, weights in (("one", b"w"), ("copy", b"w"), ("other", b"v")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    one, copy, other = (identity(ModelRef(path=str(tmp_path / name))) for name in ("one", "copy", "other"))
    assert one == copy != other


def test_a_handle_counts_by_digest_only(tmp_path: Path) -> None:
    refs = []
    for place in ("one", "two"):
        store = ArtifactStore(tmp_path / place)
        with store.building("kind", place) as folder:
            (folder / "a").write_text("a")
            refs.append(store.publish(folder, "kind", place, {}, "", {"place": place}, {}))
    assert isinstance(refs[0], ArtifactRef)
    assert identity(refs[0]) == identity(refs[1]) == {"artifact": "kind", "digest": refs[0].digest}


@pytest.mark.parametrize(
    "name",
    [
        "build-catalog", "split-concepts", "embed-images", "mine-distractors", "build-games", "build-dataset",
        "index-database",
    ],
)  # fmt: skip
def test_stages_of_data_and_retrieval_exist(name: str) -> None:
    assert STAGES[name].name == name
    assert callable(STAGES[name].load())
    assert module_file(STAGES[name].module) is not None


def test_a_model_in_the_home_folder_counts_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    plain = ModelRef(path=str(tmp_path / "model"), adapter=tmp_path / "adapter")
    assert identity(ModelRef(path="~/model", adapter=Path("~/adapter"))) == identity(plain)
