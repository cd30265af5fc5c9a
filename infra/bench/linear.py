"""Cost against unique tokens: more descriptions a game, more candidates a game, more completions a prompt."""

from functools import partial
from pathlib import Path
from typing import Any

from infra.bench import trainers, world
from infra.bench.listener import Baselines, open_facade, unique_groups
from infra.bench.recorder import Recorder
from infra.bench.trainers import Shape
from infra.bench.training import OURS, ArmBench


def run(recorder: Recorder, model: Any, folder: Path, options: Any) -> None:
    """Vary one number at a time, at the first number of visual tokens.

    Args:
        recorder: Takes the times.
        model: A model of random weights.
        folder: Where photos may be written.
        options: ``visual_tokens``, ``most_descriptions``, ``most_candidates`` and those of training.
    """
    tokens = options.visual_tokens[0]
    processor = world.build_processor(tokens)
    photos = world.write_photos(folder, options.most_candidates, tokens)
    facade = open_facade(model, processor, folder)
    for candidates, descriptions in _steps(options.most_candidates, options.most_descriptions):
        games = world.make_games(photos[:candidates], candidates, descriptions)
        groups = unique_groups(facade, Baselines(model, processor, folder).pairs(games))
        recorder.measure(
            "linear",
            f"score, K={candidates}, G={descriptions}",
            partial(facade.score, games),
            repeats=5,
            unique_tokens=sum(group.tokens for group in groups),
            separate_tokens=sum(group.prompt_tokens + len(suffix) for group in groups for suffix in group.suffixes),
        )
    _update(recorder, folder, processor, photos, options, tokens)


def _steps(most_candidates: int, most_descriptions: int) -> list[tuple[int, int]]:
    """Candidates and descriptions: each doubled from 2 while the other stays."""
    by_descriptions = [(min(4, most_candidates), 2**power) for power in range(1, 12) if 2**power <= most_descriptions]
    by_candidates = [(2**power, min(8, most_descriptions)) for power in range(1, 12) if 2**power <= most_candidates]
    return list(dict.fromkeys([*by_descriptions, *by_candidates]))


def _update(recorder: Recorder, folder: Path, processor: Any, photos: list[str], options: Any, tokens: int) -> None:
    bench = ArmBench(recorder, OURS, folder, processor, photos, options)
    largest = Shape(tokens, 1, options.most_descriptions, options.completion, options.rank)
    trainer = bench._trainer(largest, [_none])
    prompt = len(bench._prompt_ids(trainer, trainers.make_rows(largest, photos)[:1])[0])
    size = 2
    while size <= options.most_descriptions:
        shape = Shape(tokens, 1, size, options.completion, options.rank)
        inputs = bench._prepared(trainer, shape, 1)

        def step(inputs: dict[str, Any] = inputs) -> None:
            trainer.model.zero_grad()
            trainer.accelerator.backward(trainer._compute_loss(trainer.model, inputs))

        recorder.measure(
            "linear",
            f"update, G={size}",
            step,
            repeats=5,
            unique_tokens=int(world.shared_counts(prompt, [shape.new_tokens] * size)[0]),
            separate_tokens=size * (prompt + shape.new_tokens),
        )
        size *= 2


def _none(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Seconds against unique tokens, as PNG.

    Args:
        rows: Of :func:`run`.
        file: Where the picture goes.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 4), layout="constrained")
    series = {
        "tokens that are computed": ("unique_tokens", "#1f6f8b", "o"),
        "tokens of separate rows": ("separate_tokens", "#c46a3a", "s"),
    }
    for axes, kind in zip(figure.subplots(1, 2), ("score", "update"), strict=True):
        found = [row for row in rows if row["part"] == "linear" and row["arm"].startswith(kind) and row["seconds"]]
        times = [row["seconds"] * 1e3 for row in found]
        for name, (key, color, marker) in series.items():
            axes.plot([row[key] / 1e3 for row in found], times, marker, color=color, label=name)
        tokens = [row["unique_tokens"] / 1e3 for row in found]
        slope, start = np.polyfit(tokens, times, 1)
        ends = np.array([0, max(tokens)])
        label = f"{slope:.3g} ms a thousand + {start:.3g} ms"
        axes.plot(ends, start + slope * ends, color="#1f6f8b", alpha=0.5, label=label)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set(xlabel="thousand tokens", ylabel="milliseconds", title=kind, xlim=(0, None))
        axes.set_ylim(0, 1.08 * max(times))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.savefig(file, dpi=120)
