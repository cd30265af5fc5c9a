"""``python -m infra.bench``: measure, print a table, write JSON and a plot."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from infra.bench import linear, listener, peer, pocket, recognition, training, world
from infra.bench.recorder import Recorder, table
from infra.bench.trainers import quiet

PARTS = ("listener", "recognition", "update", "reference", "rollouts", "step", "linear", "pocket", "peer")
BIG = {"games": 4, "candidates": 4, "descriptions": 8, "prompts": 8, "group": 8, "new_tokens": 128, "completion": 150}
BIG |= {"photos": 24, "concepts": 329}
TINY = {"games": 2, "candidates": 2, "descriptions": 3, "prompts": 2, "group": 3, "new_tokens": 9, "completion": 8}
TINY |= {"photos": 3, "concepts": 7}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; sizes that are not given depend on ``--size``."""
    parser = argparse.ArgumentParser(prog="python -m infra.bench", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=(*PARTS, "all"), help="what is measured; all: everything but peer")
    parser.add_argument("--size", choices=tuple(world.SIZES), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--visual-tokens", type=int, nargs="+", help="squares; 256 and 1024 unless tiny")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for JSON and plot")
    parser.add_argument("--budget-s", type=float, default=3600.0, help="nothing new is begun after this many seconds")
    parser.add_argument("--compile", action="store_true", help="ours with compiled norms and MLPs")
    parser.add_argument("--rank", type=int, help="of LoRA; 64 unless tiny")
    parser.add_argument("--steps", type=int, default=6, help="pocket: updates of each arm")
    parser.add_argument("--arms", choices=("all", "ours"), default="all", help="ours: without anything to compare with")
    parser.add_argument("--profile", action="store_true", help="on a GPU: also the kernels of our arms")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of our arms")
    parser.add_argument("--stock-repeats", type=int, default=3, help="timed calls of the others")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 4], help="update: groups of our passes")
    parser.add_argument("--checkpointing", choices=("off", "on"), nargs="+", default=["off", "on"], help="update")
    parser.add_argument(
        "--step-pairs", type=int, help="step: pairs that the reference's style is timed on; the rest is extrapolated"
    )
    parser.add_argument("--step-tokens", type=int, nargs="+", help="step: of the visual tokens; all unless given")
    parser.add_argument("--stock-steps", type=int, default=1, help="whole steps of stock TRL")
    parser.add_argument("--reference-pairs", type=int, default=4, help="pairs that the reference's style is timed on")
    parser.add_argument("--most-descriptions", type=int, help="linear: largest G")
    parser.add_argument("--most-candidates", type=int, help="linear: largest K")
    for name, value in BIG.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{value} unless tiny")
    found = parser.parse_args(arguments)
    is_tiny = found.size == "tiny"
    defaults = {**(TINY if is_tiny else BIG), "visual_tokens": [4, 9] if is_tiny else [256, 1024]}
    defaults |= {"rank": 4 if is_tiny else 64, "most_descriptions": 4 if is_tiny else 32}
    defaults |= {"most_candidates": 4 if is_tiny else 16}
    for name, value in defaults.items():
        if getattr(found, name) is None:
            setattr(found, name, value)
    found.step_tokens = found.step_tokens or found.visual_tokens
    if bad := [tokens for tokens in found.visual_tokens if round(tokens**0.5) ** 2 != tokens]:
        parser.error(f"--visual-tokens must be squares, found {bad}")
    if "all" in found.parts:
        found.parts = [part for part in PARTS if part != "peer"]
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure; returns 0 if every part ran."""
    options = parse_arguments(arguments)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    name = f"{'-'.join(options.parts) if len(options.parts) < 3 else 'all'}-{options.size}-{options.device}"
    recorder = Recorder(options.out / f"{name}.json", options.device, settings, options.budget_s)
    with tempfile.TemporaryDirectory() as temporary, quiet():
        _run(recorder, Path(temporary), options)
    print(table(recorder.rows))
    if recorder.left_out:
        print("left out for want of time: " + "; ".join(recorder.left_out))
    if any(row["part"] == "linear" and row["seconds"] for row in recorder.rows):
        linear.plot(recorder.rows, options.out / f"{name}.png")
    return 1 if recorder.failures else 0


def _run(recorder: Recorder, folder: Path, options: argparse.Namespace) -> None:
    (folder / "photos").mkdir()
    if {"listener", "recognition", "linear"} & set(options.parts):
        processor = world.build_processor(options.visual_tokens[0])
        model = world.build_model(options.size, processor, options.device)
        if options.compile:
            from lewis_core.models.compiling import compile_layers

            compile_layers(model)
        if "listener" in options.parts:
            with recorder.section("listener"):
                listener.run(recorder, model, folder / "photos", options)
        if "recognition" in options.parts:
            with recorder.section("recognition"):
                recognition.run(recorder, model, folder / "photos", options)
        if "linear" in options.parts:
            with recorder.section("linear"):
                linear.run(recorder, model, folder / "photos", options)
        del model
    parts = tuple(part for part in training.OPTIONAL_PARTS if part in options.parts)
    if parts:
        training.run(recorder, folder / "photos", options, parts)
    if "pocket" in options.parts and recorder.has_time("pocket"):
        with recorder.section("pocket"):
            (folder / "pocket").mkdir()
            pocket.run(recorder, folder / "pocket", options.steps, options.size == "tiny" and options.steps < 4)
    if "peer" in options.parts and recorder.has_time("peer"):
        with recorder.section("peer"):
            peer.run(recorder, folder / "photos", options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
