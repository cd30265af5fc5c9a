"""Ask a model service: an :class:`~lewis_core.models.protocol.AnsweringModel` over HTTP. Imports no torch.

Big requests are sent in chunks, several at a time, spread over the replicas. What may pass (a full queue, a model that
is loading, a lost connection) is tried again until a deadline, at another replica first (:mod:`.replicas`); everything
else raises at once. Every question is a pure function, so asking twice is harmless. A missing answer is an error, never
a number. The service is told how long this client waits, so that it drops what nobody waits for any more.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from lewis_core.correlation import new_request_id
from lewis_core.errors import ListenerBusyError, ListenerError, ListenerUnavailableError
from lewis_core.listener.access import read_token_file
from lewis_core.listener.replicas import Replicas
from lewis_core.listener.schemas import (
    ChoiceAnswer,
    ChoiceItem,
    ChooseRequest,
    ChooseResponse,
    GameScores,
    GenerateItem,
    GenerateRequest,
    GenerateResponse,
    Problem,
    Readiness,
    ScoreGame,
    ScoreRequest,
    ScoreResponse,
)

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer", bound=BaseModel)
Item = TypeVar("Item")
Part = TypeVar("Part")
MAX_ITEMS = 1024
"""Items of one request; the service's schemas allow no more."""


class HttpModel:
    """A model behind one or several URLs.

    Args:
        urls: Where it listens, e.g. ``http://127.0.0.1:9000``; several (a list, or with commas between) are replicas
            of one another. Behind a ``#`` may stand a file whose first token is sent to all of them.
        token: Bearer token.
        timeout_s: Longest wait for one answer.
        deadline_s: Longest time over which one request is tried again while the service says that it is busy.
        outage_s: The same while nobody answers.
        backoff_s: Pause after the first failed round over all replicas; doubles each time up to 10 s, with jitter.
        max_rows: Pairs, questions or completions of one request.
        connections: Requests under way at the same time.
        transport: Replaces the network, for tests.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str | None = None,
        *,
        timeout_s: float = 600.0,
        deadline_s: float = 900.0,
        outage_s: float = 60.0,
        backoff_s: float = 0.25,
        max_rows: int = 512,
        connections: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        given = [url.strip().partition("#") for url in (urls.split(",") if isinstance(urls, str) else urls)]
        self._replicas = Replicas(list(dict.fromkeys(url.rstrip("/") for url, _, _ in given if url)))
        if token is None and (file := next((file for _, _, file in given if file), "")):
            token = read_token_file(Path(file))[0]
        if not len(self._replicas):
            raise ValueError("expected at least one URL")
        self._patience_s = {ListenerBusyError: deadline_s, ListenerUnavailableError: outage_s}
        self._backoff_s, self._max_rows = backoff_s, max_rows
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            transport=transport,
            trust_env=False,
        )
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="http-model")
        self._headers = {"Content-Type": "application/json", "X-Request-Timeout": f"{min(timeout_s, 86_400.0):g}"}

    def score(self, games: Sequence[ScoreGame]) -> list[GameScores]:
        """Score every description of each game against every candidate.

        Raises:
            ListenerBusyError: If the service stayed busy until the deadline.
            ListenerUnavailableError: If nobody answered until the deadline.
            ListenerError: If the request was refused, the service crashed, or its answer does not fit the request.
        """
        chunks = list(_chunks(games, _pairs, self._max_rows))

        def ask(chunk: Sequence[ScoreGame]) -> list[GameScores]:
            answer = self._post("/v1/score", ScoreRequest(games=tuple(chunk)), ScoreResponse)
            _expect(len(answer.games), len(chunk), "games")
            for scores, game in zip(answer.games, chunk, strict=True):
                _check_scores(scores, game)
            return list(answer.games)

        return self._all(ask, chunks)

    def choose(self, items: Sequence[ChoiceItem]) -> list[list[ChoiceAnswer]]:
        """Answer multiple-choice questions about images.

        Raises:
            ListenerError: As :meth:`score`.
        """
        chunks = list(_chunks(items, lambda item: len(item.questions), self._max_rows))

        def ask(chunk: Sequence[ChoiceItem]) -> list[list[ChoiceAnswer]]:
            answer = self._post("/v1/choose", ChooseRequest(items=tuple(chunk)), ChooseResponse)
            _expect(len(answer.items), len(chunk), "items")
            for answers, item in zip(answer.items, chunk, strict=True):
                _expect(len(answers), len(item.questions), "answers of an item")
                for one, question in zip(answers, item.questions, strict=True):
                    _expect(len(one.log_probs), len(question.choices), "choices of a question")
            return [list(answers) for answers in answer.items]

        return self._all(ask, chunks)

    def generate(self, items: Sequence[GenerateItem]) -> list[list[str]]:
        """Continue prompts.

        Raises:
            ListenerError: As :meth:`score`.
        """
        chunks = list(_chunks(items, lambda item: item.num_return, self._max_rows))

        def ask(chunk: Sequence[GenerateItem]) -> list[list[str]]:
            answer = self._post("/v1/generate", GenerateRequest(items=tuple(chunk)), GenerateResponse)
            _expect(len(answer.items), len(chunk), "items")
            for texts, item in zip(answer.items, chunk, strict=True):
                _expect(len(texts), item.num_return, "completions of an item")
            return [list(texts) for texts in answer.items]

        return self._all(ask, chunks)

    def readiness(self) -> list[Readiness | None]:
        """What each replica says of itself; ``None`` where nobody answers."""
        return [self._readiness(url) for url in self._replicas.urls]

    def close(self) -> None:
        """Close all connections."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def __enter__(self) -> "HttpModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _all(self, ask: Callable[[Sequence[Item]], list[Part]], chunks: Sequence[Sequence[Item]]) -> list[Part]:
        """Ask for all chunks, several at a time; the first error ends it."""
        if len(chunks) == 1:
            return ask(chunks[0])
        futures = [self._pool.submit(ask, chunk) for chunk in chunks]
        try:
            return [part for future in futures for part in future.result()]
        finally:
            for future in futures:
                future.cancel()

    def _post(self, path: str, body: BaseModel, answer_type: type[Answer]) -> Answer:
        """Send one request, to one replica after another, until one answers or patience ends.

        It begins with the first failure, however long the answer was waited for before; that of an outage begins anew
        whenever a replica says that it is busy.
        """
        content, failing_since, nobody_since = body.model_dump_json(), None, None
        attempt, failed = 0, deque[str](maxlen=len(self._replicas) - 1)
        while True:
            url = self._replicas.next(failed)
            try:
                return self._post_once(url, path, content, answer_type)
            except (ListenerBusyError, ListenerUnavailableError) as error:
                attempt, now = attempt + 1, time.monotonic()
                failed.append(url)
                failing_since = failing_since or now
                nobody_since = now if isinstance(error, ListenerBusyError) else nobody_since or now
                since = failing_since if isinstance(error, ListenerBusyError) else nobody_since
                pause = self._pause(attempt, error.retry_after_s if isinstance(error, ListenerBusyError) else 0.0)
                if now + pause > since + self._patience_s[type(error)]:
                    raise
                logger.debug("%s; trying again in %.2f s", error, pause)
                time.sleep(pause)

    def _pause(self, attempt: int, retry_after_s: float) -> float:
        """Seconds before the next attempt: none while there are replicas that were not asked in this round."""
        rounds, rest = divmod(attempt, len(self._replicas))
        if rest:
            return 0.0
        backoff = min(10.0, self._backoff_s * 2.0 ** min(rounds - 1, 10))
        return max(retry_after_s, backoff) * random.uniform(0.8, 1.2)

    def _post_once(self, replica: str, path: str, content: str, answer_type: type[Answer]) -> Answer:
        url = replica + path
        try:
            headers = {**self._headers, "X-Request-Id": new_request_id()}
            response = self._client.post(url, content=content, headers=headers)
        except httpx.TransportError as error:
            self._replicas.failed(replica)
            raise ListenerUnavailableError(f"{url} does not answer: {type(error).__name__}: {error}") from error
        self._replicas.succeeded(replica)
        if response.status_code != 200:
            raise _error_of(url, response)
        try:
            return answer_type.model_validate_json(response.content)
        except ValidationError as error:
            raise ListenerError(f"{url} gave an answer of the wrong form: {error}", 200, _id_of(response)) from error

    def _readiness(self, url: str) -> Readiness | None:
        try:
            return Readiness.model_validate_json(self._client.get(url + "/readyz", timeout=5.0).content)
        except (httpx.TransportError, ValidationError):
            return None


