"""The benchmarks run, at tiny size, and their arms agree: what is timed is the same work."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.bench import distributed
from infra.bench.__main__ import main
from infra.bench.recorder import Recorder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing(_enable|_disable)?. is deprecated:FutureWarning"),
]

ONCE = ["--repeats", "1", "--stock-repeats", "1"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All parts but the pocket recipe, at one number of visual tokens."""
    folder = tmp_path_factory.mktemp("bench")
    arguments = ["listener", "recognition", "update", "reference", "rollouts", "step", "linear", "--visual-tokens", "4"]
    assert main([*arguments, "--device", "cpu", "--out", str(folder), "--reference-pairs", "2", *ONCE]) == 0
    assert (folder / "all-tiny-cpu.png").stat().st_size > 1000
    found: dict[str, Any] = json.loads((folder / "all-tiny-cpu.json").read_text())
    return found


def test_every_arm_of_every_part_has_a_time(measured: dict[str, Any]) -> None:
    arms: dict[str, set[str]] = {}
    for row in measured["rows"]:
        assert row["seconds"] > 0
        arms.setdefault(row["part"], set()).add(row["arm"])
    assert arms["listener"] == {
        "ours, over HTTP",
        "ours, in process",
        "ours, photos never seen before",
        "ours, over HTTP, keys and values of photos kept",
        "ours, in process, keys and values of photos kept",
        "ours, in process, keys and values of photos computed to be kept",
        "batched forward",
        "reference style",
        "reference style, without gc",
        "floor",
        "floor, photos seen before",
    }
    assert arms["recognition"] == {
        "all pairs, over HTTP",
        "all pairs, in process",
        "questions and records alone, no model",
        "reference style (a generation a pair)",
        "floor",
        "floor, photos seen before",
    }
    assert arms["reference"] == {"ours", "stock TRL", "floor"}
    assert arms["rollouts"] == {"ours", "ours, without an adapter", "stock TRL", "floor"}
    assert arms["step"] == {"ours", "stock TRL, reference-style listener without gc", "floor (sum of parts)"}
    assert {arm.partition(",")[0] for arm in arms["update"]} == {"ours", "stock TRL", "floor"}
    assert measured["left_out"] == []
    assert measured["versions"]["torch"]


def test_all_listeners_say_the_same(measured: dict[str, Any]) -> None:
    [note] = [note for note in measured["notes"] if note["what"].startswith("listener: P(yes)")]
    apart = {arm: value for arm, value in note.items() if arm not in ("what", "visual_tokens")}
    assert len(apart) == 8
    assert max(apart.values()) < 1e-5


def test_both_trainers_have_the_same_gradient(measured: dict[str, Any]) -> None:
    norms = [note["norm"] for note in measured["notes"] if note["what"].startswith("gradient norm")]
    assert len(norms) == 4  # both arms, with checkpointing and without
    assert max(norms) - min(norms) < 1e-4 * max(norms)
    assert min(norms) > 0


def test_unique_tokens_grow_slower_than_separate_ones(measured: dict[str, Any]) -> None:
    rows = [row for row in measured["rows"] if row["part"] == "linear"]
    assert len(rows) >= 4
    assert all(row["unique_tokens"] < row["separate_tokens"] for row in rows)


def test_the_pocket_recipe_is_timed_by_turns(tmp_path: Path) -> None:
    assert main(["pocket", "--device", "cpu", "--out", str(tmp_path), "--steps", "2"]) == 0
    rows = json.loads((tmp_path / "pocket-tiny-cpu.json").read_text())["rows"]
    assert {row["arm"] for row in rows} == {"ours", "stock TRL"}
    assert all(len(row["rewards"]) == len(row["times"]) == 2 for row in rows)


