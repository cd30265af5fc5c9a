"""The real thing: uvicorn, a tiny random checkpoint, photos on disk."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lewis_core.errors import ListenerError
from lewis_core.listener.client import HttpModel
from lewis_core.listener.schemas import ChoiceItem, GenerateItem, Question, ScoreGame
from lewis_core.testing import FakeModel, write_image, write_tiny_checkpoint
from tests.service.helpers import Asker, wait_for

TOKEN, NEXT_TOKEN = "token-of-the-tests-1", "token-of-the-tests-2"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lewis_core.listener", "--device", "cpu", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def write_model(folder: Path, seed: int) -> None:
    """Write a random checkpoint and the file that names it."""
    checkpoint = write_tiny_checkpoint(folder / f"seed{seed}", seed=seed)
    (folder / "model.json").write_text(json.dumps({"path": str(checkpoint), "prompts": "concise"}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for index in range(3):
        write_image(root / f"{index}.jpg", index)
    (root / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    (root / "escape.jpg").symlink_to("/etc/passwd")
    return root


@pytest.fixture(scope="module")
def service(photos, tmp_path_factory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, seed=0)
    (folder / "tokens").write_text(TOKEN)
    (folder / "tokens").chmod(0o600)
    port = free_port()
    options = ["--model", str(folder / "model.json"), "--token-file", str(folder / "tokens"), "--drain-s", "60"]
    process = start(*options, "--image-root", str(photos), "--port", str(port), "--threads", "1")
    process.folder = folder
    url = f"http://127.0.0.1:{port}"
    with HttpModel(url, TOKEN) as model:
        deadline = time.monotonic() + 180
        while not ((state := model.readiness()[0]) and state.status == "ready"):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield process, url
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_a_real_model_answers_over_http(service):
    with HttpModel(service[1], TOKEN) as model:
        [scores] = model.score([ScoreGame(candidates=("0.jpg", "1.jpg"), descriptions=("a red mug",))])
        [[answer]] = model.choose(
            [ChoiceItem(image="2.jpg", questions=(Question(prompt="Which?", choices=("A", "B")),))]
        )
        [texts] = model.generate([GenerateItem(image="0.jpg", prompt="Say.", max_new_tokens=4)])
    [row] = scores.yes_probability
    assert row[0] != row[1]
    assert answer.log_probs[0] != answer.log_probs[1]
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("image", "status"),
    [
        pytest.param("../secret.jpg", 403, id="climbs"),
        pytest.param("/etc/passwd", 403, id="absolute"),
        pytest.param("escape.jpg", 403, id="link-outside"),
        pytest.param("broken.jpg", 422, id="broken"),
        pytest.param("missing.jpg", 422, id="missing"),
    ],
)
def test_images_outside_and_broken_ones_are_refused(service, image, status):
    with HttpModel(service[1], TOKEN) as model, pytest.raises(ListenerError, match=image) as caught:
        model.score([ScoreGame(candidates=("0.jpg", image), descriptions=("a red mug",))])
    assert caught.value.status == status


def test_a_taken_port_is_said_so(service, photos):
    port = service[1].rpartition(":")[2]
    process = start("--model", "pocket:base", "--image-root", str(photos), "--port", port)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 98
    assert "address already in use" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        pytest.param(["--model", "./no/such/folder"], 3, "there is no model folder ./no/such/folder", id="no-model"),
        pytest.param(["--model", "{}"], 2, "not a model reference", id="bad-json"),
        pytest.param(["--model", "x", "--host", "0.0.0.0"], 2, "needs a --token-file", id="open-without-token"),
        pytest.param(["--model", "x", "--token-env", "NO_SUCH"], 2, "NO_SUCH is empty", id="empty-token"),
        pytest.param(["--model", "x", "--deadline-s", "0"], 2, "impossible limits", id="bad-limit"),
        pytest.param(["--model", "x", "--catalog", "no.json"], 2, "no.json: not a Catalog", id="no-catalog"),
    ],
)
def test_a_wrong_start_ends_with_the_reason(photos, arguments, status, says):
    process = start("--image-root", str(photos), "--port", "0", *arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status
    assert says in errors
    assert "Traceback" not in errors


def test_sighup_exchanges_model_and_tokens(service):
    process, url = service
    game = ScoreGame(candidates=("0.jpg", "1.jpg"), descriptions=("a red mug",))
    with HttpModel(url, TOKEN) as model:
        before = model.score([game])
        write_model(process.folder, seed=1)
        (process.folder / "tokens").write_text(f"{TOKEN}\n{NEXT_TOKEN}\n")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: model.readiness()[0].generation == 2)
    with HttpModel(url, NEXT_TOKEN) as model:
        after = model.score([game])
    assert before != after
    (process.folder / "model.json").write_text("{}")
    process.send_signal(signal.SIGHUP)
    with HttpModel(url, TOKEN) as model:
        assert model.score([game]) == after


def test_sigterm_answers_what_is_there_and_ends_it_cleanly(service):
    process, url = service
    with HttpModel(url, TOKEN) as model:
        items = [GenerateItem(image="0.jpg", prompt=f"Say {n}.", max_new_tokens=400) for n in range(3)]
        asked = Asker(lambda: model.generate(items))
        headers = {"Authorization": f"Bearer {TOKEN}"}

        def in_call() -> bool:
            metrics = httpx.get(url + "/metrics", headers=headers).text
            return f'calls_total{{kind="generate"}} {2}' in metrics  # one was in the first test

        wait_for(in_call)
        process.send_signal(signal.SIGTERM)
        assert [len(texts) for texts in asked.wait()] == [1, 1, 1]
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "stopped" in errors
    assert "Traceback" not in errors
    assert "nothing was exchanged: --model is not a model reference" in errors
    assert TOKEN not in errors and NEXT_TOKEN not in errors


def test_sigterm_ends_it_while_the_model_is_loading(photos):
    process = start("--model", "pocket:base", "--image-root", str(photos), "--port", "0")
    assert "listening on" in process.stderr.readline()
    time.sleep(0.5)  # torch is being imported
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_help_is_quick_and_the_client_is_light():
    command = [sys.executable, "-X", "importtime", "-m", "lewis_core.listener", "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "lewis_core" in loaded
    assert not loaded & {"torch", "transformers", "fastapi", "uvicorn"}
    code = "import sys, lewis_core.listener.client; sys.exit('torch' in sys.modules or 'fastapi' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_that_breaks_for_good_ends_the_process_with_its_own_status(photos, monkeypatch, caplog):
    """In this process: readiness goes first, then the service ends by itself, so that it is started again."""
    from lewis_core.listener import __main__ as entry

    class Broken(FakeModel):
        def score(self, games):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    port = free_port()
    monkeypatch.setattr("lewis_core.models.vlm.open_model", lambda *_: Broken())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    asked = Asker(lambda: wait_for(lambda: scored(port)))
    try:
        status = entry.main(["--model", "x", "--image-root", str(photos), "--port", str(port)])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert status == entry.BROKEN == 70
    assert asked.wait() == 500
    assert "an illegal memory access" in caplog.text


def scored(port: int) -> int | None:
    """Status of a request, once the model is loaded."""
    body = {"games": [{"candidates": ["0.jpg"], "descriptions": ["a red mug"]}]}
    try:
        status = httpx.post(f"http://127.0.0.1:{port}/v1/score", json=body, timeout=60).status_code
    except httpx.TransportError:
        return None
    return None if status == 503 else status
