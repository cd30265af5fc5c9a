"""Whatever is sent, the contract holds: a documented status, a body of the documented form, and never a crash.

Requests are made from the published OpenAPI document, valid and invalid ones, by schemathesis, against a real socket.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from lewis_core.models.images import ImageFolder
from lewis_core.testing import FakeModel, write_image
from tests.service.helpers import count, listening

# The service's threads draw random numbers (pauses between attempts) while requests are made up in this one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
schemathesis.checks.load_all_checks()
EXAMPLES = int(os.environ.get("ROBUSTNESS_EXAMPLES", "8"))
CHECKED = [
    schemathesis.checks.CHECKS.get_one(name)
    for name in ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
]


class Looks(FakeModel):
    """Answers about photos of a folder, and about no others."""

    def __init__(self, folder: Path) -> None:
        super().__init__(lambda image, text: 0.5, writes=lambda image, prompt: prompt[::-1])
        self._images = ImageFolder(folder)

    def score(self, games: Sequence[Any]) -> Any:
        """Look at the candidates, then answer."""
        for game in games:
            for image in game.candidates:
                self._images.digest(image)
        return super().score(games)

    def choose(self, items: Sequence[Any]) -> Any:
        """Look at the images, then answer."""
        self._see(items)
        return super().choose(items)

    def generate(self, items: Sequence[Any]) -> Any:
        """Look at the images, then answer."""
        self._see(items)
        return super().generate(items)

    def _see(self, items: Sequence[Any]) -> None:
        for item in items:
            if item.image is not None:
                self._images.digest(item.image)


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The published contract of a service that listens."""
    folder = tmp_path_factory.mktemp("photos")
    write_image(folder / "0.jpg", 1)
    (folder / "0.jpg").rename(folder / "0")
    with listening(lambda: Looks(folder)) as server:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")


OPERATIONS = (
    *("POST /v1/score", "POST /v1/choose", "POST /v1/generate", "POST /score", "POST /batch_score"),
    *("POST /describe", "POST /batch_describe", "GET /healthz", "GET /readyz", "GET /metrics"),
)


def test_every_operation_is_tried(contract: Any) -> None:
    found = {f"{one.ok().method.upper()} {one.ok().path}" for one in contract.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("operation", "valid"),
    [(one, valid) for one in OPERATIONS for valid in (True, False) if valid or one.startswith("POST")],
)
def test_the_contract_holds_whatever_is_sent(contract: Any, operation: str, valid: bool) -> None:
    method, path = operation.split()
    mode = schemathesis.GenerationMode.POSITIVE if valid else schemathesis.GenerationMode.NEGATIVE
    statuses: Counter[int] = Counter()

    @given(case=contract[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def holds(case: Any) -> None:
        response = case.call()
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKED)

    holds()
    count("requests made from the contract, valid" if valid else "requests made from the contract, invalid",
          statuses.total(), statuses={str(key): value for key, value in statuses.items()})  # fmt: skip
    assert max(statuses) < 500 or set(statuses) <= {200, 403, 413, 422, 504}  # a deadline may be that short
    if not valid:
        assert set(statuses) & {400, 422}, "nothing invalid was sent"
