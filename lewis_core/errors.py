"""Every error this package raises on purpose.

LewisError
├── ConfigError                 settings are wrong: unknown key, impossible value, missing file
├── DataError                   the photos, or a file about them, do not have the promised shape
│   ├── CatalogError            the folder tree on disk cannot be read as a data set
│   ├── ImageError              one image cannot be used (its path and the reason)
│   │   └── ImageAccessError    an image reference points outside of the image root
│   └── QuarantineError         more images were set aside than the settings allow
├── ArtifactError               an artifact is missing, partial, damaged or of another kind
├── StorageError                the disk is full, or a folder cannot be written
├── ModelError                  a checkpoint is missing, incomplete or of an unsupported architecture
│   └── MergeError              an adapter that is merged into its base answers otherwise than beside it
├── DescriptionError            speaker text does not follow the thinking / coarse / detailed format
├── ListenerError               the model service answered wrongly, or refused the request
│   ├── ListenerDeadlineError   the answer was not ready when the request's own deadline had passed
│   ├── ListenerBusyError       retryable: no free slot before the deadline
│   └── ListenerUnavailableError retryable: nobody answers at the address
├── TrainingError               training cannot start, or cannot go on
│   ├── CheckpointError         checkpoints cannot be written, again and again
│   ├── WatchdogError           training went wrong in a known way; the evidence is saved
│   └── StoppedError            training was asked to stop; the last finished step is saved
├── EvaluationError             predictions, database and catalog do not belong together
├── TrackingError               the tracking server or the model registry cannot be asked
├── OrchestrationError          the Prefect server went away and did not come back
└── ProcessError                a child process ended with an error; carries its last lines
    └── KilledError             it had begun, and was ended from outside: a kill, a crash of native code

Raise the leaf; say what was expected, what was found, what to do. Chain with ``from``.
Never turn a failure into a neutral value: a zero reward is data.
"""

import signal
from collections.abc import Sequence


class LewisError(Exception):
    """Base of all errors raised on purpose; its message is meant to be read by a person."""


class ConfigError(LewisError):
    """Settings are wrong: an unknown key, an impossible value, a file that is not there."""


class DataError(LewisError):
    """The photos, or a file about them, do not have the promised shape."""


class CatalogError(DataError):
    """The folder tree on disk cannot be read as a data set."""


class ImageError(DataError):
    """One image cannot be used."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Keep both fields when the error crosses a process boundary."""
        return type(self), (self.path, self.reason)


class ImageAccessError(ImageError):
    """An image reference points outside of the image root."""


class QuarantineError(DataError):
    """More images were set aside than the settings allow."""


class ArtifactError(LewisError):
    """An artifact is missing, partial, damaged or of another kind."""


class StorageError(LewisError):
    """The disk is full, or a folder cannot be written."""


class ModelError(LewisError):
    """A checkpoint is missing, incomplete or of an unsupported architecture."""


class MergeError(ModelError):
    """An adapter that is merged into its base answers otherwise than beside it."""


class DescriptionError(LewisError):
    """Speaker text does not follow the thinking / coarse / detailed format."""


class ListenerError(LewisError):
    """The model service answered wrongly, or refused the request.

    Args:
        message: What went wrong, for people.
        status: HTTP status of the answer, if there was one.
        request_id: The service's name for the request, to be found in its log.
    """

    def __init__(self, message: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id


class ListenerDeadlineError(ListenerError):
    """The answer was not ready when the request's own deadline had passed."""


class ListenerBusyError(ListenerError):
    """Retryable: the service had no free slot before the deadline."""

    retry_after_s: float = 0.0
    """What the service asks for."""


class ListenerUnavailableError(ListenerError):
    """Retryable: nobody answers at the address."""


class TrainingError(LewisError):
    """Training cannot start, or cannot go on."""


class CheckpointError(TrainingError):
    """Checkpoints cannot be written, again and again."""


class WatchdogError(TrainingError):
    """Training went wrong in a known way; the evidence is saved."""


class StoppedError(TrainingError):
    """Training was asked to stop; the last finished step is saved."""


class EvaluationError(LewisError):
    """Predictions, database and catalog do not belong together."""


class TrackingError(LewisError):
    """The tracking server or the model registry cannot be asked."""


class OrchestrationError(LewisError):
    """The Prefect server went away and did not come back."""


class ProcessError(LewisError):
    """A child process ended with an error.

    Args:
        name: What the process was doing, e.g. the stage's name.
        code: Its exit status (128 + signal number when a signal ended it).
        tail: The last lines it wrote, oldest first.
    """

    def __init__(self, name: str, code: int, tail: Sequence[str] = ()) -> None:
        lines = "\n".join(tail)
        told = f"; its last lines:\n{lines}" if lines else ""
        super().__init__(f"{name} ended with exit status {code}{_by_signal(code)}{told}")
        self.name, self.code, self.tail = name, code, tuple(tail)


def _by_signal(code: int) -> str:
    """Name of the signal that an exit status stands for, if it does, and what it usually means."""
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return ""
    return f" ({name}: if nobody killed it, the machine had no memory left, see dmesg)" if code == 137 else f" ({name})"


class KilledError(ProcessError):
    """A child process had begun, and was ended from outside: a kill, lack of memory, a crash of native code."""
