"""A tiny open_clip model with random weights: embeddings, batches, errors, and the two stages that use it."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.base import Runtime
from lewis_core.config.data import CatalogConfig, EncoderConfig
from lewis_core.data.images import load_rgb
from lewis_core.errors import DataError, EvaluationError, ImageError, ModelError
from lewis_core.models.files import encoder_folder
from lewis_core.pipeline import BUILD_CATALOG, EMBED_IMAGES, INDEX_DATABASE
from lewis_core.prefetch import prefetch
from lewis_core.records import Catalog, Database, DatabaseEntry, Description, ImageRecord, load_record, save_record
from lewis_core.retrieval import pixels
from lewis_core.retrieval.embedding import encode_pictures
from lewis_core.retrieval.encoder import ClipEncoder, iter_batches
from lewis_core.retrieval.pixels import Geometry, fit, iter_pixels
from lewis_core.retrieval.store import EmbeddingStore
from lewis_core.retrieval.vectors import load_embeddings, load_text_index
from lewis_core.stages import run_stage
from lewis_core.testing import inspect_image, write_image, write_photo_tree

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 28, "layers": 1, "width": 16, "head_width": 8, "patch_size": 14},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    """A folder with random weights, which are the same in every run."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**TINY).state_dict(), folder / "open_clip_model.safetensors")
    return EncoderConfig(model=f"local-dir:{folder}")


def encoder(config: EncoderConfig, batch_size: int = 64) -> ClipEncoder:
    return ClipEncoder(config, Runtime(device="cpu", batch_size=batch_size))


def images(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(count)]


def test_rows_are_normalised_and_in_order(model: EncoderConfig) -> None:
    clip, pictures = encoder(model), images(3)
    matrix = clip.encode_images(clip.prepare_image(image) for image in pictures)
    assert matrix.shape == (3, 8)
    assert matrix.dtype == np.float32
    assert np.linalg.norm(matrix, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)
    alone = clip.encode_images([clip.prepare_image(pictures[2])])
    assert matrix[2] == pytest.approx(alone[0], abs=1e-5)


def test_a_picture_has_the_same_bits_in_any_company(model: EncoderConfig) -> None:
    clip = encoder(model.model_copy(update={"batch_size": 8}))
    prepared = [clip.prepare_image(image) for image in images(21)]
    together = clip.encode_images(prepared)
    backwards = clip.encode_images(prepared[::-1])
    alone = np.concatenate([clip.encode_images([one]) for one in prepared])
    assert together.tobytes() == backwards[::-1].tobytes() == alone.tobytes()


