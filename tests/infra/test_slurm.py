"""The SLURM example, on a cluster that is played by scripts: who is started where, and how it ends."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "infra" / "slurm" / "train.sbatch"
PROGRAMS = {
    "scontrol": "printf 'gpu-1\\ngpu-2\\ngpu-3\\n'",
    "srun": 'while [[ "$1" == --nodelist=* || "$1" == --n* ]]; do node="$1"; shift; done\nNODE="${node#*=}" exec "$@"',
    "python": """
        name="$2"
        echo "$NODE rank=${MACHINE_RANK:-none} main=$MAIN_ADDRESS:$MAIN_PORT $*" > "$PLACE/$name.started"
        trap 'echo told > "$PLACE/$name.told"; until [ -e "$PLACE/saved" ]; do sleep 0.05; done; exit 143' TERM
        while true; do sleep 0.05; done
        """,
}


@pytest.fixture
def job(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The script, once it has started everything."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH"\n')
    environment = {**os.environ, "SLURM_JOB_NODELIST": "gpu-[1-3]", "SLURM_CPUS_PER_TASK": "64", "PLACE": str(tmp_path)}
    started = subprocess.Popen(
        ["bash", str(SCRIPT), "settings.toml", "runs"], cwd=tmp_path, env=environment, start_new_session=True
    )
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 3)
        yield started
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def wait_for(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def test_both_machines_are_told_before_the_time_is_over_and_the_job_lasts_until_they_have_saved(
    job: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    wait_for(lambda: all(file.read_text() for file in tmp_path.glob("*.started")))
    flow, joined, served = ((tmp_path / f"{n}.started").read_text() for n in ("flows", "tasks.join", "tasks.serve"))
    assert flow.startswith("gpu-1 rank=0 main=gpu-1:29500 -m flows train-speaker settings.toml --set run.work_dir=runs")
    assert "training.num_processes=16 --set training.prompts_per_step=32" in flow
    assert 'listener = ["http://gpu-3:9000#runs.token"]' in flow
    assert joined.startswith("gpu-2 rank=1 main=gpu-1:29500 -m tasks.join runs")
    assert served.startswith("gpu-3 rank=none main=gpu-1:29500 -m tasks.serve --model")
    job.terminate()  # as "--signal=B:TERM@300" does
    wait_for(lambda: (tmp_path / "flows.told").is_file() and (tmp_path / "tasks.join.told").is_file())
    assert job.poll() is None  # the end of the script would be the end of the job
    (tmp_path / "saved").touch()
    assert job.wait(120) == 143