class PeerEngine:
    """Answers in the shapes of vLLM 0.26."""

    def __init__(self, checkpoint: str, **settings: Any) -> None:
        assert json.loads((Path(checkpoint) / "config.json").read_text())["architectures"]
        cache = SimpleNamespace(num_gpu_blocks=2, block_size=16)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache))

    def reset_prefix_cache(self) -> bool:
        """It always can."""
        return True

    def generate(self, prompts: list[dict[str, Any]], sampling: dict[str, Any], use_tqdm: bool) -> list[Any]:
        """Every log-probability is -1; of a prompt 3 tokens are computed where vLLM may read its cache."""
        value: Any = defaultdict(lambda: SimpleNamespace(logprob=-1.0))
        row = SimpleNamespace(token_ids=[7] * sampling["max_tokens"], logprobs=[value])
        found = []
        for prompt in prompts:
            ids = list(prompt["prompt"].encode())
            cached = len(ids) - 3 if sampling.get("skip_reading_prefix_cache") is False else 0
            rows = [row] * sampling.get("n", 1)
            known = [value] * len(ids)
            found.append(
                SimpleNamespace(prompt_token_ids=ids, num_cached_tokens=cached, outputs=rows, prompt_logprobs=known)
            )
        return found


def test_the_peer_is_asked_for_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = SimpleNamespace(LLM=PeerEngine, SamplingParams=dict, __version__="0")
    monkeypatch.setitem(sys.modules, "vllm", peer)
    assert main(["peer", "--device", "cpu", "--visual-tokens", "4", "--out", str(tmp_path), *ONCE]) == 0
    found = json.loads((tmp_path / "peer-tiny-cpu.json").read_text())
    assert [row["part"] for row in found["rows"]] == ["rollouts"] * 2 + ["reference"] * 2 + ["listener"] * 2
    missing = {note["what"]: note["missing"] for note in found["notes"] if "missing" in note}
    shared = "reference: vLLM, prompt_logprobs, prompts shared: completion tokens"
    # 6 completions of 8 tokens; of each prompt 3 tokens are computed, which tell of the last 2
    assert missing == {"reference: vLLM, prompt_logprobs: completion tokens": 0, shared: 6 * (8 - 2)}


def test_without_the_peer_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert main(["peer", "--device", "cpu", "--out", str(tmp_path)]) == 0
    [row] = json.loads((tmp_path / "peer-tiny-cpu.json").read_text())["rows"]
    assert row["error"].startswith("not installed")


def test_what_there_is_no_time_for_is_listed(tmp_path: Path) -> None:
    assert main(["listener", "step", "--device", "cpu", "--out", str(tmp_path), "--budget-s", "0"]) == 0
    found = json.loads((tmp_path / "listener-step-tiny-cpu.json").read_text())
    assert "step: stock TRL, visual_tokens 9" in found["left_out"]
    assert [row for row in found["rows"] if not row["arm"].startswith("floor")] == []


def test_an_arm_without_memory_and_a_part_that_breaks_cost_only_themselves(tmp_path: Path) -> None:
    import torch

    recorder = Recorder(tmp_path / "rows.json", "cpu", {}, 100.0)

    def crowded() -> None:
        raise torch.OutOfMemoryError("no memory\nmore")

    assert recorder.measure("part", "crowded", crowded) is None
    with recorder.section("broken"):
        raise ValueError("a mistake")
    assert recorder.measure("part", "fine", lambda: None, units=2, unit="things") is not None
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["crowded", "failed", "fine"]
    assert rows[0]["error"] == "out of memory: no memory"
    assert rows[2]["things_per_s"] > 0
    assert [row["error"] for row in recorder.failures] == ["ValueError: a mistake"]


def test_tokens_must_be_a_square(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["listener", "--visual-tokens", "5"])
    assert "must be squares, found [5]" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["zero3+", "ddp:", "ddp:0", "one", "ddp+kill+listener"])
def test_parts_on_several_gpus_are_named_one_by_one(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        distributed.main(["ddp:1", "zero2+listener+kill", part])
    assert f"there is no part {part};" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "gpus", "needed"), [("ddp:3", 2, 3), ("zero2:2+listener", 2, 3), ("ddp+listener", 1, 2)]
)
def test_parts_need_no_more_gpus_than_there_are(part: str, gpus: int, needed: int) -> None:
    with pytest.raises(ValueError, match=f"needs {needed} GPUs, and --gpus says {gpus}"):
        distributed.Part.parse(part, gpus)


def test_a_listener_takes_the_gpu_after_those_of_the_training() -> None:
    part = distributed.Part.parse("zero2+listener+kill", 4)
    assert (part.strategy, part.gpus, part.asks_listener, part.is_killed) == ("zero2", 3, True, True)
    assert part.folder == "zero2-listener-kill"
