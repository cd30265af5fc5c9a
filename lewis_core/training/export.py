"""Merge an adapter into its base, and check that what comes out answers as before.

    python -m lewis_core.training.export --model Qwen/Qwen2-VL-7B-Instruct --adapter DIR --photos DIR --out DIR

Merging rounds: a small adapter added to a bfloat16 weight is lost in part. So weights are added in float32 and rounded
once, and then both models describe the same photos: the one that users load from the folder, and the base with its
adapter beside it. If they differ by more than the tolerance nothing is kept. Exit status: 0, 1 for an error, 2 for
wrong arguments.
"""

import argparse
import json
import logging
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.data.images import load_rgb
from lewis_core.errors import LewisError, MergeError, ModelError
from lewis_core.listener.__main__ import read_model_ref
from lewis_core.models.adapters import check_adapter
from lewis_core.models.files import adapter_folder, base_folder, resolve_model_path
from lewis_core.models.loading import load_model, load_processor, resolve_dtype
from lewis_core.prompts import prompt_set
from lewis_core.training.shards import merge_files, read_plain_adapter

logger = logging.getLogger("lewis_core.training.export")
CHECK = "merge_check.json"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Tolerance:
    """How far a merged model may be from the unmerged one."""

    changed_frac: float = 0.02
    """Share of the tokens that the unmerged model writes, and that would be others now."""
    mean_shift: float = 0.05
    """Mean difference of their log-probabilities, in nats."""


@dataclass(frozen=True)
class MergeCheck:
    """How far a merged model is from the unmerged one."""

    photos: int
    tokens: int
    changed_frac: float
    mean_shift: float
    max_shift: float
    same_text_frac: float
    """Photos about which both write the same, word for word."""
    dtype: str

    def fits(self, tolerance: Tolerance) -> bool:
        """Whether it is near enough."""
        return self.changed_frac <= tolerance.changed_frac and self.mean_shift <= tolerance.mean_shift


class Answer(NamedTuple):
    """What a model writes about one photo, and what it makes of given tokens."""

    written: Tensor
    """(tokens,): its own greedy completion."""
    likeliest: Tensor
    """(given tokens,): what it would write in place of each."""
    log_probs: Tensor
    """(given tokens,): how likely it finds each."""


