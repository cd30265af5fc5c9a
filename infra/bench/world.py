"""Random models of real size, photos, games: what the arms compute on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lewis_core.listener.schemas import ScoreGame
from lewis_core.seeding import stable_rng
from lewis_core.testing import byte_processor

PIXELS_PER_TOKEN = 28
"""Side of the square of pixels that becomes one visual token."""
WORDS = ("red", "blue", "striped", "round", "matte", "small", "worn", "with a star", "with a handle", "in one piece")


@dataclass(frozen=True)
class Size:
    """A model's shape; those of Qwen2-VL."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision_depth: int
    vision_width: int
    vision_heads: int
    is_tied: bool


SIZES = {
    "tiny": Size(64, 96, 2, 4, 2, 512, 2, 32, 2, is_tied=True),
    "2b": Size(1536, 8960, 28, 12, 2, 151_936, 32, 1280, 16, is_tied=True),
    "7b": Size(3584, 18_944, 28, 28, 4, 152_064, 32, 1280, 16, is_tied=False),
}


def build_processor(visual_tokens: int) -> Any:
    """A byte-level processor that turns every photo into a number of visual tokens."""
    processor = byte_processor()
    images = processor.image_processor
    pixels = visual_tokens * PIXELS_PER_TOKEN**2
    images.size = type(images.size)(shortest_edge=pixels, longest_edge=pixels)
    return processor


def build_model(size: str, processor: Any, device: str, seed: int = 0) -> Any:
    """A Qwen2-VL of random weights, made on the device; bfloat16 on a GPU, else float32."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    shape, tokenizer = SIZES[size], processor.tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    ids["vision_end"] = tokenizer.convert_tokens_to_ids("<|vision_end|>")
    head_dim = shape.hidden // shape.heads
    section = [head_dim // 8, head_dim // 16 * 3, head_dim // 16 * 3]
    config = AutoConfig.for_model(
        "qwen2_vl",
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "mrope_section": section, "rope_theta": 1e6},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_width,
            "num_heads": shape.vision_heads,
            "mlp_ratio": 4,
            "patch_size": 14,
            "hidden_size": shape.hidden,
        },
        tie_word_embeddings=shape.is_tied,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    loader: Any = AutoModelForImageTextToText
    torch.manual_seed(seed)
    with torch.device(device):
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = loader.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # for all arms: it plans anew for every new shape
    return model


def write_photos(folder: Path, count: int, visual_tokens: int) -> list[str]:
    """Write photos that need no resizing; returns their names."""
    side = round(visual_tokens**0.5) * PIXELS_PER_TOKEN
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        pixels = stable_rng(number, "photo").integers(0, 256, (8, 8, 3), dtype=np.uint8)
        name = f"{visual_tokens}-{number:03d}.jpg"
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(folder / name, quality=90)
        names.append(name)
    return names


def description(number: int, length: int) -> str:
    """A text of about ``length`` characters, and so of about as many byte-level tokens."""
    rng, words = stable_rng(number, "description"), [f"Item {number}:"]
    while sum(map(len, words)) + len(words) < length:
        words.append(WORDS[rng.integers(len(WORDS))])
    return " ".join(words)[: max(length, 8)] + "."


def make_games(photos: list[str], candidates: int, descriptions: int) -> list[ScoreGame]:
    """Games over consecutive photos; descriptions of 30 to 90 characters."""
    games = []
    for start in range(0, len(photos), candidates):
        texts = tuple(
            description(start * descriptions + number, 30 + 60 * number // max(1, descriptions - 1))
            for number in range(descriptions)
        )
        games.append(
            ScoreGame(candidates=tuple(photos[start : start + candidates]), descriptions=texts, category="mug")
        )
    return games


def forward_flops(model: Any, tokens: float, pairs: float) -> float:
    """Operations of the language model's layers: ``tokens`` through each, ``pairs`` of query and key in each."""
    from lewis_core.models.features import backbone

    text = backbone(model).config.get_text_config()
    layers = backbone(model).language_model.layers
    weights = sum(p.numel() for name, p in layers.named_parameters() if p.ndim == 2 and "lora" not in name)
    return 2 * weights * tokens + 4 * pairs * text.hidden_size * text.num_hidden_layers


def vision_flops(model: Any, visual_tokens: int) -> float:
    """Operations of the vision tower for one photo."""
    from lewis_core.models.features import backbone

    vision, patches = backbone(model).visual, visual_tokens * 4
    blocks = sum(p.numel() for p in vision.blocks.parameters() if p.ndim == 2)
    merger = sum(p.numel() for p in vision.merger.parameters() if p.ndim == 2)
    width, depth = vision.config.embed_dim, vision.config.depth
    return float(2 * blocks * patches + 2 * merger * visual_tokens + 4 * patches**2 * width * depth)


def shared_counts(prompt: int, suffixes: list[int]) -> tuple[float, float]:
    """Unique tokens of a prompt with its suffixes, and pairs of query and key."""
    return prompt + sum(suffixes), prompt**2 / 2 + sum(n * prompt + n * n / 2 for n in suffixes)
