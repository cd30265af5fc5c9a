"""Two processes train what one would, and stop together: when one loses the listener, fails, or is asked to stop."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lewis_core.errors import ListenerUnavailableError, StoppedError, TrainingError
from lewis_core.testing import write_photo_tree, write_tiny_checkpoint
from lewis_core.training import meeting
from lewis_core.training.journal import read_rows
from lewis_core.training.meeting import Meeting
from tasks.processes import run_process

pytestmark = pytest.mark.slow
WORKER = '''
"""Train two steps. Process 1 alone meets each of the given faults in its second step; both then train on."""

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from datasets import Dataset
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings, TrainSpeakerConfig
from lewis_core.errors import ListenerError, ListenerUnavailableError, TrainingError
from lewis_core.records import Description
from lewis_core.reporting import NullReporter
from lewis_core.rewards import trl
from lewis_core.testing import FakeModel
from lewis_core.training.checkpoints import newest_checkpoint
from lewis_core.training.processes import end_process, leave_process_group
from lewis_core.training.speaker import train_on_rows
from lewis_core.training.trainer import SpeakerTrainer

root, name, faults = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
rank = int(os.environ.get("RANK", "0"))
work, output = root / name / "work", root / name / f"output-{rank}"
trl.parse_or_none = lambda text: Description(thinking="-", coarse="-", detailed=f"-{text}")  # all text is read
RAISED = {"masked": TrainingError, "broken": ZeroDivisionError, "lost": ListenerUnavailableError, "stopped": SystemExit}
SAVES = ("lost", "stopped")


def says_yes(image: str, text: str) -> float:
    return 0.9 if (ord(text[-1]) % 2 == 0) == image.endswith("00/0.jpg") else 0.2


class Listener(FakeModel):
    step, fault, exchanged = 0, "", {}

    def score(self, games):
        if Listener.step == 2 and Listener.fault == "stopped":
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(600)  # neither gets an answer
            raise ListenerUnavailableError("nobody was stopped")
        if Listener.step == 2 and rank == 1:
            if Listener.fault == "masked":
                raise ListenerError("it cannot judge that", 422)
            if Listener.fault == "broken":
                raise ZeroDivisionError("one over nothing")
            if Listener.fault == "lost":
                raise ListenerUnavailableError("nobody answers")
        return super().score(games)


def count_steps(self, rows, generate=SpeakerTrainer._generate_and_score_completions):
    Listener.step = self.state.global_step + 1
    return generate(self, rows)


def count_exchanges(self, model, inputs, number=None, update=SpeakerTrainer.training_step):
    """Note which bytes of gradients are exchanged in which pass."""
    if isinstance(model, DistributedDataParallel) and self not in Listener.exchanged:
        Listener.exchanged[self] = passes = []
        wanted = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
        passes.append([wanted, model.gradient_as_bucket_view, model.will_sync_module_buffers()])

        def note(state, bucket):
            passes[-1].append(4 * bucket.buffer().numel())
            return allreduce_hook(state, bucket)

        model.register_comm_hook(None, note)
    if self in Listener.exchanged:
        Listener.exchanged[self].append([])
    return update(self, model, inputs, number)


SpeakerTrainer._generate_and_score_completions = count_steps
SpeakerTrainer.training_step = count_exchanges

rows = Dataset.from_list([
    {"prompt": [{"role": "user", "content": f"Describe the {c}."}], "query": f"train/{c}/{c[0]}0{i}/{p}.jpg",
     "candidates": [f"test/{c}/{c[0]}0{j}/0.jpg" for j in range(2)], "target_index": 0, "category_word": c}
    for c in ("bag", "mug") for i in range(2) for p in range(2)
])
model = ModelRef(path=str(root / "model"))
config = TrainSpeakerConfig(
    model=model, listener=model, lora=LoraSettings(r=4, alpha=8), max_steps=2, prompts_per_step=4, num_generations=4,
    micro_batch_prompts=1, max_new_tokens=8, learning_rate=1e-2, warmup_steps=0, save_steps=100,
    gradient_checkpointing=False,
)
output.mkdir(parents=True, exist_ok=True)
work.mkdir(exist_ok=True)
arguments = (output, work, config, root / "data", Runtime(device="cpu", torch_threads=1), NullReporter())


def main():
    for Listener.fault in faults:
        try:
            train_on_rows(rows, Listener(says_yes), *arguments)
            raise AssertionError(f"{Listener.fault}: nothing was raised")
        except RAISED[Listener.fault] as error:
            with (root / name / f"errors-{rank}").open("a") as file:
                file.write(f"{type(error).__name__}: {error}\\n")
        saved = newest_checkpoint(work / "checkpoints")
        assert (saved.name if saved else None) == ("checkpoint-1" if Listener.fault in SAVES else None), saved
    if "stopped" not in faults:
        Listener.fault = ""
        train_on_rows(rows, Listener(says_yes), *arguments)
    (root / name / f"exchanged-{rank}.json").write_text(json.dumps([*Listener.exchanged.values()]))
    leave_process_group()


try:
    main()
except BaseException:  # the usual end would wait for a listener that does not answer
    traceback.print_exc()
    end_process(1)
end_process(0)
'''


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A model, photos and the program that trains."""
    write_tiny_checkpoint(tmp_path / "model")
    write_photo_tree(tmp_path / "data", concepts=2)
    (tmp_path / "worker.py").write_text(WORKER)
    return tmp_path


