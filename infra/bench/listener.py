"""The listener: pairs of photo and description a second, by four ways that must agree."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from infra.bench import world
from infra.bench.recorder import Recorder
from lewis_core.listener.client import HttpModel
from lewis_core.listener.schemas import GameScores, ScoreGame
from lewis_core.listener.scoring import yes_log_odds, yes_probability
from lewis_core.models.answers import YES_NO, answer_token_ids
from lewis_core.models.caches import ByteCache
from lewis_core.models.images import ImageFolder
from lewis_core.models.vlm import VisionLanguageModel
from lewis_core.prompts import prompt_set

PART = "listener"
ROWS = 32
"""Pairs of one forward pass of the batched arm."""
NEW_TOKENS = 10
"""What the reference lets its listener write for every pair."""
CACHE_BYTES = 8 << 30
KEPT = "keys and values of photos kept"
FIRST = "keys and values of photos computed to be kept"


class Baselines:
    """The ways of others, each pair with a prompt and a photo of its own.

    Args:
        model: The listener.
        processor: Its processor.
        folder: Photos.
    """

    def __init__(self, model: Any, processor: Any, folder: Path) -> None:
        self._model, self._processor, self._images = model, processor, ImageFolder(folder)
        self._prompts = prompt_set("concise")
        self._yes_no = answer_token_ids(processor.tokenizer, YES_NO)

    def question(self, word: str, text: str) -> str:
        """The listener's question about a description."""
        return self._prompts.match(word, text)

    def pairs(self, games: list[ScoreGame]) -> list[tuple[str, str]]:
        """Photo and question of every pair: games, then descriptions, then candidates."""
        return [
            (photo, self._prompts.match(game.category, text))
            for game in games
            for text in game.descriptions
            for photo in game.candidates
        ]

    @torch.no_grad()
    def one_by_one(self, pairs: list[tuple[str, str]], clean: bool) -> list[float]:
        """As the reference does: a generation of ten tokens for every pair, of which the first is read.

        Args:
            pairs: Photos and questions.
            clean: Also collect garbage and empty the allocator's cache twice a pair, as the reference does.
        """
        found = []
        for photo, question in pairs:
            inputs = self._inputs([(photo, question)], {photo: self._images.load(photo)})
            out = self._model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                return_dict_in_generate=True,
                output_logits=True,
            )
            found += self._read(out.logits[0])
            for _ in range(2 if clean else 0):
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return found

    @torch.no_grad()
    def batched(self, pairs: list[tuple[str, str]]) -> list[float]:
        """The best that is in stock: padded batches, one forward pass, logits of the last token only."""
        images = {photo: self._images.load(photo) for photo in dict.fromkeys(photo for photo, _ in pairs)}
        found = []
        for start in range(0, len(pairs), ROWS):
            inputs = self._inputs(pairs[start : start + ROWS], images)
            found += self._read(self._model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1])
        return found

    def _inputs(self, pairs: list[tuple[str, str]], images: dict[str, Any]) -> Any:
        texts = [
            self._processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for _, question in pairs
        ]
        inputs = self._processor(
            text=texts, images=[images[photo] for photo, _ in pairs], padding=True, return_tensors="pt"
        )
        return inputs.to(self._model.device)

    def _read(self, logits: Any) -> list[float]:
        logps = logits.float().log_softmax(-1)
        yes, no = (logps[:, ids].logsumexp(-1).tolist() for ids in self._yes_no)
        return [yes_probability(yes_log_odds(*pair)) for pair in zip(yes, no, strict=True)]


def flatten(scores: list[Any]) -> list[float]:
    """P(yes) of all pairs, in the order of :meth:`Baselines.pairs`."""
    return [value for game in scores for row in game.yes_probability for value in row]


class Lent:
    """A model that is given back: FastAPI keeps every application it has seen, and what that refers to."""

    def __init__(self, facade: Any) -> None:
        self.facade = facade

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["facade"], name)


