"""A folder full of files that want to do harm: each is refused by name or read rightly, and costs little."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient

from lewis_core.data.hostile import Hostile, hostile_files, write_hostile_files
from lewis_core.models.images import ImageFolder
from lewis_core.testing import FakeModel, write_image
from tests.service.helpers import count, serving

NAMES = [file.name for file in hostile_files()]


class Decodes(FakeModel):
    """Decodes every candidate, as a real model does, and answers with the brightness."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._images = ImageFolder(folder, max_pixels=50_000_000)

    def score(self, games: Sequence[Any]) -> Any:
        """Decode, then answer."""
        for game in games:
            for image in game.candidates:
                self._images.digest(image)
                assert self._images.load(image).mode == "RGB"
        return super().score(games)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Hostile]]:
    folder = tmp_path_factory.mktemp("hostile")
    write_image(folder / "good.jpg", 1)
    return folder, {file.name: file for file in write_hostile_files(folder)}


@pytest.fixture(scope="module")
def client(corpus: tuple[Path, Any]) -> Iterator[TestClient]:
    with serving(lambda: Decodes(corpus[0])) as client:
        yield client


def ask(client: TestClient, *images: str) -> Any:
    return client.post("/v1/score", json={"games": [{"candidates": images, "descriptions": ["a red mug"]}]})


@pytest.mark.parametrize("name", NAMES)
def test_each_is_refused_by_name_or_read_rightly(client: TestClient, corpus: tuple[Path, Any], name: str) -> None:
    before = psutil.Process().memory_info().rss
    answer = ask(client, "good.jpg", name)
    assert psutil.Process().memory_info().rss - before < 400 << 20
    if corpus[1][name].is_image:
        assert answer.status_code == 200
        return
    assert answer.status_code in (403, 422)
    assert answer.json()["detail"].startswith(name)
    assert ask(client, "good.jpg").status_code == 200


def test_many_bad_files_at_once_cost_the_good_ones_nothing(client: TestClient) -> None:
    games = [{"candidates": ["good.jpg"], "descriptions": ["red"]}]
    unusual = sum(file.is_image for file in hostile_files())
    assert [ask(client, name).status_code for name in NAMES * 2].count(200) == 2 * unusual
    count("hostile image files", len(NAMES), read_rightly=unusual)
    started = time.monotonic()
    assert client.post("/v1/score", json={"games": games * 20}).status_code == 200
    assert time.monotonic() - started < 60