def export_merged(
    ref: ModelRef,
    output_dir: Path,
    photos: Sequence[Path],
    runtime: Runtime,
    tolerance: Tolerance = Tolerance(),
    category: str = "object",
    max_new_tokens: int = 64,
) -> MergeCheck:
    """Merge, check, and only then put the folder in its place.

    Args:
        ref: Base and adapter; its ``dtype`` is that of the merged weights.
        output_dir: Folder that must not exist: weights, processor, ``merge_check.json``.
        photos: Photos that both models describe.
        runtime: Device on which the models describe. Merging itself is done by the CPU.
        tolerance: How far they may differ.
        category: Word for what is on the photos.
        max_new_tokens: Longest description.

    Returns:
        How far they differ.

    Raises:
        ModelError: If base and adapter cannot be loaded, or the folder exists.
        MergeError: If the answers differ too much; nothing is kept.
    """
    if ref.adapter is None:
        raise ModelError("there is nothing to merge: give an adapter")
    if output_dir.exists():
        raise ModelError(f"{output_dir} exists; give a folder that does not, or remove it")
    if not photos:
        raise ModelError("there are no photos to compare answers on; give a folder with some")
    plain = ref.model_copy(update={"engine": "plain"})
    prompt = prompt_set(ref.prompts).speaker(category)
    part = output_dir.with_name(f".{output_dir.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_merged(plain, part, runtime)
        before = list(_describe(plain, runtime, photos, prompt, max_new_tokens, None))
        merged = plain.model_copy(update={"path": str(part), "revision": None, "adapter": None})
        given = [answer.written for answer in before]
        after = list(_describe(merged, runtime, photos, prompt, max_new_tokens, given))
        check = compare(before, after, str(_dtype(plain, runtime)))
        (part / CHECK).write_text(json.dumps(asdict(check), indent=1) + "\n", encoding="utf-8")
        if not check.fits(tolerance):
            raise MergeError(_complaint(check, tolerance))
        part.rename(output_dir)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return check


def write_merged(ref: ModelRef, folder: Path, runtime: Runtime) -> None:
    """Add the adapter to the base in float32, round once, and write weights and processor.

    Plain LoRA is added file by file, and needs little memory; other adapters by peft, with the base in float32.
    """
    from transformers import AutoProcessor

    adapter, dtype = adapter_folder(ref), _dtype(ref, runtime)
    assert adapter is not None
    check_adapter(adapter)
    load_processor(ref)  # which checks the base
    additions = read_plain_adapter(adapter)
    if additions is None:
        logger.warning("%s is no plain LoRA: it is merged in memory, which takes 4 bytes a weight", adapter)
        on_cpu = Runtime(device="cpu", torch_threads=runtime.torch_threads)
        model, _ = load_model(ref.model_copy(update={"dtype": "float32"}), on_cpu)
        model.merge_and_unload().to(dtype).save_pretrained(folder)
    else:
        merge_files(base_folder(ref), additions, folder, dtype)
    loader: Any = AutoProcessor
    loader.from_pretrained(resolve_model_path(ref.path), revision=ref.revision).save_pretrained(folder)


def compare(before: Sequence[Answer], after: Sequence[Answer], dtype: str) -> MergeCheck:
    """Compare what two models make of the tokens that the first one writes."""
    given = torch.cat([answer.written for answer in before])
    shift = (_joined(before, "log_probs") - _joined(after, "log_probs")).abs()
    same = [torch.equal(one.written, other.written) for one, other in zip(before, after, strict=True)]
    return MergeCheck(
        photos=len(before),
        tokens=len(given),
        changed_frac=float((_joined(before, "likeliest") != _joined(after, "likeliest")).float().mean()),
        mean_shift=float(shift.mean()),
        max_shift=float(shift.max()),
        same_text_frac=sum(same) / len(same),
        dtype=dtype,
    )


def _joined(answers: Sequence[Answer], field: str) -> Tensor:
    return torch.cat([getattr(answer, field) for answer in answers])


def _complaint(check: MergeCheck, tolerance: Tolerance) -> str:
    return (
        f"merged into {check.dtype}, the model would write {check.changed_frac:.1%} of {check.tokens} tokens "
        f"otherwise (at most {tolerance.changed_frac:.1%} are allowed); log-probabilities shift by "
        f"{check.mean_shift:.3g} nats on average (at most {tolerance.mean_shift:g}) and by {check.max_shift:.3g} at "
        f"most; {check.same_text_frac:.0%} of {check.photos} descriptions are the same. Nothing was kept. Merge into "
        "float32 (--dtype float32), or serve the adapter beside its base, which costs little"
    )


def _dtype(ref: ModelRef, runtime: Runtime) -> torch.dtype:
    return resolve_dtype(ref, torch.device("cuda" if _has_gpu(runtime) else "cpu"))


def _has_gpu(runtime: Runtime) -> bool:
    return runtime.device != "cpu" and torch.cuda.is_available()


@torch.inference_mode()
def _describe(
    ref: ModelRef,
    runtime: Runtime,
    photos: Sequence[Path],
    prompt: str,
    max_new_tokens: int,
    given: Sequence[Tensor] | None,
) -> Iterator[Answer]:
    """Let a model describe photos; it also reads the given texts, or else its own."""
    model, processor = load_model(ref, runtime)
    for index, path in enumerate(photos):
        content = [{"type": "image", "image": load_rgb(path.parent, path.name)}, {"type": "text", "text": prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        length = inputs["input_ids"].shape[1]
        written = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)[0, length:]
        read = written if given is None else given[index].to(model.device)
        extended = {name: _extend(name, value, read, length) for name, value in inputs.items()}
        log_probs = model(**extended).logits[0, length - 1 : -1].float().log_softmax(-1)
        yield Answer(written.cpu(), log_probs.argmax(1).cpu(), log_probs.gather(1, read[:, None])[:, 0].cpu())


def _extend(name: str, value: Tensor, ids: Tensor, length: int) -> Tensor:
    """Lengthen what belongs to the tokens of a prompt by a completion."""
    if value.dim() != 2 or value.shape[1] != length:
        return value
    tail = ids if name == "input_ids" else torch.full_like(ids, int(name == "attention_mask"))
    return torch.cat([value, tail[None].to(value.dtype)], 1)


def find_photos(folder: Path, count: int) -> list[Path]:
    """Photos below a folder, evenly chosen from all in order of their paths."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    kept = min(count, len(found))
    return [found[math.floor(index * len(found) / kept)] for index in range(kept)]


def main(arguments: Sequence[str]) -> int:
    """Export; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lewis_core.training.export", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder, hub id, pocket:<name>, or a ModelRef as JSON")
    parser.add_argument("--adapter", required=True, type=Path, help="folder of the adapter")
    parser.add_argument("--photos", required=True, type=Path, help="folder of photos that both models describe")
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), help="precision of the merged weights")
    parser.add_argument("--category", default="object", help="word for what is on the photos")
    parser.add_argument("--num-photos", type=int, default=16)
    parser.add_argument("--max-changed", type=float, default=Tolerance.changed_frac, help="share of tokens")
    parser.add_argument("--max-shift", type=float, default=Tolerance.mean_shift, help="mean shift, in nats")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        ref = read_model_ref(args.model).model_copy(update={"adapter": args.adapter})
        ref = ref.model_copy(update={"dtype": args.dtype}) if args.dtype else ref
        runtime = Runtime(device=args.device, torch_threads=args.threads)
        tolerance = Tolerance(args.max_changed, args.max_shift)
        photos = find_photos(args.photos, args.num_photos)
        check = export_merged(ref, args.out.absolute(), photos, runtime, tolerance, args.category)
    except LewisError as error:
        logger.error("%s", error)
        return 1
    logger.info("%s: %s", args.out, json.dumps(asdict(check)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
