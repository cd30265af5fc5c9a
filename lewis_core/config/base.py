"""The base of all settings, and the few that several stages share."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.fields import ComputedFieldInfo, FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

UNITS = {"s": "(s)", "mib": "(MiB)", "frac": "(share)"}
"""Last words of names that are units."""
WORDS = {
    "num": "number of",
    "lora": "LoRA",
    "lr": "LR",
    "dir": "folder",
    "uri": "URI",
    "url": "URL",
    "vqa": "VQA",
    "gpu": "GPU",
    "gpus": "GPUs",
    "ids": "IDs",
}
"""Words of names that are written in another way in titles."""


def title_of(name: str, _field: FieldInfo | ComputedFieldInfo | None = None) -> str:
    """Title of a setting in a form: ``stage_timeout_s`` becomes ``Stage timeout (s)``."""
    *first, last = name.split("_")
    words = [WORDS.get(word, word) for word in first]
    words.append(UNITS.get(last, WORDS.get(last, last)) if first else WORDS.get(last, last))
    text = " ".join(words)
    return text[0].upper() + text[1:]


def arrange_form(schema: JsonSchemaValue) -> None:
    """Make the schema of an object what forms can show, in place.

    Databases do not keep the order of keys, so each property gets its ``position``; and forms know ``anyOf`` only, so
    alternatives that are told apart by a key are written as such.
    """
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position
        if "oneOf" in field:
            field["anyOf"] = field.pop("oneOf")
            field.pop("discriminator", None)


class FrozenConfig(BaseModel):
    """Base of all settings: immutable, no unknown keys, finite numbers; field docstrings become the schema's text."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        field_title_generator=title_of,
    )
    changes_result: ClassVar[bool] = True
    """Whether these settings decide what a stage computes, and so identify it."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema, arranged for forms."""
        schema = handler(core_schema)
        arrange_form(handler.resolve_ref_schema(schema))
        return schema


class ModelRef(FrozenConfig):
    """A vision-language model: base weights, an optional LoRA adapter, and how to run it."""

    path: str
    """A local folder, a hub id, or ``pocket:base`` / ``pocket:listener`` for the embedded checkpoints."""
    revision: str | None = None
    """Commit of a hub id; local folders are identified by their content."""
    adapter: Path | None = None
    """Folder of a LoRA adapter trained on ``path``."""
    prompts: Literal["concise", "instruct"] = "instruct"
    """Wording of the prompts: ``instruct`` for instruction-tuned models of 2B and more, ``concise`` for the pocket."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision; ``auto`` is bfloat16 on a GPU and float32 on a CPU. Flows decide it before any stage runs."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """Attention implementation of transformers."""
    engine: Literal["shared_prefix", "plain"] = "shared_prefix"
    """``shared_prefix`` computes what continuations of a prompt share once. ``plain`` repeats the prompt for each, by
    transformers' and TRL's own ways: slow, and the same up to rounding (rollouts draw other random numbers)."""
    max_pixels: int = Field(default=401_408, ge=784)
    """Images are reduced to at most this many pixels before the vision tower sees them."""
    min_pixels: int = Field(default=3_136, ge=784)
    """Images are enlarged to at least this many pixels."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "ModelRef":
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels ({self.min_pixels}) must not exceed max_pixels ({self.max_pixels})")
        return self


class Runtime(FrozenConfig):
    """Where and how stages run; never part of a stage's identity, because it must not change the result."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU when there is one."""
    num_workers: int = Field(default=2, ge=1)
    """Processes or threads for hashing, decoding and rendering."""
    torch_threads: int | None = Field(default=None, ge=1)
    """CPU threads of each torch process; ``None`` leaves torch's own choice."""
    batch_size: int = Field(default=64, ge=1)
    """Rows of one forward pass; halved and retried when memory runs out."""
    batch_tokens: int | None = Field(default=None, ge=64)
    """Tokens of one forward pass that scores or answers, each prompt counted once; ``None``: 16384 on a GPU, 8192 on a
    CPU. Halved and retried when memory runs out."""
    vision_cache_mib: int = Field(default=2048, ge=0)
    """Memory of the device for vision features of a model that answers: an image takes 2 bytes × visual tokens × width
    of the language model in bfloat16 (7B, 1024 tokens: 7 MiB). Metrics show whether it suffices."""
    prompt_cache_mib: int | None = Field(default=None, ge=0)
    """Memory of the device for keys and values of photos of a model that answers: a photo that comes again is not
    computed again. A token takes 56 KiB for Qwen2-VL-7B, 28 KiB for 2B. 0 keeps none; ``None``: a quarter of what is
    free on a GPU once the model is loaded, and none on a CPU, or for a service on a GPU that a training has."""
    compile_layers: bool = False
    """Compile norms and MLPs of the model. On a GPU it takes about a minute at the start of each process, and
    pays in long ones; on a CPU it seldom does."""
