"""Model services that are several: replicas that we start, one on each GPU, and services that run elsewhere."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from lewis_core.errors import ListenerUnavailableError
from tasks.services import ModelService

logger = logging.getLogger(__name__)


class Service(Protocol):
    """A model behind HTTP, wherever it runs."""

    def ensure(self) -> str:
        """Return the address when it is ready; several, separated by commas, are replicas of each other."""

    def stop(self) -> None:
        """End what we started."""


class Replicas:
    """Several services of one model; they start at the same time, and the dead ones are started again.

    Args:
        services: At least one.
    """

    def __init__(self, services: Sequence[ModelService]) -> None:
        self._services = tuple(services)

    def ensure(self) -> str:
        """Start those that do not run; returns all addresses."""
        with ThreadPoolExecutor(len(self._services)) as pool:
            return ",".join(pool.map(lambda service: service.ensure(), self._services))

    def stop(self) -> None:
        """End all of them."""
        for service in self._services:
            service.stop()


class ExternalService:
    """A model that is served by processes that we neither start nor end.

    Args:
        role: Its role, shown in errors.
        urls: Where it is served.
        model: Path or id of the model that it has to serve.
    """

    def __init__(self, role: str, urls: Sequence[str], model: str) -> None:
        self._role, self._urls, self._model = role, tuple(urls), model

    def ensure(self) -> str:
        """Return the addresses, if at least one of them is ready; warns about the others.

        Raises:
            ListenerUnavailableError: If nobody answers, or none is ready.
        """
        from lewis_core.listener.client import HttpModel

        with HttpModel(self._urls) as client:
            found = client.readiness()
        states = [one.status if one is not None else "no answer" for one in found]
        if "ready" not in states:
            told = ", ".join(f"{url}: {state}" for url, state in zip(self._urls, states, strict=True))
            raise ListenerUnavailableError(
                f"none of the services in run.services.{self._role} is ready ({told}); start them, e.g. "
                f"python -m tasks.serve --model {self._model} …, or leave run.services.{self._role} out"
            )
        for url, state, one in zip(self._urls, states, found, strict=True):
            if state != "ready":
                logger.warning("%s: %s is not ready (%s); the other replicas do its work", self._role, url, state)
            elif one is not None and one.model != self._model:
                logger.warning("%s: %s serves %s, the settings say %s", self._role, url, one.model, self._model)
        return ",".join(self._urls)

    def stop(self) -> None:
        """Do nothing: others started it."""
