"""Fakes that ship: used by tests, and useful to anybody who builds on this package."""

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.data.images import sample_image
from lewis_core.data.limits import MAX_IMAGE_PIXELS
from lewis_core.errors import ImageError
from lewis_core.evaluation.records import EvaluationResult, Prediction
from lewis_core.listener.schemas import ChoiceAnswer, ChoiceItem, GameScores, GenerateItem, Question, ScoreGame
from lewis_core.records import Catalog, Concept, Database, DatabaseEntry, Description, ImageRecord, Record
from lewis_core.seeding import stable_rng, stable_seed


def write_image(path: Path, seed: int, size: int = 32) -> None:
    """Write a small random JPEG that depends on the seed only; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = stable_rng(seed, "image").integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)


def write_photo_tree(
    root: Path, categories: Sequence[str] = ("bag", "mug"), concepts: int = 4, photos: int = 3
) -> None:
    """Write a data set in the PerVA layout: ``<root>/{train,test}/<category>/<concept>/<n>.jpg``.

    Args:
        root: Folder to fill.
        categories: Category names.
        concepts: Concepts per category, named ``c00``, ``c01``, … with the category's first letter in front.
        photos: Photos per concept in each of train and test.
    """
    seed = 0
    for category in categories:
        for index in range(concepts):
            for split in ("train", "test"):
                for photo in range(photos):
                    seed += 1
                    write_image(root / split / category / f"{category[0]}{index:02d}" / f"{photo}.jpg", seed)


def inspect_image(root: Path, relative: str, max_pixels: int = MAX_IMAGE_PIXELS) -> ImageRecord:
    """Make the record of an image below a data root.

    Raises:
        ImageError: If the file cannot be used; the reason is for people.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        found = sample_image(root, relative, max_pixels)
    return ImageRecord(path=relative, sha256=found.sha256, width=found.width, height=found.height)


def make_catalog(num_concepts: dict[str, int], num_test: int = 2, name: str = "secret") -> Catalog:
    """Make a catalog of concepts that need no files: ``<category>/<name><n>``, numbered through all categories.

    Args:
        num_concepts: Concepts by category word; the category's folder is called ``cat-<word>``.
        num_test: Test photos of each concept; there is one training photo.
        name: Beginning of every concept's name.
    """
    words = [word for word, count in num_concepts.items() for _ in range(count)]
    concepts = []
    for number, word in enumerate(words):
        place = f"cat-{word}/{name}{number:02d}"
        photos = [
            ImageRecord(
                path=f"{split}/{place}/{photo}.jpg", sha256=f"sha-{number:02d}-{split}-{photo}", width=8, height=8
            )
            for split, count in (("train", 1), ("test", num_test))
            for photo in range(count)
        ]
        category, _, concept = place.partition("/")
        concepts.append(
            Concept(
                category=category, category_word=word, name=concept, train=tuple(photos[:1]), test=tuple(photos[1:])
            )
        )
    return Catalog(concepts=tuple(sorted(concepts, key=lambda concept: concept.id)))


def make_database(catalog: Catalog, texts: dict[str, str | None], speaker: str = "base") -> Database:
    """Make a database of a catalog's concepts.

    Args:
        catalog: Concepts with a training photo each.
        texts: Detailed text by concept id; ``None`` for one whose completion could not be read.
        speaker: Name of the speaker.
    """
    entries = []
    for concept in catalog.concepts:
        if concept.id not in texts:
            continue
        detailed = texts[concept.id]
        parsed = Description(thinking="-", coarse=f"A photo of a {concept.category_word}", detailed=detailed or "")
        entries.append(
            DatabaseEntry(
                concept=concept.id,
                category=concept.category,
                category_word=concept.category_word,
                reference=concept.train[0],
                completion=detailed or "<broken>",
                description=None if detailed is None else parsed,
                error="expected <coarse>" if detailed is None else None,
            )
        )
    return Database(speaker=speaker, entries=tuple(entries))