def _error_of(url: str, response: httpx.Response) -> ListenerError:
    """The error that a refusal stands for."""
    try:
        detail = Problem.model_validate_json(response.content).detail
    except ValidationError:
        detail = response.text[:500]
    status, request_id = response.status_code, _id_of(response)
    message = f"{url} answered {status}: {detail} (request {request_id or 'without id'})"
    if status not in (429, 502, 503, 504):
        return ListenerError(message, status, request_id)
    busy = ListenerBusyError(message, status, request_id)
    after = response.headers.get("Retry-After", "")
    busy.retry_after_s = min(30.0, float(after)) if after.isdigit() else 0.0
    return busy


def _id_of(response: httpx.Response) -> str | None:
    request_id: str | None = response.headers.get("X-Request-Id")
    return request_id


def _chunks(items: Sequence[Item], rows: Callable[[Item], int], max_rows: int) -> Iterator[Sequence[Item]]:
    """Cut items into runs of at most ``max_rows`` rows (or one item)."""
    start, total = 0, 0
    for index, item in enumerate(items):
        if index > start and (total + rows(item) > max_rows or index - start == MAX_ITEMS):
            yield items[start:index]
            start, total = index, 0
        total += rows(item)
    if start < len(items):
        yield items[start:]


def _pairs(game: ScoreGame) -> int:
    return len(game.candidates) * len(game.descriptions)


def _expect(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise ListenerError(f"the service answered for {found} {what} instead of {wanted}")


def _check_scores(scores: GameScores, game: ScoreGame) -> None:
    for matrix in (scores.yes_log_odds, scores.yes_probability, scores.captured_mass):
        _expect(len(matrix), len(game.descriptions), "descriptions of a game")
        for row in matrix:
            _expect(len(row), len(game.candidates), "candidates of a game")
