"""vLLM on the same work: rollouts, log-probabilities of given completions, answers of a listener.

vLLM is asked the way that suits it best: a prompt's completions as one request, photos named so that it need not
compare them, their pixels and features kept from the call before, no text made of tokens. Its weights are random
numbers that it makes itself, so its start reads none. In the first arm of each part it forgets keys and values before
every call: those of a speaker are of weights that have changed since, and ours are computed anew too.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from infra.bench import trainers, world
from infra.bench.listener import Baselines
from infra.bench.recorder import Recorder
from infra.bench.training import COMPLETION
from lewis_core.listener.scoring import yes_log_odds, yes_probability
from lewis_core.models.answers import YES_NO, answer_token_ids

LONGEST_TEXT = 2048
"""Tokens of a prompt and its completion, beside the photo's."""
SHARE = 0.8
"""Of the GPU's memory; vLLM takes it all at its start."""


def run(recorder: Recorder, folder: Path, options: Any) -> None:
    """Measure vLLM if it is installed; else write down that it is not.

    Args:
        recorder: Takes the times.
        folder: Receives photos and a checkpoint without weights.
        options: As for training and the listener.
    """
    try:
        import vllm
    except ImportError as error:
        recorder.add("peer", "vLLM", None, error=f"not installed: {error}")
        return
    peer = Peer(recorder, folder, options, vllm)
    for tokens in options.visual_tokens:
        for part in (peer.rollouts, peer.reference, peer.listener):
            with recorder.section(f"vLLM, {part.__name__}, {tokens} visual tokens"):
                part(tokens)


