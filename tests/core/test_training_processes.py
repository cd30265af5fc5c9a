"""Two processes train what one would, and stop together when one of them loses the listener."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lewis_core.testing import write_photo_tree, write_tiny_checkpoint
from lewis_core.training.journal import read_rows

pytestmark = pytest.mark.slow
WORKER = '''
"""Train two steps. With ``lose``, process 1 loses the listener in the second, and both then train on."""

import os
import sys
from pathlib import Path

from datasets import Dataset

from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.training import LoraSettings, TrainSpeakerConfig
from lewis_core.errors import ListenerUnavailableError
from lewis_core.records import Description
from lewis_core.reporting import NullReporter
from lewis_core.rewards import trl
from lewis_core.testing import FakeModel
from lewis_core.training.checkpoints import newest_checkpoint
from lewis_core.training.processes import end_process, leave_process_group
from lewis_core.training.speaker import train_on_rows
from lewis_core.training.trainer import SpeakerTrainer

root, name, lose = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "lose"
rank = int(os.environ.get("RANK", "0"))
work, output = root / name / "work", root / name / f"output-{rank}"
trl.parse_or_none = lambda text: Description(thinking="-", coarse="-", detailed=f"-{text}")  # all text is read


def says_yes(image: str, text: str) -> float:
    return 0.9 if (ord(text[-1]) % 2 == 0) == image.endswith("00/0.jpg") else 0.2


class Listener(FakeModel):
    steps, is_lost = 0, False

    def score(self, games):
        if lose and rank == 1 and Listener.steps == 2 and not Listener.is_lost:
            raise ListenerUnavailableError("nobody answers")
        return super().score(games)


def count_steps(self, rows, generate=SpeakerTrainer._generate_and_score_completions):
    Listener.steps += 1
    return generate(self, rows)


SpeakerTrainer._generate_and_score_completions = count_steps


rows = Dataset.from_list([
    {"prompt": [{"role": "user", "content": f"Describe the {c}."}], "query": f"train/{c}/{c[0]}0{i}/{p}.jpg",
     "candidates": [f"test/{c}/{c[0]}0{j}/0.jpg" for j in range(2)], "target_index": 0, "category_word": c}
    for c in ("bag", "mug") for i in range(2) for p in range(2)
])
model = ModelRef(path=str(root / "model"))
config = TrainSpeakerConfig(
    model=model, listener=model, lora=LoraSettings(r=4, alpha=8), max_steps=2, prompts_per_step=4, num_generations=4,
    max_new_tokens=8, learning_rate=1e-2, warmup_steps=0, save_steps=100, gradient_checkpointing=False,
)
output.mkdir(parents=True)
work.mkdir(exist_ok=True)
arguments = (output, work, config, root / "data", Runtime(device="cpu", torch_threads=1), NullReporter())
if lose:
    try:
        train_on_rows(rows, Listener(says_yes), *arguments)
        sys.exit("the listener was not lost")
    except ListenerUnavailableError:
        Listener.is_lost = True
        assert newest_checkpoint(work / "checkpoints").name == "checkpoint-1"
train_on_rows(rows, Listener(says_yes), *arguments)
leave_process_group()
end_process(0)
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, photos and the program that trains."""
    folder = tmp_path_factory.mktemp("processes")
    write_tiny_checkpoint(folder / "model")
    write_photo_tree(folder / "data", concepts=2)
    (folder / "worker.py").write_text(WORKER)
    return folder


def test_two_processes_that_lose_the_listener_once_train_what_one_does(world: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": str(root),
    }
    for name, start, lose in (("one", [], "-"), ("two", ["-m", "torch.distributed.run", "--nproc_per_node=2"], "lose")):
        command = [sys.executable, *start, str(world / "worker.py"), str(world), name, lose]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    files = [world / name / "output-0" for name in ("one", "two")]
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in files)
    assert any(tensor.abs().max() > 1e-3 for name, tensor in one.items() if "lora_B" in name)
    assert all(tensor.allclose(two[name], atol=1e-4) for name, tensor in one.items())
    texts = [[row["completion"] for row in read_rows(folder / "completions.jsonl")] for folder in files]
    assert len(texts[0]) == 32
    assert texts[0] == texts[1]
    assert list((world / "two" / "output-1").iterdir()) == []  # the main process alone writes results
