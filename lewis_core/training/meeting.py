"""How the processes of a training stop together: on SIGTERM, when the listener is lost, when one of them fails.

What a process does alone (it writes, asks the listener, reads its own rows) ends in a *meeting*, where all of them
learn how it went. A process that fails alone goes straight to the next meeting, and all raise the same error there, at
once, instead of waiting for it in a collective until that times out. A signal is an error like any other:
:class:`~lewis_core.errors.StoppedError`. The step that was begun is given up then, and done again by the next run.
"""

import copy
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from accelerate.utils import gather_object

from lewis_core.errors import StoppedError, TrainingError
from lewis_core.rewards.trl import OUTAGES
from lewis_core.training.processes import shared_store

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
LOOK_EVERY_S = 0.2
"""Pause between looks at whether another process was asked to stop."""
_KEY = "lewis/stop"


class StopFlag:
    """Whether training was asked to stop, in this process or another one."""

    def __init__(self) -> None:
        self._asked = False  # written by the signal's handler alone, which may come between any two instructions
        self._told = self._heard = False
        self.gave_up = False
        """Whether something was given up for it that is owed to the last finished step: a measurement."""

    def ask(self, *_: object) -> None:
        """Ask; a handler of signals."""
        self._asked = True

    def is_set(self) -> bool:
        """Whether any process was asked, as far as this one knows now; the others learn that this one was."""
        store = shared_store()
        if store is not None and self._asked and not self._told:
            store.set(_KEY, b"1")
            self._told = True
        if store is not None and not self._heard:
            self._heard = store.check([_KEY])
        return self._asked or self._heard


class Meeting:
    """Where the processes of a training learn how each other's work went.

    Args:
        may_stop: Whether the step that was begun can be given up now: what the last one left can be saved.
    """

    def __init__(self, may_stop: Callable[[], bool] = lambda: False) -> None:
        self._may_stop = may_stop
        self.stop = StopFlag()
        """Of the run; set by a signal."""

    def wants_to_stop(self) -> bool:
        """Whether somebody was asked to stop, and can."""
        return self._may_stop() and self.stop.is_set()

    def meet(self, error: Exception | None = None) -> None:
        """Wait for all processes; returns if all are well.

        Args:
            error: What this process failed with.

        Raises:
            Exception: The gravest error among all processes, the same one in each: what is wrong, an outage of the
                listener, a wish to stop, in this order.
        """
        if error is None and self.wants_to_stop():
            error = _stopped()
        told: list[Exception | None] = gather_object([_portable(error)])
        failed = [(_severity(found), process, found) for process, found in enumerate(told) if found is not None]
        if not failed:
            return
        _, process, gravest = min(failed, key=lambda one: one[:2])
        if error is not None and (len(told) == 1 or str(error) == str(gravest)):
            raise error
        logger.error("process %d stops all: %s: %s", process, type(gravest).__name__, gravest)
        raise gravest from error

    @contextmanager
    def before_next(self) -> Iterator[None]:
        """Do the block's work alone, and meet only if it fails: the others are then met where they meet next."""
        try:
            yield
        except Exception as error:
            self.meet(error)
            raise

    def unless_stopped(self, work: Callable[[], Result], *, waits: bool = True) -> Result:
        """Do work that waits for somebody; it is left alone when training is to stop.

        Args:
            work: What is done; in a thread of its own if it waits.
            waits: Whether it does. If it computes on the CPU, it is done here and to its end: in another thread, torch
                would set up a second pool of workers for it, and two pools are in each other's way.

        Raises:
            StoppedError: If training is to stop.
        """
        if not waits:
            self.check()
            return work()
        done: Future[Result] = Future()
        threading.Thread(target=_settle, args=(done, work), name="unless-stopped", daemon=True).start()
        while not wait([done], LOOK_EVERY_S).done:
            self.check()
        return done.result()

    def check(self) -> None:
        """Do nothing, unless training is to stop.

        Raises:
            StoppedError: If it is.
        """
        if self.wants_to_stop():
            raise _stopped()


def hold(reward: Callable[..., list[float | None]], failures: list[Exception]) -> Callable[..., list[float | None]]:
    """A reward that rewards nothing when it fails, and keeps the error until the processes meet."""

    def held(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        try:
            return reward(completions=completions, **columns)
        except Exception as error:  # noqa: BLE001 - raised by all processes when they meet
            failures.append(error)
            return [None] * len(completions)

    return held


def _stopped() -> StoppedError:
    return StoppedError("training was asked to stop (SIGTERM); the same command goes on with it")


def _severity(error: Exception) -> int:
    """0 is the gravest."""
    return 2 if isinstance(error, StoppedError) else 1 if isinstance(error, OUTAGES) else 0


def _portable(error: Exception | None) -> Exception | None:
    """An error that other processes can raise, too: of a class that they find, and made of what it holds."""
    if error is None:
        return None
    kind = type(error)
    try:
        is_found = getattr(sys.modules[kind.__module__], kind.__qualname__, None) is kind
        if is_found and str(copy.copy(error)) == str(error):
            return error
    except Exception as problem:  # noqa: BLE001 - whatever an unknown class raises there
        logger.debug("%s cannot be copied: %s", kind.__name__, problem)
    return TrainingError(f"{kind.__name__}: {error}")


def _settle(done: "Future[Result]", work: Callable[[], Result]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised where it is waited for
        done.set_exception(error)