class Peer:
    """An engine of vLLM, for photos of all sizes.

    Args:
        recorder: Takes the times.
        folder: Receives photos and a checkpoint without weights.
        options: As for :func:`run`.
        vllm: The package.
    """

    def __init__(self, recorder: Recorder, folder: Path, options: Any, vllm: Any) -> None:
        self._recorder, self._folder, self._options, self._vllm = recorder, folder, options, vllm
        self._processor = world.build_processor(max(options.visual_tokens))
        self._processor.image_processor.size.shortest_edge = min(options.visual_tokens) * world.PIXELS_PER_TOKEN**2
        self._calls = count()
        is_cuda = recorder.device == "cuda"
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] if is_cuda else 0
        started = time.perf_counter()
        self._engine = vllm.LLM(
            self._write_checkpoint(),
            load_format="dummy",
            dtype="bfloat16" if is_cuda else "float32",
            max_model_len=LONGEST_TEXT + max(options.visual_tokens),
            max_num_seqs=max(options.prompts * options.group, 128),
            limit_mm_per_prompt={"image": 1, "video": 0},
            enable_prefix_caching=True,
            gpu_memory_utilization=SHARE,
            enforce_eager=not is_cuda,
        )
        cache = self._engine.llm_engine.vllm_config.cache_config
        recorder.note(
            f"vLLM {vllm.__version__} started",
            seconds=round(time.perf_counter() - started, 1),
            taken_gib=round((free - torch.cuda.mem_get_info()[0]) / 2**30, 2) if is_cuda else None,
            tokens_in_cache=cache.num_gpu_blocks * cache.block_size,
        )

    def _write_checkpoint(self) -> str:
        path = self._folder / "checkpoint"
        model = world.build_model(self._options.size, self._processor, "meta")
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(path)
        self._processor.save_pretrained(path)
        return str(path)

    def _prompt(self, photo: str, question: str, completion: str = "") -> dict[str, Any]:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        image = Image.open(self._folder / photo).convert("RGB")
        return {
            "prompt": text + completion,
            "multi_modal_data": {"image": image},
            "multi_modal_uuids": {"image": photo},
        }

    def _ask(self, prompts: list[dict[str, Any]], forget: bool, **sampling: Any) -> list[Any]:
        """One call; with ``forget`` nothing is left of the keys and values of calls before."""
        if forget and not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache; nothing else may use the engine meanwhile")
        found: list[Any] = self._engine.generate(
            prompts, self._vllm.SamplingParams(detokenize=False, **sampling), use_tqdm=False
        )
        return found

    def _measure(self, part: str, arm: str, call: Callable[[], list[Any]], tokens: int, **facts: Any) -> list[Any]:
        """Time an arm, and note how much of its prompts came from the prefix cache.

        Returns:
            What its last call found; nothing if there was no time or no memory for it.
        """
        outputs: list[Any] = []

        def go() -> None:
            outputs[:] = call()

        repeats = self._options.stock_repeats
        if self._recorder.measure(part, arm, go, repeats=repeats, visual_tokens=tokens, **facts) is None:
            return []
        self._recorder.note(
            f"{part}: {arm}: tokens of prompts",
            visual_tokens=tokens,
            all=sum(len(output.prompt_token_ids) for output in outputs),
            cached=sum(output.num_cached_tokens or 0 for output in outputs),
        )
        return outputs

    def rollouts(self, tokens: int) -> None:
        """Completions of full length, all groups of a step together."""
        options = self._options
        photos = world.write_photos(self._folder, options.prompts, tokens)
        prompts = [self._prompt(photo, trainers.INSTRUCTION) for photo in photos]
        rows = options.prompts * options.group

        def write(forget: bool) -> list[Any]:
            found = self._ask(prompts, forget, n=options.group, max_tokens=options.new_tokens, ignore_eos=True)
            lengths = {len(row.token_ids) for output in found for row in output.outputs}
            if lengths != {options.new_tokens}:
                raise RuntimeError(f"expected {options.new_tokens} tokens each, found {sorted(lengths)}")
            return found

        facts = {"units": rows * options.new_tokens, "unit": "tokens", "rows": rows}
        self._measure("rollouts", "vLLM", partial(write, True), tokens, **facts)
        self._measure("rollouts", "vLLM, keys and values of prompts kept", partial(write, False), tokens, **facts)

    def reference(self, tokens: int) -> None:
        """Log-probabilities of given completions, all groups of a step.

        For a request with ``prompt_logprobs`` vLLM takes nothing from its prefix cache, so that every row computes its
        prompt anew. Told otherwise, it leaves out the tokens that it took, also those with which completions of a
        group begin alike; how many are missing is noted.
        """
        options, length = self._options, min(COMPLETION, self._options.completion)
        photos = world.write_photos(self._folder, options.prompts, tokens)
        prompts = [
            self._prompt(photo, trainers.INSTRUCTION, world.description(number, length - 1)[:length])
            for photo in photos
            for number in range(options.group)
        ]

        def read(skip: bool | None) -> list[Any]:
            found = self._ask(
                prompts, True, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, skip_reading_prefix_cache=skip
            )
            for output in found:
                _last_logprobs(output, length)
            return found

        facts = {"units": options.prompts, "unit": "groups"}
        for arm, skip in (("vLLM, prompt_logprobs", None), ("vLLM, prompt_logprobs, prompts shared", False)):
            found = self._measure("reference", arm, partial(read, skip), tokens, **facts)
            missing = sum(length - len(_last_logprobs(output, length)) for output in found)
            self._recorder.note(f"reference: {arm}: completion tokens", visual_tokens=tokens, missing=missing)

    def listener(self, tokens: int) -> None:
        """P(yes) of every pair of photo and description, each a request of one token."""
        options = self._options
        photos = world.write_photos(self._folder, options.games * options.candidates, tokens)
        games = world.make_games(photos, options.candidates, options.descriptions)
        prompts = [self._prompt(*pair) for pair in Baselines(None, self._processor, self._folder).pairs(games)]
        answers = answer_token_ids(self._processor.tokenizer, YES_NO)

        def listen(forget: bool) -> list[Any]:
            new = f"Item {next(self._calls)}, "  # no call before has seen these descriptions
            asked = [prompt | {"prompt": prompt["prompt"].replace("Item ", new, 1)} for prompt in prompts]
            found = self._ask(asked, forget, max_tokens=1, logprob_token_ids=list(chain(*answers)))
            for output in found:
                _yes_probability(output.outputs[0].logprobs[0], answers)
            return found

        facts = {"units": len(prompts), "unit": "pairs"}
        self._measure("listener", "vLLM", partial(listen, True), tokens, **facts)
        self._measure("listener", "vLLM, keys and values of photos kept", partial(listen, False), tokens, **facts)


def _last_logprobs(output: Any, length: int) -> list[float]:
    """Those of the last ``length`` tokens of a prompt, as far as vLLM computed them."""
    known = len(output.prompt_token_ids) - 1 - (output.num_cached_tokens or 0)
    places = range(-min(length, known), 0)
    return [output.prompt_logprobs[place][output.prompt_token_ids[place]].logprob for place in places]


def _yes_probability(logprobs: Any, answers: list[list[int]]) -> float:
    yes, no = (torch.tensor([logprobs[token].logprob for token in ids]).logsumexp(0).item() for ids in answers)
    return yes_probability(yes_log_odds(yes, no))
