"""What the processes of one training run share. Imports no torch until it is used."""

import logging
import os
import sys
from datetime import timedelta
from typing import Any, NoReturn

from lewis_core.config.base import Runtime

logger = logging.getLogger(__name__)


def join_process_group(runtime: Runtime, timeout_s: int) -> Any:
    """Meet the other processes, and take this one's GPU; call it before anything is loaded.

    Args:
        runtime: Which device training runs on.
        timeout_s: Longest wait for the others.

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

    plugin = DeepSpeedPlugin()
    plugin.set_deepspeed_weakref()
    return plugin


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