def run(world: Path, processes: int, name: str, *faults: str) -> None:
    """Run the program to its end; one that hangs until the collectives' own timeout (30 minutes) fails."""
    environment = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    start = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *start, str(world / "worker.py"), str(world), name, *faults]
    run_process(name, command, world / f"{name}.log", timeout_s=400, env=environment)  # and nothing outlives it


def errors(world: Path, name: str) -> list[list[str]]:
    """What each of two processes has raised."""
    return [(world / name / f"errors-{rank}").read_text().splitlines() for rank in range(2)]


@pytest.mark.timeout(900)
def test_two_processes_of_which_one_fails_stop_together_and_then_train_what_one_does(world: Path) -> None:
    run(world, 1, "one")
    run(world, 2, "two", "masked", "broken", "lost")
    first, second = errors(world, "two")
    assert first == second
    assert [line.partition(":")[0] for line in first] == [
        "TrainingError",
        "ZeroDivisionError",
        "ListenerUnavailableError",
    ]
    assert first[0].startswith("TrainingError: the listener could not judge 8 of 8 completions")
    files = [world / name / "output-0" for name in ("one", "two")]
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in files)
    assert any(tensor.abs().max() > 1e-3 for name, tensor in one.items() if "lora_B" in name)
    assert all(tensor.allclose(two[name], atol=1e-4) for name, tensor in one.items())
    texts = [[row["completion"] for row in read_rows(folder / "completions.jsonl")] for folder in files]
    assert len(texts[0]) == 32
    assert texts[0] == texts[1]
    assert list((world / "two" / "output-1").iterdir()) == []  # the main process alone writes results

    exchanged = json.loads((world / "two" / "exchanged-1.json").read_text())[-1]  # after the faults
    [wanted, is_view, sends_buffers], *passes = exchanged
    assert is_view
    assert not sends_buffers  # before torch 2.14 that counts as writing to them, and all weights are digested again
    assert [sum(sizes) for sizes in passes] == [0, wanted]  # a step is two passes: once, after the last of them

    run(world, 2, "stop", "stopped")  # process 1 gets the signal; process 0 waits for its listener, and is told
    assert errors(world, "stop") == [["SystemExit: 143"], ["SystemExit: 143"]]
    run(world, 2, "stop")
    for file in ("metrics.jsonl", "completions.jsonl", "adapter/adapter_model.safetensors"):
        assert (world / "stop" / "output-0" / file).read_bytes() == (files[1] / file).read_bytes()