def publish_files(root: Path, kind: str, files: dict[str, str]) -> ArtifactRef:
    """Publish an artifact of the given text files, as a stage would; the key is made from their content."""
    store, key = (
        ArtifactStore(root),
        str(stable_seed(0, kind, *(part for pair in sorted(files.items()) for part in pair))),
    )
    with store.building(kind, key) as folder:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return store.publish(folder, kind, key, {}, "source", {}, {})


def make_predictions(right: dict[str, bool], error: str | None = None) -> list[Prediction]:
    """Make one prediction for each concept, answered rightly or wrongly.

    Args:
        right: Whether the answer is right, by concept id ``category/name``.
        error: Why none of them could be asked, if so.
    """
    return [
        Prediction(
            item=f"item-{concept}",
            concept=concept,
            category=concept.partition("/")[0],
            options=("a", "b"),
            expected=0,
            answered=None if error else 0 if is_right else 1,
            error=error,
        )
        for concept, is_right in right.items()
    ]


def publish_evaluation(
    root: Path, speaker: str, items: Sequence[Record], evaluation: str = "game", answering: str = "listener"
) -> ArtifactRef:
    """Publish an evaluation of the given items, as its stage would, but without numbers."""
    result = EvaluationResult.model_validate(
        {"evaluation": evaluation, "speaker": speaker, "answering": answering, "metrics": ()}
    )
    name = "rows.jsonl" if evaluation == "descriptions" else "predictions.jsonl"
    lines = "".join(item.model_dump_json() + "\n" for item in items)
    return publish_files(root, f"evaluate-{evaluation}", {"metrics.json": result.model_dump_json(), name: lines})


class FakeModel:
    """An :class:`~lewis_core.models.protocol.AnsweringModel` that answers from functions.

    Args:
        says_yes: ``(image, description) -> P(yes)`` in (0, 1).
        answers: ``(image, question) -> index of the choice`` that gets probability 0.9.
        writes: ``(image, prompt) -> completion``.
        unreadable: Images that cannot be used; whatever shows one is refused as a whole.
    """

    def __init__(
        self,
        says_yes: Callable[[str, str], float] = lambda image, description: 0.5,
        answers: Callable[[str | None, Question], int] = lambda image, question: 0,
        writes: Callable[[str | None, str], str] = lambda image, prompt: "",
        unreadable: Collection[str] = (),
    ) -> None:
        self._says_yes, self._answers, self._writes = says_yes, answers, writes
        self._unreadable = unreadable
        self.asked: list[str] = []
        """Every prompt or description that was put, in order."""

    def score(self, games: Sequence[ScoreGame]) -> list[GameScores]:
        """Answer with ``says_yes``."""
        self._look(image for game in games for image in game.candidates)
        scores = []
        for game in games:
            self.asked.extend(game.descriptions)
            matrix = tuple(
                tuple(self._says_yes(image, text) for image in game.candidates) for text in game.descriptions
            )
            odds = tuple(tuple(math.log(p / (1 - p)) for p in row) for row in matrix)
            mass = tuple(tuple(1.0 for _ in row) for row in matrix)
            scores.append(GameScores(yes_log_odds=odds, yes_probability=matrix, captured_mass=mass))
        return scores

    def choose(self, items: Sequence[ChoiceItem]) -> list[list[ChoiceAnswer]]:
        """Answer with ``answers``."""
        self._look(item.image for item in items)
        return [[self._choose(item.image, question) for question in item.questions] for item in items]

    def generate(self, items: Sequence[GenerateItem]) -> list[list[str]]:
        """Answer with ``writes``."""
        self._look(item.image for item in items)
        self.asked.extend(item.prompt for item in items)
        return [[self._writes(item.image, item.prompt)] * item.num_return for item in items]

    def _look(self, images: Iterable[str | None]) -> None:
        for image in images:
            if image is not None and image in self._unreadable:
                raise ImageError(image, "cannot be read")

    def _choose(self, image: str | None, question: Question) -> ChoiceAnswer:
        self.asked.append(question.prompt)
        chosen = self._answers(image, question)
        rest = 0.1 / (len(question.choices) - 1)
        probs = [0.9 if index == chosen else rest for index in range(len(question.choices))]
        return ChoiceAnswer(log_probs=tuple(math.log(p) for p in probs), captured_mass=1.0)


