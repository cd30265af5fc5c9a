"""Tokenizer, processor and model configurations in the Qwen2-VL format, from nothing.

The tokenizer is trained on the exercises themselves, so every word of the pocket language is one
token; being byte-level, it can still write any text. It was built once and is frozen in the
shipped checkpoints: editing the exercises must not renumber the tokens of trained weights.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lewis_core.pocket.language import STATEMENTS
from lewis_core.pocket.tasks import TASKS
from lewis_core.pocket.world import photo_facts, random_identity, random_scene

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<thinking>", "</thinking>", "<coarse>", "</coarse>", "<detailed>", "</detailed>")
IMAGE_SIZE = 112
NUM_VISUAL = 16
PATCH_SIZE = 14
VOCAB_SIZE = 1024
CORPUS_ROUNDS = 4000
COMMON_ANSWERS = "yes\nno\nYes\nNo\nYES\nNO\n yes no Yes No YES NO\nuser\nassistant\nsystem\n"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ModelSize = Literal["test", "s", "m"]
# Text: hidden, inner, layers, heads, kv heads. Vision: width, depth, heads. Heads are 32 wide.
DIMENSIONS: Mapping[ModelSize, tuple[tuple[int, int, int, int, int], tuple[int, int, int]]] = {
    "test": ((64, 128, 2, 2, 1), (64, 2, 2)),
    "s": ((160, 448, 5, 5, 1), (128, 4, 4)),
    "m": ((192, 512, 6, 6, 2), (160, 5, 5)),
}


def iter_corpus(num_rounds: int, seed: int = 0) -> Iterator[str]:
    """Yield the text that the tokenizer is trained on: all sentences, and exercises of all kinds."""
    rng = np.random.default_rng(seed)
    for statements in STATEMENTS.values():
        yield from statements
    for _ in range(num_rounds):
        identity = random_identity(rng)
        facts = photo_facts(identity, random_scene(rng, identity.category))
        for task in TASKS.values():
            exercise = task(rng, facts)
            yield exercise.prompt
            yield exercise.answer
    yield COMMON_ANSWERS * num_rounds


def _without_tags(text: str) -> str:
    for tag in TAGS:
        text = text.replace(tag, " ")
    return text


def train_tokenizer(num_rounds: int = CORPUS_ROUNDS) -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE tokenizer with Qwen2's pre-tokenizer and chat tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import AddedToken, Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS) - len(TAGS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(map(_without_tags, iter_corpus(num_rounds)), trainer)
    model = json.loads(raw.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    no_token: Any = None
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        unk_token=no_token,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_tokens(special, special_tokens=True)
    # Not special, so that decoding with skip_special_tokens keeps them.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer.padding_side = "left"
    return tokenizer


def build_processor(tokenizer: "PreTrainedTokenizerBase") -> "ProcessorMixin":
    """Wrap the tokenizer into a Qwen2-VL processor for images of about 112 x 112 pixels."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    area = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}
    return Qwen2VLProcessor(  # type: ignore[no-untyped-call]
        image_processor=Qwen2VLImageProcessor(size=area),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=area),
        chat_template=CHAT_TEMPLATE,
    )


def build_model_config(token_ids: Mapping[str, int], size: ModelSize) -> dict[str, Any]:
    """Write the content of a Qwen2-VL ``config.json``.

    Args:
        token_ids: The tokenizer's whole vocabulary, added tokens included.
        size: Which of :data:`DIMENSIONS`.
    """
    (hidden, inner, layers, heads, kv_heads), (width, depth, vision_heads) = DIMENSIONS[size]
    vocab_size = (max(token_ids.values()) + 64) // 64 * 64
    pad, end = token_ids["<|endoftext|>"], token_ids["<|im_end|>"]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    text = {
        "model_type": "qwen2_vl_text",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "max_window_layers": layers,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": rope,
        "bos_token_id": pad,
        "eos_token_id": end,
        "pad_token_id": pad,
    }
    vision = {
        "model_type": "qwen2_vl_vision",
        "depth": depth,
        "embed_dim": width,
        "hidden_size": hidden,
        "num_heads": vision_heads,
        "mlp_ratio": 4,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {
        "model_type": "qwen2_vl",
        "text_config": text,
        "vision_config": vision,
        "image_token_id": token_ids["<|image_pad|>"],
        "video_token_id": token_ids["<|video_pad|>"],
        "vision_start_token_id": token_ids["<|vision_start|>"],
        "vision_end_token_id": token_ids["<|vision_end|>"],
        "tie_word_embeddings": True,
    }


def save_processor(output_dir: Path, num_rounds: int = CORPUS_ROUNDS) -> None:
    """Train a tokenizer and save it with its processor.

    The padding side is written by hand: transformers does not save it, and a decoder that is padded
    on the right answers from the padding.
    """
    build_processor(train_tokenizer(num_rounds)).save_pretrained(output_dir)
    path = output_dir / "tokenizer_config.json"
    content = json.loads(path.read_text()) | {"padding_side": "left"}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