WATCHED = """
import os, sys, time
from accelerate import PartialState
from lewis_core.errors import ListenerUnavailableError
from lewis_core.training import peers
from lewis_core.training.processes import end_process

peers.LOOK_EVERY_S, peers.GRACE_S = 0.1, 0.5
PartialState(cpu=True)
rank, how = int(os.environ["RANK"]), sys.argv[1]
with peers.end_without_peers():  # all leave it
    pass
try:
    with peers.end_without_peers():
        if rank == 1 and how == "killed":
            os.kill(os.getpid(), 9)
        if rank == 1 and how == "outage":
            raise ListenerUnavailableError("nobody answers")
        if rank == 0:
            time.sleep(60 if how == "killed" else 2)  # as in a collective, or as one that saves
except ListenerUnavailableError:
    pass
print("left", flush=True)
end_process(0)
"""


@pytest.mark.parametrize(
    ("how", "statuses", "said"),
    [
        pytest.param("killed", [1, -9], "process 1 of this training is gone (killed, or out of memory?)", id="killed"),
        pytest.param("outage", [0, 0], "left", id="left-with-an-outage"),
    ],
)
def test_a_process_does_not_wait_for_one_that_is_gone(how: str, statuses: list[int], said: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WATCHED, how],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    texts = [process.communicate(timeout=50)[0] for process in running]
    assert [process.returncode for process in running] == statuses, texts
    assert said in texts[0]


def others(*found: Exception | None) -> Callable[[list[Exception | None]], list[Exception | None]]:
    """What a meeting hears when the other processes come with these."""
    return lambda mine: [*mine, *found]


def test_the_gravest_of_several_errors_is_raised_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    lost, wrong = ListenerUnavailableError("nobody answers"), TrainingError("too many are masked")
    own = Meeting(may_stop=lambda: True)
    monkeypatch.setattr(meeting, "gather_object", others(lost, wrong))
    with pytest.raises(TrainingError, match="too many are masked"):
        own.meet()
    own.stop.ask()
    monkeypatch.setattr(meeting, "gather_object", others(None, lost))
    with pytest.raises(ListenerUnavailableError, match="nobody answers"):
        own.meet()
    monkeypatch.setattr(meeting, "gather_object", others(None))
    with pytest.raises(StoppedError):
        own.meet()
    Meeting(may_stop=lambda: False).meet()


def test_a_signal_that_comes_while_others_are_asked_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    flag, told = meeting.StopFlag(), {}

    class Store:
        """Of another process, which nobody has asked; the signal comes while it answers."""

        def check(self, keys: list[str]) -> bool:
            flag.ask()
            return keys[0] in told

        def set(self, key: str, value: bytes) -> None:
            told[key] = value

    monkeypatch.setattr(meeting, "shared_store", Store)
    assert flag.is_set()
    assert flag.is_set()
    assert list(told.values()) == [b"1"]  # the others learn of it


def test_what_waits_has_a_thread_of_its_own_and_what_computes_has_not() -> None:
    """Torch would set up another pool of workers for a thread that computes."""
    own = Meeting(may_stop=lambda: True)
    here = threading.current_thread()
    assert own.unless_stopped(threading.current_thread) is not here
    assert own.unless_stopped(threading.current_thread, waits=False) is here
    own.stop.ask()
    for waits in (True, False):
        with pytest.raises(StoppedError):
            own.unless_stopped(lambda: time.sleep(0.5), waits=waits)


def test_an_error_that_cannot_travel_arrives_as_one_that_can() -> None:
    class OddError(Exception):
        """Of a class that other processes do not find."""

    with pytest.raises(OddError):
        Meeting().meet(OddError("odd"))
    assert str(meeting._portable(OddError("odd"))) == "OddError: odd"
