"""The speaker's endpoints in the reference's form: each item gets its own photos' descriptions, in order."""

from collections.abc import Sequence

import pytest
from fastapi.testclient import TestClient

from lewis_core.errors import ImageError
from lewis_core.listener.describing import NEW_TOKENS
from lewis_core.listener.schemas import GenerateItem
from lewis_core.listener.service import create_app
from lewis_core.testing import FakeModel


class Speaker(FakeModel):
    """Says which photo it sees; one photo cannot be described in the asked form, another cannot be read."""

    def generate(self, items: Sequence[GenerateItem]) -> list[list[str]]:
        """Write one text for each item."""
        assert all((item.max_new_tokens, item.temperature, item.num_return) == (NEW_TOKENS, 0.0, 1) for item in items)
        if any(item.image == "bad.jpg" for item in items):
            raise ImageError("bad.jpg", "truncated")
        return [[" no idea " if item.image == "odd.jpg" else self.said(item)] for item in items]

    def said(self, item: GenerateItem) -> str:
        """A text in the asked form."""
        return (
            f"<thinking>{item.prompt}</thinking><coarse>A photo of {item.image}.</coarse>"
            f"<detailed>The {item.image} is blue.</detailed>"
        )


@pytest.fixture(scope="module")
def client() -> TestClient:
    """A service that has its model."""
    with TestClient(create_app(Speaker, model_name="fake")) as found:
        while found.get("/readyz").status_code != 200:
            pass
        yield found


def item(*photos: str, **more: object) -> dict[str, object]:
    return {"candidate_paths": list(photos), "question": "Describe the mug.", **more}


def test_each_item_gets_the_descriptions_of_its_own_photos(client: TestClient) -> None:
    batch = [item("a.jpg", "b.jpg"), item("c.jpg", topk=1), item("d.jpg", "e.jpg", topk=1)]
    answer = client.post("/batch_describe", json={"batch": batch})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [one["descriptions"] for one in results] == [
        ["A photo of a.jpg. The a.jpg is blue.", "A photo of b.jpg. The b.jpg is blue."],
        ["A photo of c.jpg. The c.jpg is blue."],
        ["A photo of d.jpg. The d.jpg is blue."],
    ]
    assert answer.json()["took"] >= 0


def test_a_text_in_another_form_is_given_whole_and_marked(client: TestClient) -> None:
    answer = client.post("/describe", json=item("a.jpg", "odd.jpg", names=["A"]))  # further keys are ignored
    assert answer.json()["descriptions"] == ["A photo of a.jpg. The a.jpg is blue.", "no idea"]
    assert answer.json()["well_formed"] == [True, False]


def test_failures_are_no_descriptions(client: TestClient) -> None:
    assert client.post("/batch_describe", json={"batch": [item("a.jpg", "bad.jpg")]}).status_code == 422
    assert client.post("/batch_describe", json={"batch": []}).status_code == 422
    assert client.post("/describe", json={"candidate_paths": ["a.jpg"]}).status_code == 422
