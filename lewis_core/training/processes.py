"""What the processes of one training run share. Imports no torch until it is used."""

import logging
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from lewis_core.config.base import Runtime

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


def join_process_group(runtime: Runtime, timeout_s: int, dtype: str) -> Any:
    """Meet the other processes, and take this one's GPU; call it before anything is loaded.

    Args:
        runtime: Which device training runs on.
        timeout_s: Longest wait for the others.
        dtype: Precision of the weights as the settings name it.

    Returns:
        What has to be kept for as long as a model is loaded: under ZeRO-3 its weights are spread while they are read.
    """
    import torch
    from accelerate import PartialState

    is_cpu = runtime.device == "cpu" or not torch.cuda.is_available()
    start: Any = PartialState
    if "LOCAL_RANK" in os.environ:
        start(cpu=is_cpu and not uses_deepspeed(), timeout=timedelta(seconds=timeout_s))
    if not uses_deepspeed():
        return None
    from accelerate.utils import DeepSpeedPlugin

    plugin: Any = DeepSpeedPlugin()
    settle_precision(plugin.deepspeed_config, is_half=not is_cpu and dtype != "float32")
    plugin.set_deepspeed_weakref()
    return plugin


def settle_precision(settings: dict[str, Any], *, is_half: bool) -> None:
    """Say in DeepSpeed's settings whether weights are bfloat16, where they leave it open.

    The trainer would settle it, but after the model is loaded, and ZeRO-3 spreads the weights while they are read: in
    float32 then, twice as large, and every activation with them.
    """
    precision = settings.setdefault("bf16", {})
    if precision.get("enabled", "auto") == "auto":
        precision["enabled"] = is_half


def uses_deepspeed() -> bool:
    """Whether the launcher chose DeepSpeed (``accelerate launch --use_deepspeed``)."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def shards_weights() -> bool:
    """Whether the weights are spread over the processes (DeepSpeed ZeRO-3)."""
    if not uses_deepspeed():
        return False
    import transformers.integrations.deepspeed

    deepspeed: Any = transformers.integrations.deepspeed
    return bool(deepspeed.is_deepspeed_zero3_enabled())


def is_alone() -> bool:
    """Whether this is the only process of the training."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def as_main(find: Callable[[], Value]) -> Value:
    """What the main process finds, in every process; others may see a folder of a shared file system as it was."""
    if is_alone():
        return find()
    from accelerate.utils import broadcast_object_list

    told = [find() if int(os.environ.get("RANK", "0")) == 0 else None]
    broadcast_object_list(told)
    found: Any = told[0]
    return found  # type: ignore[no-any-return]


def shared_store() -> Any:
    """What the processes share (a key-value store of ``torch.distributed``); ``None``: there is no other process."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.distributed_c10d._get_default_store()


def end_process(status: int) -> NoReturn:
    """End this process, which has left its group and whose results are on the disk.

    A thread of a native library aborts one process in some hundred while the interpreter is taken down ("terminate
    called without an active exception"; seen with Gloo and with DeepSpeed), and the launcher would count a finished
    training as failed. So nothing is taken down: what was written is flushed, and the process is gone.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leave_process_group() -> None:
    """Leave the group that training joined, if it joined one; call it when all processes come to the same end.

    The others would wait for a member that is gone, or report that it broke the connection.
    """
    if "torch.distributed" not in sys.modules:
        return
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
