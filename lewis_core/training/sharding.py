"""Training whose weights are spread over processes (DeepSpeed ZeRO-3): what must not be spread, or must keep step.

Every process of a spread model has to run the same modules in the same order. What a process does alone, such as
encoding its own photos, needs weights of its own; where processes have different amounts of work they do the same
number of passes.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from accelerate.utils import gather_object

from lewis_core.models.features import backbone
from lewis_core.models.fusing_vision import fuse_vision
from lewis_core.training.processes import shards_weights

Work = TypeVar("Work")
Result = TypeVar("Result")


def whole_vision_tower(model: Any) -> Any:
    """A model whose vision tower this process holds whole: the model itself unless its weights are spread.

    Under ZeRO-3 the tower is copied (1.3 GiB for the tower of Qwen2-VL in bfloat16); what else the copy has is empty.
    """
    if not shards_weights():
        return model
    import deepspeed
    import torch

    found = backbone(model)
    config = copy.deepcopy(found.config)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 1, 8, 0
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    config._attn_implementation = "sdpa"
    with _whole_weights(), torch.device(found.device):
        twin = type(found)._from_config(config, dtype=found.dtype)  # frequencies of positions stay float32
    with deepspeed.zero.GatheredParameters(list(found.visual.parameters())):
        twin.visual.load_state_dict(found.visual.state_dict())
    fuse_vision(twin)
    return twin.eval().requires_grad_(False)


def share_precision(model: Any) -> None:
    """Give what is trained the precision of the weights that are spread (its float32 copies are the optimizer's).

    ZeRO-3 casts nothing that was made after the weights were spread, and peft makes adapters in float32. Every
    activation behind one would be float32, too: more than twice the memory and time, and no flash attention.
    """
    dtype = backbone(model).dtype
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


@contextlib.contextmanager
def _whole_weights() -> Iterator[None]:
    """Models that are made in the block are not spread."""
    import transformers.integrations.deepspeed

    deepspeed: Any = transformers.integrations.deepspeed
    kept, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


def in_step(work: Sequence[Work], do: Callable[[Work], Result]) -> list[Result]:
    """Do work, as many times in every process: those with less repeat their last piece, and drop the result."""
    rounds = max(gather_object([len(work)]))
    return [do(work[min(number, len(work) - 1)]) for number in range(rounds)][: len(work)]
