"""Packaging: bare weights to folders that transformers and open_clip load by themselves."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, processors

from lewis_core.errors import ModelError
from lewis_core.pocket import MODELS_DIR
from lewis_core.pocket.training.assets import build_model_config

PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "chat_template.jinja",
)


def pack_vlm(weights_dir: Path, output_dir: Path, processor_dir: Path = MODELS_DIR / "base") -> None:
    """Write a checkpoint folder from ``weights.safetensors`` and ``training.json``.

    Raises:
        ModelError: If the weights do not fit the architecture.
    """
    from transformers import (
        AutoProcessor,
        GenerationConfig,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
    )

    processor: Any = AutoProcessor.from_pretrained(processor_dir)  # type: ignore[no-untyped-call]
    size = json.loads((weights_dir / "training.json").read_text())["config"]["size"]
    content = build_model_config(processor.tokenizer.get_vocab(), size)
    config = Qwen2VLConfig.from_dict(content)
    config.tie_word_embeddings = True
    model: Any = Qwen2VLForConditionalGeneration(config)
    weights = load_file(weights_dir / "weights.safetensors")
    result = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    if result.unexpected_keys or set(result.missing_keys) - {"lm_head.weight"}:
        raise ModelError(f"{weights_dir}: weights do not fit a Qwen2-VL of size {size}: {result}")
    model.tie_weights()
    text = content["text_config"]
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=text["eos_token_id"], pad_token_id=text["pad_token_id"]
    )
    model.to(torch.bfloat16).save_pretrained(output_dir)
    if output_dir.resolve() != processor_dir.resolve():
        for name in PROCESSOR_FILES:
            shutil.copyfile(processor_dir / name, output_dir / name)


def pack_clip(weights_dir: Path, output_dir: Path, processor_dir: Path = MODELS_DIR / "base") -> None:
    """Write an open_clip ``local-dir`` folder: weights, configuration and tokenizer.

    The tokenizer is the frozen one, except that it ends every text with the end token, which is
    where the text tower pools.
    """
    from transformers import PreTrainedTokenizerFast

    output_dir.mkdir(parents=True, exist_ok=True)
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        shutil.copyfile(weights_dir / name, output_dir / name)
    tokenizer = Tokenizer.from_file(str(processor_dir / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", end)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="right",
    ).save_pretrained(output_dir)


def pack_pocket_models(weights_dir: Path, output_dir: Path) -> None:
    """Package all three models of a build."""
    for name in ("base", "listener"):
        pack_vlm(weights_dir / name, output_dir / name)
    pack_clip(weights_dir / "clip", output_dir / "clip")