def test_the_batch_size_changes_nothing(model: EncoderConfig) -> None:
    texts = ["a mug", "a red bag with a long strap", "", "a " * 100, "ü 我"]
    whole, parts = (encoder(model, size).encode_texts(texts) for size in (64, 2))
    assert whole.shape == (5, 8)
    assert whole == pytest.approx(parts, abs=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_two_loads_give_the_same_bits(model: EncoderConfig) -> None:
    first, second = (encoder(model).encode_texts(["a mug", "a bag"]) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_bfloat16_is_close(model: EncoderConfig) -> None:
    half = encoder(model.model_copy(update={"precision": "bfloat16"})).encode_texts(["a mug"])
    assert half.dtype == np.float32
    assert float(half[0] @ encoder(model).encode_texts(["a mug"])[0]) > 0.99


def test_nothing_gives_nothing(model: EncoderConfig) -> None:
    assert len(encoder(model).encode_images([])) == 0


def test_a_batch_that_does_not_fit_is_halved(
    model: EncoderConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clip, sizes = encoder(model), []
    whole = clip.encode_texts(["a", "b", "c", "d", "e"])
    forward = clip._forward_texts

    def small_memory(batch: list[str]) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError
        return forward(batch)

    monkeypatch.setattr(clip, "_forward_texts", small_memory)
    assert clip.encode_texts(["a", "b", "c", "d", "e"]) == pytest.approx(whole, abs=1e-5)
    assert sizes == [5, 2, 3, 1, 2]  # 5 is halved to 2 and 3, 3 to 1 and 2
    assert "out of GPU memory with 5 rows" in caplog.text


def test_one_row_that_does_not_fit_is_an_error(model: EncoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = encoder(model)

    def no_memory(batch: list[str]) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(clip, "_forward_texts", no_memory)
    with pytest.raises(ModelError, match="does not hold the encoder and one row"):
        clip.encode_texts(["a", "b"])


def damage_config(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text("{")


def damage_weights(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").write_bytes(b"x" * 100)


def wrong_shape(folder: Path) -> None:
    config = {"model_cfg": TINY | {"embed_dim": 9}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def only_pickle(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_config, "cannot be loaded"),
        (damage_weights, "cannot be loaded"),
        (wrong_shape, "cannot be loaded"),
        (only_pickle, r"expected open_clip_config\.json and \*\.safetensors"),
    ],
)
def test_a_damaged_model_is_a_clear_error(model: EncoderConfig, tmp_path: Path, damage, message: str) -> None:
    source = encoder_folder(model)
    assert source is not None
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        encoder(EncoderConfig(model=f"local-dir:{tmp_path}"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncoderConfig(model="ViT-Z-99"), "'ViT-Z-99'.*cannot be loaded"),
        (EncoderConfig(model="ViT-B-32", pretrained="nonsense"), "pretrained 'nonsense'.*cannot be loaded"),
        (EncoderConfig(model="ViT-B-32", pretrained=None), "would have random weights"),
    ],
)
def test_an_unknown_model_is_a_clear_error(
    config: EncoderConfig, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL), pytest.raises(ModelError, match=message):
        encoder(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_missing_gpu_is_a_clear_error(model: EncoderConfig) -> None:
    with pytest.raises(ModelError, match="torch finds no GPU; set device to 'auto' or 'cpu'"):
        ClipEncoder(model, Runtime(device="cuda"))


@pytest.mark.parametrize("size", [(28, 28), (20, 31), (200, 61), (61, 200), (29, 28)], ids=str)
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_those_of_open_clip(size: tuple[int, int], resize: str, interpolation: str) -> None:
    from open_clip.transform import image_transform

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = image_transform(
        28, is_train=False, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize_mode=resize, interpolation=interpolation
    )(picture)
    found = (
        torch.from_numpy(fit(picture, Geometry(28, 28, resize, interpolation)).copy()).permute(2, 0, 1).float() / 255
    )
    found = (found - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    assert torch.equal(found, expected)


def test_a_preprocessing_of_its_own_is_kept(model: EncoderConfig, tmp_path: Path, photos: Path) -> None:
    source = encoder_folder(model)
    assert source is not None
    (tmp_path / "open_clip_model.safetensors").write_bytes((source / "open_clip_model.safetensors").read_bytes())
    config = {"model_cfg": TINY, "preprocess_cfg": {"resize_mode": "longest"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    own = encoder(EncoderConfig(model=f"local-dir:{tmp_path}"))
    assert own.geometry is None
    wide = Image.new("RGB", (80, 20), (250, 20, 20))
    assert own.prepare_image(wide).shape == (3, 28, 28)
    record = inspect_image(photos, "train/bag/b00/0.jpg")
    [row] = encode_pictures([record], own, photos, Runtime(device="cpu"))
    [expected] = own.encode_images([own.prepare_image(load_rgb(photos, record))])
    assert row.tobytes() == expected.tobytes()


@pytest.mark.parametrize("feeds_gpu", [False, True], ids=["threads", "processes"])
def test_pixels_come_in_order_from_any_workers(photos: Path, feeds_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_WORTH_PROCESSES", 1)
    records = [inspect_image(photos, str(path.relative_to(photos))) for path in sorted(photos.rglob("*.jpg"))] * 3
    geometry = Geometry(24, 24)
    expected = [fit(load_rgb(photos, record), geometry) for record in records]
    batches = iter_pixels(records, photos, geometry, 5, 2, feeds_gpu=feeds_gpu)
    assert np.array_equal(np.concatenate([batch.copy() for batch in batches]), expected)
    broken = [*records[:7], records[7].model_copy(update={"path": "train/none.jpg"})]
    batches = iter_pixels(broken, photos, geometry, 5, 2, feeds_gpu=feeds_gpu)
    assert len(next(batches)) == 5
    with pytest.raises(ImageError, match=r"train/none\.jpg: missing"):
        next(batches)


def test_a_killed_worker_is_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_WORTH_PROCESSES", 1)
    records = [inspect_image(photos, "train/bag/b00/0.jpg")] * 4000
    batches = iter_pixels(records, photos, Geometry(8, 8), 5, 2, feeds_gpu=True)
    others = set(active_children())
    next(batches)
    for worker in set(active_children()) - others:
        worker.kill()
    with pytest.raises(DataError, match="was killed, perhaps for want of memory"):
        list(batches)


def test_prefetch_keeps_order_and_bounds_what_waits() -> None:
    made: list[int] = []
    lock = threading.Lock()

    def make(item: int) -> int:
        time.sleep(0.01 * (item % 3 == 0))
        with lock:
            made.append(item)
        return item * 10

    results = prefetch(range(20), make, workers=4, ahead=5)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(made) <= 6  # one taken, five ahead
    assert list(results) == [item * 10 for item in range(1, 20)]


def test_prefetch_raises_at_its_turn() -> None:
    def make(item: int) -> int:
        return 1 // (2 - item)

    results = prefetch(range(5), make, workers=2, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_batches() -> None:
    assert list(iter_batches(range(5), 2)) == [[0, 1], [2, 3], [4]]


class ProgressReporter:
    """Keeps the last progress."""

    def __init__(self) -> None:
        self.last: tuple[int, int, str] | None = None

    def progress(self, done: int, total: int, unit: str) -> None:
        """Keep it."""
        self.last = (done, total, unit)

    def log_params(self, params: object) -> None:
        """Drop."""

    def log_metrics(self, metrics: object, step: int | None = None) -> None:
        """Drop."""

    def log_artifact(self, path: Path) -> None:
        """Drop."""

    def log_table(self, name: str, rows: object, step: int | None = None) -> None:
        """Drop."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four concepts with two photos each in train and test; two photos are the same."""
    root = tmp_path_factory.mktemp("photos")
    write_photo_tree(root, concepts=2, photos=2)
    (root / "test/mug/m01/1.jpg").write_bytes((root / "train/bag/b00/0.jpg").read_bytes())
    write_image(root / "train/bag/b00/laion/0.jpg", 99)
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def catalog(store: ArtifactStore, photos: Path) -> ArtifactRef:
    arguments = {"fingerprint": "f", "config": CatalogConfig()}
    return run_stage(BUILD_CATALOG, store, arguments, {"data_root": photos, "runtime": Runtime()})


@pytest.fixture(scope="module")
def embeddings(store: ArtifactStore, photos: Path, catalog: ArtifactRef, model: EncoderConfig) -> Iterator[ArtifactRef]:
    reporter = ProgressReporter()
    runtime = {"data_root": photos, "runtime": Runtime(device="cpu", batch_size=4)}
    yield run_stage(EMBED_IMAGES, store, {"catalog": catalog, "config": model}, runtime, reporter)
    assert reporter.last == (15, 15, "images")


def test_each_picture_is_embedded_once(embeddings: ArtifactRef, catalog: ArtifactRef, photos: Path, model) -> None:
    matrix, rows = load_embeddings(embeddings)
    assert matrix.shape == (15, 8)  # 16 photos, two of them equal; negatives are not embedded
    assert list(rows) == sorted(rows)
    assert embeddings.summary == {"images": 15, "dimensions": 8}
    photo = load_record(catalog.file("catalog.json"), Catalog).concepts[0].train[1]
    clip = encoder(model)
    with Image.open(photos / photo.path) as image:
        [expected] = clip.encode_images([clip.prepare_image(image.convert("RGB"))])
    assert matrix[rows[photo.sha256]] == pytest.approx(expected, abs=1e-5)


def test_known_embeddings_are_not_computed_again(
    photos: Path, catalog: ArtifactRef, model: EncoderConfig, embeddings: ArtifactRef, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    arguments = {"catalog": catalog, "config": model}
    runtime = {"data_root": photos, "runtime": Runtime(device="cpu")}

    def bits(ref: ArtifactRef) -> bytes:
        return ref.file("embeddings.safetensors").read_bytes()

    def forget_result(store: ArtifactStore) -> None:
        for ref in (store.root / "embed-images").iterdir():
            store.discard("embed-images", ref.name)

    store = ArtifactStore(tmp_path)
    first = bits(run_stage(EMBED_IMAGES, store, arguments, runtime))
    assert first == bits(embeddings)
    [part] = (tmp_path / "caches/embed-images").rglob("*.safetensors")
    forget_result(store)
    with monkeypatch.context() as patch:
        patch.setattr("lewis_core.retrieval.embedding.ClipEncoder", None)  # no model is loaded
        assert bits(run_stage(EMBED_IMAGES, store, arguments, runtime)) == first
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    forget_result(store)
    assert bits(run_stage(EMBED_IMAGES, store, arguments, runtime)) == first
    assert not part.exists()
    negatives = run_stage(EMBED_IMAGES, store, {**arguments, "with_negatives": True}, runtime)
    assert negatives.summary["images"] == 16
    assert len(list((tmp_path / "caches/embed-images").rglob("*.safetensors"))) == 2  # the negative alone was encoded


def test_the_store_keeps_what_it_is_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, rows = EmbeddingStore(tmp_path), np.arange(60, dtype=np.float32).reshape(20, 3)
    for number in range(20):
        store.add([f"p{number}"], rows[[number]])
    assert len(list(tmp_path.glob("*.safetensors"))) == 20
    found = EmbeddingStore(tmp_path).find(["p3", "p19", "p77"])
    assert {name: row.tolist() for name, row in found.items()} == {"p3": [9, 10, 11], "p19": [57, 58, 59]}
    [part] = tmp_path.glob("*.safetensors")  # too many parts were put together
    assert len(store.find([f"p{number}" for number in range(20)])) == 20
    (tmp_path / "half.safetensors").write_bytes(part.read_bytes()[:-5])
    (tmp_path / "x.unfinished").write_bytes(b"what a kill left")
    assert len(store.find(["p3"])) == 1
    assert "half.safetensors is damaged" in caplog.text
    assert not (tmp_path / "half.safetensors").exists()


def test_a_photo_that_disappeared_is_named(
    store: ArtifactStore, catalog: ArtifactRef, model: EncoderConfig, tmp_path: Path
) -> None:
    runtime = {"data_root": tmp_path, "runtime": Runtime(device="cpu")}
    arguments = {"catalog": catalog, "config": model.model_copy(update={"precision": "bfloat16"})}
    with pytest.raises(ImageError, match=r"\.jpg: missing"):
        run_stage(EMBED_IMAGES, store, arguments, runtime)
    assert not list((store.root / "embed-images").glob(".building-*"))


def publish_database(store: ArtifactStore, key: str, entries: list[DatabaseEntry]) -> ArtifactRef:
    with store.building("describe-concepts", key) as folder:
        save_record(folder / "database.json", Database(speaker="base", entries=tuple(entries)))
        return store.publish(folder, "describe-concepts", key, {}, "", {}, {})


def entry(name: str, completion: str, description: Description | None = None) -> DatabaseEntry:
    return DatabaseEntry(
        concept=f"mug/{name}",
        category="mug",
        category_word="mug",
        reference=ImageRecord(path="a.jpg", sha256="x", width=1, height=1),
        completion=completion,
        description=description,
    )


def test_texts_are_indexed_and_fallbacks_named(
    store: ArtifactStore, embeddings: ArtifactRef, model: EncoderConfig
) -> None:
    described = Description(thinking="", coarse="A photo of a mug", detailed="The mug is red.")
    entries = [entry("a", "<raw>", described), entry("b", "no tags at all"), entry("c", " ")]
    database = publish_database(store, "three", entries)
    arguments = {"database": database, "embeddings": embeddings, "config": model}
    index = run_stage(INDEX_DATABASE, store, arguments, {"runtime": Runtime(device="cpu")})
    matrix, rows = load_text_index(index)
    assert rows == {"mug/a": 0, "mug/b": 1, "mug/c": 2}
    texts = ["A photo of a mug. The mug is red.", "no tags at all", "mug"]
    assert matrix == pytest.approx(encoder(model).encode_texts(texts), abs=1e-5)
    assert json.loads(index.file("fallbacks.json").read_text()) == {"mug/b": "completion", "mug/c": "category_word"}
    assert index.summary == {"concepts": 3, "without_description": 2}


def test_an_empty_database_is_an_error(store: ArtifactStore, embeddings: ArtifactRef, model: EncoderConfig) -> None:
    arguments = {"database": publish_database(store, "none", []), "embeddings": embeddings, "config": model}
    with pytest.raises(EvaluationError, match="database of speaker 'base' is empty"):
        run_stage(INDEX_DATABASE, store, arguments, {"runtime": Runtime(device="cpu")})


def test_texts_and_images_need_the_same_encoder(
    store: ArtifactStore, catalog: ArtifactRef, model: EncoderConfig
) -> None:
    from lewis_core.retrieval.vectors import save_vectors

    with store.building("embed-images", "wide") as folder:
        matrix = np.ones((1, 9), np.float32)
        save_vectors(folder / "embeddings.safetensors", folder / "images.json", matrix, ["x"])
        wide = store.publish(folder, "embed-images", "wide", {}, "", {}, {})
    database = publish_database(store, "one", [entry("a", "red")])
    arguments = {"database": database, "embeddings": wide, "config": model}
    with pytest.raises(EvaluationError, match="makes 8 dimensions, the images have 9"):
        run_stage(INDEX_DATABASE, store, arguments, {"runtime": Runtime(device="cpu")})
