"""Model services that are several: replicas that we start, one on each GPU, and services that run elsewhere."""

import logging
import math
import shlex
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from lewis_core.config.base import ModelRef
from lewis_core.errors import ConfigError, ListenerUnavailableError
from lewis_core.listener.schemas import Readiness, Serves
from lewis_core.models.adapters import describe_ref
from tasks.processes import is_closing
from tasks.services import ModelService

logger = logging.getLogger(__name__)
NOBODY = "no answer of a model service"
NOBODY_S = 120.0
"""Longest wait for a service of others that does not answer yet: it may be starting, or its address may be wrong."""
LOOK_EVERY_S, SAY_EVERY_S = 5.0, 60.0


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
        model: The model that it has to serve.
        ready_s: Longest wait until one is ready that loads its model; for one that nobody answers for, at most
            :data:`NOBODY_S`.
    """

    def __init__(self, role: str, urls: Sequence[str], model: ModelRef, ready_s: float = 0.0) -> None:
        self._role, self._urls, self._model, self._ready_s = role, tuple(urls), model, ready_s
        self._is_away = False
        """Whether nobody came in all the time that nobody is waited for; another try does not wait again."""

    def ensure(self) -> str:
        """Return the addresses, once at least one of them is ready; warns about the others.

        Raises:
            ListenerUnavailableError: If nobody answers, or none is ready.
            ConfigError: If one serves another model, with another adapter, or asks in another way.
        """
        found = self._wait()
        states = _states(found)
        if "ready" not in states:
            told = ", ".join(f"{url}: {state}" for url, state in zip(self._urls, states, strict=True))
            raise ListenerUnavailableError(
                f"none of the services in run.services.{self._role} is ready ({told}); start them, e.g. "
                f"python -m tasks.serve --model {_argument(self._model)} …, or leave run.services.{self._role} out"
            )
        for url, state, one in zip(self._urls, states, found, strict=True):
            if state != "ready":
                logger.warning("%s: %s is not ready (%s); the other replicas do its work", self._role, url, state)
            elif one is not None:
                self._check_model(url, one)
        return ",".join(self._urls)

    def _wait(self) -> list[Readiness | None]:
        """What all of them say of themselves, when one is ready or there is nothing to wait for."""
        from lewis_core.listener.client import HttpModel

        started, said = time.monotonic(), -math.inf
        with HttpModel(self._urls) as client:
            while True:
                found, now = client.readiness(), time.monotonic()
                states = _states(found)
                is_nobody_there = set(states) == {NOBODY}
                self._is_away = self._is_away and is_nobody_there
                waits_s = self._ready_s if "loading" in states else min(self._ready_s, self._nobody_s())
                is_hopeless = not {"loading", NOBODY}.intersection(states)
                if "ready" in states or is_hopeless or is_closing() or now - started >= waits_s:
                    self._is_away = is_nobody_there
                    return found
                if now - said >= SAY_EVERY_S:
                    logger.info("%s: waiting for %s (%s)", self._role, ", ".join(self._urls), ", ".join(states))
                    said = now
                time.sleep(LOOK_EVERY_S)

    def _nobody_s(self) -> float:
        return 0.0 if self._is_away else NOBODY_S

    def _check_model(self, url: str, found: Readiness) -> None:
        """Compare what is served with the settings; a base may be named otherwise on another machine."""
        if found.serves is not None:
            differences = [
                f"{name} = {has!r} instead of {wanted!r}"
                for name, has, wanted in _compare(found.serves, describe_ref(self._model))
                if has != wanted
            ]
            if differences:
                raise ConfigError(
                    f"run.services.{self._role}: {url} serves {found.model} with {', '.join(differences)} as the "
                    "settings have it: what it answers would be taken for another model's. Start it with what the "
                    "settings say (python -m tasks.serve --model takes a ModelRef as JSON), or change the settings"
                )
        if found.model != self._model.path:
            logger.warning("%s: %s serves %s, the settings say %s", self._role, url, found.model, self._model.path)

    def stop(self) -> None:
        """Do nothing: others started it."""


def _argument(model: ModelRef) -> str:
    """What ``tasks.serve --model`` takes: a path, or JSON where more than it is set."""
    if model == ModelRef(path=model.path):
        return model.path
    return shlex.quote(model.model_dump_json(exclude_defaults=True))


def _compare(found: Serves, wanted: Serves) -> list[tuple[str, object, object]]:
    """What decides answers, by name: what is served, and what the settings say."""
    names = ("revision", "adapter", "prompts", "min_pixels", "max_pixels")
    has, needed = (one.path.rstrip("/").rpartition("/")[2] for one in (found, wanted))
    return [("its name", has, needed), *((name, getattr(found, name), getattr(wanted, name)) for name in names)]


def _states(found: Sequence[Readiness | None]) -> list[str]:
    return [one.status if one is not None else NOBODY for one in found]
