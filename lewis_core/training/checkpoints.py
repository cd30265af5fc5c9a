"""Checkpoints that are either whole or not used: sealed when complete, checked before use, pruned afterwards.

A checkpoint is a folder ``checkpoint-<step>``. Its seal, a file that names every other file with size and digest, is
written last, once all of them are on the disk. A folder without a seal was being written when its process was killed,
or the disk was full; one whose files do not fit the seal is damaged. Neither is ever used.
"""

import errno
import json
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lewis_core.artifacts import digest_file
from lewis_core.errors import CheckpointError
from lewis_core.training.processes import as_main

logger = logging.getLogger(__name__)
SEAL = "complete"
"""File that is written into a checkpoint last."""
_NAME = re.compile(r"checkpoint-\d+")
KEPT = 2
"""Checkpoints that are kept: the newest one, and one to fall back on."""
VISIBLE_S = 90.0
"""Longest time until other machines see what one has written: those of NFS look after a minute."""
UNWRITABLE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS)


def step_of(folder: Path) -> int:
    """Number of finished steps in a checkpoint."""
    return int(folder.name.rpartition("-")[2])


def seal(folder: Path) -> None:
    """Declare a checkpoint complete, once every byte of it is on the disk.

    Raises:
        OSError: If the seal cannot be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        _sync(path)
    digests = _digests(files)
    content = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, digest]
        for path, digest in zip(files, digests, strict=True)
    }
    part = folder / f"{SEAL}.part"
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _sync(part)
    part.replace(folder / SEAL)
    for changed in (folder, folder.parent):
        _sync(changed)


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint is complete; reads no file but the seal."""
    return (folder / SEAL).is_file()


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is complete and each of its files as it was when it was sealed."""
    try:
        content = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        files = [folder / name for name in content]
        sizes, digests = zip(*content.values(), strict=True) if content else ((), ())
        return bool(files) and [path.stat().st_size for path in files] == [*sizes] and _digests(files) == [*digests]
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def agree_on_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be used, as the main process sees it; called by all processes.

    Raises:
        CheckpointError: If this process does not see it.
    """
    found = as_main(lambda: newest_checkpoint(folder))
    deadline = time.monotonic() + VISIBLE_S
    while found is not None and not is_sealed(found):
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"the main process goes on from {found}, which this one does not see: the work folder has to be on a "
                "file system that all machines share"
            )
        time.sleep(1.0)
    return found


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints, whole or not, oldest first; folders that people have named like one are none."""
    return sorted((path for path in folder.glob("*") if _NAME.fullmatch(path.name)), key=step_of)


def newest_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint that can be used; what cannot is removed by the main process."""
    found = None
    for path in reversed(_checkpoints(folder)):
        if found is not None and is_sealed(path):
            continue
        if found is None and is_whole(path):
            found = path
            continue
        if is_sealed(path):
            logger.warning("%s is damaged and not used: a file of it is not as it was written", path)
        if int(os.environ.get("RANK", "0")) == 0:
            remove(path)
    return found


def remove(folder: Path) -> None:
    """Remove a checkpoint, the seal first, so that a kill meanwhile leaves nothing that looks complete."""
    (folder / SEAL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def prune(folder: Path, kept: int = KEPT) -> None:
    """Remove all but the newest complete checkpoints."""
    complete = list(filter(is_sealed, _checkpoints(folder)))
    for path in complete[: -kept or None]:
        remove(path)


def load_whole(model: Any, folder: Path) -> None:
    """Load the weights of a model that is trained whole; their names in files are not always those in the model.

    Raises:
        CheckpointError: If a weight is missing.
    """
    loaded, info = type(model).from_pretrained(
        folder, dtype=model.dtype, use_safetensors=True, output_loading_info=True
    )
    if wrong := sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"]))):
        raise CheckpointError(
            f"{folder} lacks {len(wrong)} weights of the model, e.g. {wrong[0]}: was training.model changed? Remove "
            "the folder to go on from the checkpoint before it"
        )
    model.load_state_dict(loaded.state_dict())


def write_failure(error: BaseException) -> str | None:
    """What kept a checkpoint from being written; ``None`` if the error is about something else."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return str(error)
    is_torchs = isinstance(error, RuntimeError) and ("PytorchStreamWriter" in str(error) or "iostream" in str(error))
    return str(error).splitlines()[0] if is_torchs or isinstance(error, SafetensorError) else None


class RandomStates:
    """The states of all random generators, as they are now."""

    def __init__(self) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        """Make them so again."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


class LastStep(TrainerCallback):
    """Remembers what a checkpoint of the last finished step has to hold although the next one has begun."""

    def __init__(self) -> None:
        self._random: RandomStates | None = None
        self._tokens = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remember the states of the random generators, and the counter of tokens."""
        self._random, self._tokens = RandomStates(), state.num_input_tokens_seen

    def rewind(self, state: TrainerState) -> None:
        """Undo what the unfinished step has done to them."""
        if self._random is not None:
            self._random.restore()
            state.num_input_tokens_seen = self._tokens


def _digests(files: Sequence[Path]) -> list[str]:
    """Digests of files, several at a time: they are large, and hashing leaves other threads alone."""
    with ThreadPoolExecutor(min(8, max(1, len(files)))) as pool:
        return list(pool.map(digest_file, files))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