@contextmanager
def serving(facade: VisionLanguageModel) -> Iterator[HttpModel]:
    """The product's service on a free port of this machine, with a client."""
    import uvicorn

    from lewis_core.listener.__main__ import bind
    from lewis_core.listener.service import create_app

    socket, lent = bind("127.0.0.1", 0), Lent(facade)
    server = uvicorn.Server(uvicorn.Config(create_app(lambda: lent, model_name="bench"), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield HttpModel(f"http://127.0.0.1:{socket.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join()
        del lent.facade


def unique_groups(facade: VisionLanguageModel, pairs: list[tuple[str, str]]) -> list[Any]:
    """Photos with their questions, as the engine computes them: see :class:`lewis_core.models.packing.Group`."""
    engine: Any = facade._engine
    texts = facade._texts(pairs)
    places: dict[Any, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text.digest, []).append(place)
    return list(engine._groups(texts, places))


def add_floors(recorder: Recorder, model: Any, groups: list[Any], tokens: int, part: str = PART) -> None:
    """Seconds that the operations on unique tokens alone would take at the measured rate."""
    counts = [world.shared_counts(group.prompt_tokens, [len(suffix) for suffix in group.suffixes]) for group in groups]
    language = sum(world.forward_flops(model, *count) for count in counts) / recorder.rates.flops
    vision = len(counts) * world.vision_flops(model, tokens) / recorder.rates.flops
    pairs = sum(len(group.suffixes) for group in groups)
    for arm, seconds in (("floor", language + vision), ("floor, photos seen before", language)):
        recorder.add(part, arm, seconds, visual_tokens=tokens, pairs_per_s=pairs / seconds)


def run(recorder: Recorder, model: Any, folder: Path, options: Any) -> None:
    """All arms, for each number of visual tokens.

    Args:
        recorder: Takes the times.
        model: Our listener, of random weights; the other arms have a model of the same weights.
        folder: Where photos may be written.
        options: ``visual_tokens``, ``games``, ``candidates``, ``descriptions``, ``reference_pairs``.
    """
    processor = world.build_processor(options.visual_tokens[0])
    stock = world.build_model(options.size, processor, recorder.device) if options.arms == "all" else None
    for tokens in options.visual_tokens:
        _run(recorder, model, stock, folder, options, tokens)


def _run(recorder: Recorder, model: Any, stock: Any, folder: Path, options: Any, tokens: int) -> None:
    processor = world.build_processor(tokens)
    photos = world.write_photos(folder, options.games * options.candidates, tokens)
    games = world.make_games(photos, options.candidates, options.descriptions)
    facade = open_facade(model, processor, folder)
    pairs = Baselines(model, processor, folder).pairs(games)
    results: dict[str, list[float]] = {}

    def forget() -> None:
        engine: Any = facade._engine
        engine._encoder.cache = ByteCache(CACHE_BYTES)

    with serving(facade) as client:
        arms: dict[str, Callable[[], list[float]]] = {
            "ours, over HTTP": lambda: flatten(client.score(games)),
            "ours, in process": lambda: flatten(facade.score(games)),
            "ours, photos never seen before": lambda: (forget(), flatten(facade.score(games)))[1],
        }
        facts = {"units": len(pairs), "visual_tokens": tokens}
        for arm, ask in arms.items():
            _measure(recorder, arm, ask, results, repeats=options.repeats, **facts)
        for arm in list(arms)[1:]:
            recorder.profile(f"listener, {arm}", arms[arm], visual_tokens=tokens)
    groups = unique_groups(facade, pairs)
    add_floors(recorder, model, groups, tokens)
    _run_kept(recorder, open_facade(model, processor, folder, prompt_bytes=CACHE_BYTES), games, results, facts, options)
    if stock is None:
        return
    baselines = Baselines(stock, processor, folder)
    batched = partial(baselines.batched, pairs)
    _measure(recorder, "batched forward", batched, results, repeats=options.stock_repeats, **facts)
    some = pairs[:: max(1, len(pairs) // options.reference_pairs)][: options.reference_pairs]
    facts |= {"units": len(some), "scale": len(pairs) / len(some), "repeats": 1}
    for arm, clean in (("reference style, without gc", False), ("reference style", True)):
        _measure(recorder, arm, partial(baselines.one_by_one, some, clean), results, **facts)
    _compare(recorder, results, pairs, some, tokens)


def _run_kept(
    recorder: Recorder,
    facade: VisionLanguageModel,
    games: list[ScoreGame],
    results: dict[str, list[float]],
    facts: dict[str, Any],
    options: Any,
) -> None:
    """Arms whose photos have come before, with descriptions that have not; and one that computes what it keeps."""
    engine: Any = facade._engine

    def first() -> list[float]:
        engine._kept.clear()
        return flatten(facade.score(games))

    with serving(facade) as client:
        anew = {
            way: partial(_ask_anew, score, games, count())
            for way, score in (("over HTTP", client.score), ("in process", facade.score))
        }
        for way, ask in anew.items():
            recorder.measure(PART, f"ours, {way}, {KEPT}", ask, unit="pairs", repeats=options.repeats, **facts)
        _measure(recorder, f"ours, in process, {FIRST}", first, results, repeats=options.repeats, **facts)
        if recorder.has_time(f"listener: P(yes), {KEPT}"):
            results[f"ours, in process, {KEPT}"] = flatten(facade.score(games))
        recorder.profile(f"listener, {KEPT}", anew["in process"], visual_tokens=facts["visual_tokens"])
    if statistics := facade.prompt_cache():
        recorder.note(f"listener: {KEPT}", visual_tokens=facts["visual_tokens"], **statistics.model_dump())


def _ask_anew(
    score: Callable[[list[ScoreGame]], list[GameScores]], games: list[ScoreGame], calls: Iterator[int]
) -> list[float]:
    """Score games with descriptions that no call before had."""
    new = f"No. {next(calls)}, "
    texts = [tuple(new + text for text in game.descriptions) for game in games]
    return flatten(
        score([game.model_copy(update={"descriptions": of_game}) for game, of_game in zip(games, texts, strict=True)])
    )


def _measure(
    recorder: Recorder, arm: str, ask: Callable[[], list[float]], results: dict[str, list[float]], **facts: Any
) -> None:
    def keep() -> None:
        results[arm] = ask()

    recorder.measure(PART, arm, keep, unit="pairs", **facts)


def open_facade(model: Any, processor: Any, folder: Path, **options: Any) -> VisionLanguageModel:
    """The product's model around random weights, as its loader makes it; ``model`` is changed."""
    from lewis_core.models.loading import use_engine
    from lewis_core.models.shared_prefix import EngineOptions

    use_engine(model)
    chosen = EngineOptions(cache_bytes=CACHE_BYTES, num_workers=8, **options)
    return VisionLanguageModel(model, processor, prompt_set("concise"), ImageFolder(folder), options=chosen)


def _compare(
    recorder: Recorder, results: dict[str, list[float]], pairs: list[Any], some: list[Any], tokens: int
) -> None:
    """Write down how far P(yes) of the arms lies apart, at most."""
    ours, place = results.get("ours, in process"), {pair: index for index, pair in enumerate(pairs)}
    if ours is None:
        return
    apart = {}
    for arm, values in results.items():
        asked = some if arm.startswith("reference") else pairs
        apart[arm] = max(abs(ours[place[pair]] - value) for pair, value in zip(asked, values, strict=True))
    recorder.note("listener: P(yes) differs from ours by at most", visual_tokens=tokens, **apart)
