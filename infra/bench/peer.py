"""vLLM on the same work: rollouts with a shared prefix cache, and log-probabilities of given completions."""

from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from infra.bench import trainers, world
from infra.bench.recorder import Recorder
from infra.bench.trainers import Shape


def run(recorder: Recorder, folder: Path, options: Any) -> None:
    """Measure vLLM if it is installed; else write down that it is not.

    Args:
        recorder: Takes the times.
        folder: Receives photos and a checkpoint of random weights.
        options: As for training.
    """
    try:
        import vllm
    except ImportError as error:
        recorder.add("peer", "vLLM", None, error=f"not installed: {error}")
        return
    for tokens in options.visual_tokens:
        _run(recorder, folder, options, vllm, tokens)


def _run(recorder: Recorder, folder: Path, options: Any, vllm: Any, tokens: int) -> None:
    shape = Shape(tokens, options.prompts, options.group, options.new_tokens)
    processor = world.build_processor(tokens)
    photos = world.write_photos(folder, options.prompts, tokens)
    checkpoint = folder / f"checkpoint-{tokens}"
    world.build_model(options.size, processor, recorder.device).save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    engine = vllm.LLM(
        str(checkpoint), enable_prefix_caching=True, max_model_len=4096 + tokens, gpu_memory_utilization=0.8
    )
    content = [{"type": "image"}, {"type": "text", "text": trainers.INSTRUCTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    prompts = [{"prompt": text, "multi_modal_data": {"image": Image.open(folder / photo)}} for photo in photos]
    write = vllm.SamplingParams(
        n=shape.group, temperature=1.0, max_tokens=shape.new_tokens, min_tokens=shape.new_tokens, ignore_eos=True
    )
    rows = shape.prompts * shape.group
    facts = {"visual_tokens": tokens, "rows": rows}
    units = {"units": rows * shape.new_tokens, "unit": "tokens"}
    recorder.measure("rollouts", "vLLM", partial(engine.generate, prompts, write), **units, **facts)
    scored = [
        prompt | {"prompt": text + world.description(number, shape.new_tokens)}
        for prompt in prompts
        for number in range(shape.group)
    ]
    read = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0)
    units = {"units": shape.prompts, "unit": "groups"}
    recorder.measure("reference", "vLLM, prompt_logprobs", partial(engine.generate, scored, read), **units, **facts)
