"""The speaker's side of the service, in the reference's form: ``POST /describe`` and ``POST /batch_describe``.

Every item gets the descriptions of its own photos, in order: the reference hands each of them the whole batch's.
"""

import time
from collections.abc import Awaitable, Callable, Sequence

from fastapi.responses import Response
from pydantic import BaseModel, Field

from lewis_core.descriptions.parse import parse_or_none
from lewis_core.listener.schemas import MAX_TEXT, GenerateItem
from lewis_core.records import Record

NEW_TOKENS = 128
"""Longest completion, as there."""
Write = Callable[[Sequence[GenerateItem]], Awaitable[list[list[str]]]]
"""Lets the model continue prompts."""


class DescribeRequest(BaseModel):
    """Body of ``POST /describe``; further keys are ignored."""

    candidate_paths: tuple[str, ...] = Field(min_length=1, max_length=1024)
    """Image references: the photos to describe."""
    question: str = Field(min_length=1, max_length=MAX_TEXT * 4)
    """The whole prompt, asked as it is, e.g. :meth:`lewis_core.prompts.PromptSet.speaker`."""
    topk: int | None = Field(default=None, ge=1)
    """Only so many of the photos, from the first; ``None``: all."""


class BatchDescribeRequest(BaseModel):
    """Body of ``POST /batch_describe``."""

    batch: tuple[DescribeRequest, ...] = Field(min_length=1, max_length=1024)


class DescribeResult(Record):
    """Descriptions of one item's photos."""

    descriptions: tuple[str, ...]
    """Coarse and detailed text of each photo; the whole completion where it cannot be read."""
    well_formed: tuple[bool, ...]
    """Whether each could be read."""


class DescribeResponse(DescribeResult):
    """Answer of ``POST /describe``."""

    took: float


class BatchDescribeResponse(Record):
    """Answer of ``POST /batch_describe``, in the request's order."""

    results: tuple[DescribeResult, ...]
    took: float


class Describer:
    """Describes photos with the model of a service.

    Args:
        write: Lets the model write.
    """

    def __init__(self, write: Write) -> None:
        self._write = write

    async def describe(self, request: DescribeRequest) -> Response:
        """Describe the photos of one item."""
        started = time.perf_counter()
        [result] = await self._describe([request])
        return _reply(DescribeResponse(**result.model_dump(), took=time.perf_counter() - started))

    async def batch_describe(self, request: BatchDescribeRequest) -> Response:
        """Describe the photos of several items."""
        started = time.perf_counter()
        results = await self._describe(request.batch)
        return _reply(BatchDescribeResponse(results=tuple(results), took=time.perf_counter() - started))

    async def _describe(self, requests: Sequence[DescribeRequest]) -> list[DescribeResult]:
        photos = [request.candidate_paths[: request.topk] for request in requests]
        items = [
            GenerateItem(image=photo, prompt=request.question, max_new_tokens=NEW_TOKENS)
            for request, of_request in zip(requests, photos, strict=True)
            for photo in of_request
        ]
        written = iter(await self._write(items))
        return [_result([next(written)[0] for _ in of_request]) for of_request in photos]


def _result(completions: Sequence[str]) -> DescribeResult:
    parsed = [parse_or_none(completion) for completion in completions]
    texts = [
        completion.strip() if found is None else f"{found.coarse} {found.detailed}"
        for completion, found in zip(completions, parsed, strict=True)
    ]
    return DescribeResult(descriptions=tuple(texts), well_formed=tuple(found is not None for found in parsed))


def _reply(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
