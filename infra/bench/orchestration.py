"""What orchestration costs: ``python -m infra.bench.orchestration [--work-dir runs/pocket] [--tasks 500]``.

Two numbers, in this process and against a Prefect server that was started before the clock: a full pipeline in which
everything is there already (made first, unless the work folder has it), and many mapped stages (categories × seeds)
that compute next to nothing, cold and again.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import flows  # noqa: F401 - sets the environment before prefect is imported
from flows.settings import load_settings
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.records import JsonObject
from lewis_core.stages import Stage

SMOKE = Path("deployments/settings/pocket_smoke.toml")
STEP = Stage("count-up", "infra.bench.orchestration:count_up")


def count_up(number: str, output_dir: Path) -> JsonObject:
    """The smallest stage."""
    (output_dir / "number.txt").write_text(number, encoding="utf-8")
    return {"number": number}


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call; what it prints is dropped."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(None):
        call()
    return time.perf_counter() - started


def mapped(config: PipelineConfig, tasks: int) -> None:
    """A flow of many mapped stages, of categories × seeds."""
    from prefect import flow

    from tasks.run import pipeline_run

    @flow(name="mapped")
    def many() -> int:
        with pipeline_run(config, "mapped") as run:
            return len(run.map(STEP, over="number", values=[f"category-{n % 50} seed-{n // 50}" for n in range(tasks)]))

    assert many() == tasks


def main(arguments: Sequence[str]) -> int:
    """Measure, print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m infra.bench.orchestration", description=__doc__)
    parser.add_argument("--settings", type=Path, default=SMOKE)
    parser.add_argument("--work-dir", type=Path, help="of a finished run; else the pipeline is run first")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(arguments)
    from flows.full_pipeline import full_pipeline
    from tasks.prefect_server import ensure_prefect_server

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ensure_prefect_server(folder / "server.log")
        config = load_settings(options.settings, [f"run.work_dir={options.work_dir or folder / 'work'}"])
        first = timed(lambda: full_pipeline(config))
        cached = [timed(lambda: full_pipeline(config)) for _ in range(options.repeat)]
        other = load_settings(options.settings, [f"run.work_dir={folder / 'mapped'}"])
        cold = timed(lambda: mapped(other, options.tasks))
        warm = timed(lambda: mapped(other, options.tasks))
    result = {
        "first_run_s": round(first, 1),
        "fully_cached_s": round(statistics.median(cached), 1),
        "fully_cached_all_s": [round(one, 1) for one in cached],
        "mapped_tasks": options.tasks,
        "mapped_s": round(cold, 1),
        "mapped_cached_s": round(warm, 1),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