_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TAGS = ("<thinking>", "</thinking>", "<coarse>", "</coarse>", "<detailed>", "</detailed>")
_MERGES = (
    *(("y", "e"), ("ye", "s"), ("Y", "e"), ("Ye", "s"), ("Y", "E"), ("YE", "S"), ("n", "o"), ("N", "o"), ("N", "O")),
    *(("Ġ", word) for word in ("yes", "Yes", "YES", "no", "No", "NO", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_checkpoint(
    folder: Path, seed: int = 0, hidden_size: int = 64, layers: int = 2, family: str = "qwen2_vl"
) -> Path:
    """Write a random Qwen-VL checkpoint of about 0.2 M parameters that loads like a real one.

    Text is read byte by byte; yes, no and letters are single tokens in their usual spellings, the tags of
    descriptions are added tokens. Its words mean nothing: it is for tests of code, not of quality.

    Args:
        folder: Folder to fill with config, weights (safetensors), tokenizer, chat template and processor.
        seed: Seed of the weights; another seed is another model.
        hidden_size: Width of the language model, a multiple of 32.
        layers: Depth of the language model, at least 2 for Qwen3-VL.
        family: ``qwen2_vl``, ``qwen2_5_vl`` or ``qwen3_vl``.

    Returns:
        The folder.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    loader: Any = AutoModelForImageTextToText
    processor = byte_processor(family)
    config = _tiny_config(family, processor.tokenizer, hidden_size, layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = loader.from_config(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tiny_config(family: str, tokenizer: Any, hidden_size: int, layers: int) -> Any:
    from transformers import AutoConfig

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 3 // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 16,
        "num_key_value_heads": hidden_size // 32,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    return AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=_tiny_vision(family, hidden_size),
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _tiny_vision(family: str, hidden_size: int) -> dict[str, Any]:
    shared = {"depth": 2, "num_heads": 2, "patch_size": 14, "initializer_range": 0.2}
    if family == "qwen2_vl":
        return shared | {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": hidden_size}
    wide = shared | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": hidden_size}
    if family == "qwen2_5_vl":
        return wide | {"window_size": 56, "fullatt_block_indexes": [1]}
    return wide | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}


def write_tiny_language_model(folder: Path, seed: int = 0, hidden_size: int = 64) -> Path:
    """Write a random Qwen3 language model that loads like a real one; its words mean nothing.

    Args:
        folder: Folder to fill with config, weights (safetensors), tokenizer and chat template.
        seed: Seed of the weights.
        hidden_size: Width, a multiple of 32.

    Returns:
        The folder.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    tokenizer = _tiny_tokenizer()
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=hidden_size // 16,
        num_key_value_heads=hidden_size // 32,
        head_dim=16,
        max_position_embeddings=8192,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = loader.from_config(config)
    model.save_pretrained(folder)
    tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def _tiny_tokenizer() -> Any:
    """A byte-level tokenizer made without a download."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in _MERGES)]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, list(_MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in _TAGS])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )


def byte_processor(family: str = "qwen2_vl") -> Any:
    """A byte-level Qwen-VL processor made without a download."""
    import transformers
    from transformers import Qwen2VLImageProcessor

    stem = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    processor_class: Any = getattr(transformers, f"{stem}Processor")
    video_stem = "Qwen3VL" if family == "qwen3_vl" else "Qwen2VL"
    return processor_class(
        image_processor=Qwen2VLImageProcessor(patch_size=14, min_pixels=28 * 28, max_pixels=56 * 56),
        tokenizer=_tiny_tokenizer(),
        video_processor=getattr(transformers, f"{video_stem}VideoProcessor")(patch_size=14),
        chat_template=_CHAT_TEMPLATE,
    )
