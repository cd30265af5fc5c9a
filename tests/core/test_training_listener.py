"""Listener training on a tiny model, with two photos a prompt and with one; and what is refused before it starts."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.base import ModelRef, Runtime
from lewis_core.config.data import DatasetConfig
from lewis_core.config.grpo import LoraSettings
from lewis_core.config.listener_training import TrainListenerConfig
from lewis_core.config.training import TrainSpeakerConfig
from lewis_core.data.matches import build_matches, match_rows
from lewis_core.data.rows import LISTENER_COLUMNS
from lewis_core.errors import ConfigError, DataError, ModelError
from lewis_core.prompts import prompt_set
from lewis_core.prompts.pairs import pair_prompt
from lewis_core.records import Database, DatabaseEntry, Description, Game, ImageRecord, save_jsonl, save_record
from lewis_core.reporting import NullReporter
from lewis_core.testing import write_photo_tree, write_tiny_checkpoint
from lewis_core.training import held_out_questions, preflight
from lewis_core.training.held_out import describe
from lewis_core.training.held_out_questions import compare_answers
from lewis_core.training.journal import read_rows
from lewis_core.training.listener import check_answers, train_listener
from lewis_core.training.preflight import check_training
from lewis_core.training.session import build_trainer_of

# TRL 1.16 reads an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
RUNTIME = Runtime(device="cpu", torch_threads=1)
PAIR = [("text", "Photo 1:"), ("image", None), ("text", "Photo 2:"), ("image", None), ("text", "The same? <thinking>")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and photos."""
    folder = tmp_path_factory.mktemp("listener")
    write_tiny_checkpoint(folder / "model")
    write_photo_tree(folder / "data", concepts=2)
    return folder


def settings(world: Path, **changes: Any) -> TrainListenerConfig:
    return TrainListenerConfig.model_validate(
        {
            "model": ModelRef(path=str(world / "model"), prompts="concise"),
            "lora": LoraSettings(r=4, alpha=8),
            "max_steps": 2,
            "prompts_per_step": 2,
            "num_generations": 4,
            "max_new_tokens": 8,
            "warmup_steps": 0,
            "save_steps": 100,
            "gradient_checkpointing": False,
            **changes,
        }
    )


def pair_rows() -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": [{"type": kind, "text": text} for kind, text in PAIR]}],
                "photos": [f"train/mug/m0{number}/0.jpg", "train/mug/m00/1.jpg"],
                "answer": "no" if number else "yes",
                "category_word": "mug",
                "concept": f"mug/m0{number}",
            }
            for number in (0, 1)
        ]
    )


@pytest.fixture
def dataset(tmp_path: Path) -> ArtifactRef:
    """Pairs on the disk."""
    with ArtifactStore(tmp_path / "store").building("build-dataset", "key") as folder:
        pair_rows().save_to_disk(folder / "dataset")
        return ArtifactStore(tmp_path / "store").publish(folder, "build-dataset", "key", {}, "source", {}, {})


def test_a_listener_is_trained_on_pairs(world: Path, tmp_path: Path, dataset: ArtifactRef) -> None:
    output, work = tmp_path / "output", tmp_path / "work"
    output.mkdir()
    work.mkdir()
    summary = train_listener(dataset, output, work, settings(world), world / "data", RUNTIME, NullReporter())
    assert (summary["steps"], summary["photos"], summary["questions"]) == (2, 2, "pairs")
    assert (output / "adapter" / "adapter_model.safetensors").is_file()
    rows = read_rows(output / "metrics.jsonl")
    assert {"answers/accuracy", "answers/unreadable", "rewards/consistency", "rewards/format"} <= set(rows[0])


def teach(world: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Train the pocket base on two questions, to which it says no; the right answers are yes and no."""
    rows = Dataset.from_list([question("mug", "yes"), question("bag", "no")] * 2)
    with ArtifactStore(tmp_path / "store").building("build-dataset", "key") as folder:
        rows.save_to_disk(folder / "dataset")
        dataset = ArtifactStore(tmp_path / "store").publish(folder, "build-dataset", "key", {}, "source", {}, {})
    output, work = tmp_path / "output", tmp_path / "work"
    output.mkdir()
    work.mkdir()
    recipe: dict[str, Any] = {
        "model": ModelRef(path="pocket:base", prompts="concise", dtype="float32", min_pixels=12544, max_pixels=12544),
        "lora": LoraSettings(r=8, alpha=16),
        "max_steps": 15,
        "prompts_per_step": 4,
        "num_generations": 32,
        "learning_rate": 3e-3,
        "temperature": 2.0,
        "beta": 0.0,
        "held_out_steps": 5,
    }
    config = settings(world, **recipe | changes)
    return train_listener(
        *(dataset, output, work, config, world / "data", RUNTIME, NullReporter()), held_out_dataset=dataset
    )


def test_rewards_teach_the_right_answers(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only the right reward with the right sign turns one answer, and leaves the other."""
    found = teach(world, tmp_path)
    assert "answer-collapse" not in caplog.text
    assert (found["held_out_accuracy_before"], found["held_out_yes_before"]) == (0.5, 0.0)
    assert (found["held_out_accuracy_after"], found["held_out_yes_after"]) == (1.0, 0.5)
    assert found["last_accuracy"] > 0.85 > found["first_accuracy"]
    told = json.loads((tmp_path / "output/held_out.json").read_text(encoding="utf-8"))
    assert told["held_out_questions"] == 4
    rows = read_rows(tmp_path / "output/metrics.jsonl")
    assert [row["step"] for row in rows if "held_out_answers/accuracy" in row] == [1, 5, 10, 15]


def test_a_listener_that_always_says_the_same_is_told_of(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = teach(world, tmp_path, max_steps=1, learning_rate=1e-9)
    assert found["held_out_yes_after"] == 0.0
    assert "answer-collapse: the trained listener says no to nearly every question" in caplog.text


def test_questions_about_held_out_things_change_no_bit(world: Path, tmp_path: Path, dataset: ArtifactRef) -> None:
    weights, after = [], []
    for number, held_out in enumerate((None, dataset)):
        output, work = tmp_path / f"output{number}", tmp_path / f"work{number}"
        output.mkdir()
        work.mkdir()
        config = settings(world, held_out_steps=1)
        after.append(train_listener(dataset, output, work, config, world / "data", RUNTIME, NullReporter(), held_out))
        weights.append((output / "adapter/adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert "held_out_accuracy_after" in after[1]
    assert "held_out_accuracy_after" not in after[0]


def test_a_stop_while_questions_are_answered_loses_nothing(
    world: Path, tmp_path: Path, dataset: ArtifactRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def describe_unless_stopped(trainer: Any, rows: Any) -> list[str]:
        asked.append(trainer.state.global_step)
        if len(asked) in stopped_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return describe(trainer, rows)

    monkeypatch.setattr(held_out_questions, "describe", describe_unless_stopped)
    config = settings(world, held_out_steps=1, max_steps=1)
    results, runs = [], {"whole": (), "parts": (1, 3)}
    for name, stopped_at in runs.items():
        asked.clear()
        output, work = tmp_path / name / "output", tmp_path / name / "work"
        output.mkdir(parents=True)
        work.mkdir()
        arguments = (dataset, output, work, config, world / "data", RUNTIME, NullReporter(), dataset)
        for _ in stopped_at:
            with pytest.raises(SystemExit, match="143"):
                train_listener(*arguments)
        train_listener(*arguments)
        results.append([(output / file).read_bytes() for file in ("metrics.jsonl", "held_out.json")])
    assert asked == [0, 0, 1, 1], "before the first step, and after the last, each a second time"
    assert results[0] == results[1]


@pytest.mark.parametrize("rollouts", ["auto", "trl"])
def test_greedy_answers_do_not_depend_on_chance(world: Path, tmp_path: Path, rollouts: str) -> None:
    config = settings(world, rollouts=rollouts, temperature=5.0)
    trainer = build_trainer_of(pair_rows(), [_reward], [1.0], tmp_path, config, world / "data", RUNTIME)
    questions = [dict(row) for row in pair_rows()]

    def answer(seed: int) -> list[str]:
        torch.manual_seed(seed)
        trainer.state.global_step = seed
        return describe(trainer, questions)

    with trainer.greedy():
        first, second = answer(0), answer(1)
    assert first == second
    assert answer(0) != answer(1)


def test_answers_before_and_after_are_compared_by_concept() -> None:
    rows = [{"answer": "yes" if n % 2 else "no", "concept": f"mug/m{n // 2:02}"} for n in range(40)]
    always_no, right = ["no"] * 40, [row["answer"] for row in rows]
    found = compare_answers(rows, always_no, right)
    assert (found["held_out_accuracy_before"], found["held_out_accuracy_after"]) == (0.5, 1.0)
    assert (found["held_out_yes_before"], found["held_out_yes_after"]) == (0.0, 0.5)
    assert found["held_out_p_value"] < 0.01
    assert compare_answers(rows, always_no, ["yes"] * 40)["held_out_p_value"] == 1.0  # another answer, no better
    unread = compare_answers(rows, right, [None] * 40)
    assert (unread["held_out_accuracy_after"], unread["held_out_unreadable_after"]) == (0.0, 1.0)
    assert "held_out_p_value" not in compare_answers(rows[:2], always_no[:2], right[:2])  # one concept


def question(category: str, answer: str) -> dict[str, Any]:
    """A pair of photos of a category, and what shall be answered."""
    parts = [("image", None), ("image", None), ("text", pair_prompt("concise", category))]
    return {
        "prompt": [{"role": "user", "content": [{"type": kind, "text": text} for kind, text in parts]}],
        "photos": [f"train/{category}/{category[0]}00/{number}.jpg" for number in (0, 1)],
        "answer": answer,
        "category_word": category,
        "concept": f"{category}/{category[0]}00",
    }


def test_prompts_with_two_photos_are_tokenized_as_the_processor_does(world: Path, tmp_path: Path) -> None:
    trainer = build_trainer_of(pair_rows(), [_reward], [1.0], tmp_path, settings(world), world / "data", RUNTIME)
    rows = next(iter(trainer.get_train_dataloader()))
    inputs = trainer._prepare_inputs(rows)
    photos = [trainer._load(photo) for photo in rows[0]["photos"]]
    content: list[dict[str, Any]] = [{"type": kind, "text": text} for kind, text in PAIR]
    for part, photo in zip((content[1], content[3]), photos, strict=True):
        part["image"] = photo
    expected = trainer.processing_class.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    number = inputs["prompt_of_row"].tolist()[0]
    assert trainer._prompts[number].ids == expected["input_ids"][0]
    assert len(trainer._prompts[number].images) == 2


def test_two_photos_a_prompt_cost_the_same_log_probabilities_as_in_stock_trl(world: Path, tmp_path: Path) -> None:
    from lewis_core.training.trainer import SpeakerTrainer

    trainer = build_trainer_of(pair_rows(), [_reward], [1.0], tmp_path, settings(world), world / "data", RUNTIME)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer._prompt_of_row = inputs["prompt_of_row"].tolist()
    ids, mask = (torch.cat([inputs[f"prompt_{n}"], inputs[f"completion_{n}"]], 1) for n in ("ids", "mask"))
    keep = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        packed, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, keep)
        stock, _, _ = SpeakerTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, ids, mask, keep)
    written = inputs["completion_mask"].bool()
    torch.testing.assert_close(packed[written], stock[written], atol=2e-5, rtol=1e-4)


def test_equal_rewards_give_no_advantage_at_all(world: Path, tmp_path: Path) -> None:
    """0.2 is no number of float32: the mean of eight rewards of 1.2 is another number, and so TRL finds a direction."""
    rewards, config = [_constant, _constant], settings(world, num_generations=8)
    trainer = build_trainer_of(pair_rows(), rewards, [1.0, 0.2], tmp_path, config, world / "data", RUNTIME)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert inputs["advantages"].tolist() == [0.0] * 16
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [1.0]
    assert {row["advantage"] for row in trainer.samples()} == {0.0}


def _constant(completions: list[Any], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def _reward(completions: list[Any], **_: Any) -> list[float]:
    return [float(number % 2) for number in range(len(completions))]


def photo(name: str) -> ImageRecord:
    return ImageRecord(path=name, sha256=name, width=8, height=8)


def games() -> list[Game]:
    return [
        Game(
            id=f"{category}/{category[0]}{number}:0",
            concept=f"{category}/{category[0]}{number}",
            category=category,
            category_word=category,
            query=photo(f"{category}{number}-query.jpg"),
            candidates=(photo(f"{category}{number}-target.jpg"), photo(f"{category}{number}-other.jpg")),
            candidate_concepts=(f"{category}/{category[0]}{number}", f"{category}/{category[0]}x"),
            target_index=0,
        )
        for category in ("bag", "mug")
        for number in range(60)
    ]


def test_questions_about_descriptions_are_those_of_the_game() -> None:
    texts = {game.concept: f"A photo of a {game.category}." for game in games()[:100]}
    words = prompt_set("concise")
    rows = list(match_rows(games(), texts, words, DatasetConfig(role="listener", cross_category_frac=0.4)))
    assert len(rows) == 100
    assert set(rows[0]) == set(LISTENER_COLUMNS)
    first = rows[0]
    assert first["prompt"] == [{"role": "user", "content": words.match("bag", "A photo of a bag.")}]
    counts = Counter(row["kind"] for row in rows)
    assert {"same", "look-alike", "other category"} == set(counts)
    assert counts["same"] == pytest.approx(50, abs=15)
    assert counts["other category"] == pytest.approx(20, abs=12)
    for row in rows:
        assert (row["answer"] == "yes") == (row["other_concept"] == row["concept"])
        assert len(row["photos"]) == 1


def test_the_stage_counts_games_without_a_description(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    with store.building("build-games", "g") as folder:
        save_jsonl(folder / "games.jsonl", games()[:3])
        played = store.publish(folder, "build-games", "g", {}, "s", {}, {})
    said = Description(thinking="blue", coarse="A photo of a bag", detailed="The bag is blue.")
    entries = [
        DatabaseEntry(
            concept=game.concept,
            category=game.category,
            category_word=game.category_word,
            reference=game.query,
            completion="…",
            description=said if number else None,
            error=None if number else "no tags",
        )
        for number, game in enumerate(games()[:3])
    ]
    with store.building("describe-concepts", "d") as folder:
        save_record(folder / "database.json", Database(speaker="base", entries=tuple(entries)))
        database = store.publish(folder, "describe-concepts", "d", {}, "s", {}, {})
    output = tmp_path / "output"
    output.mkdir()
    found = build_matches(played, database, "concise", output, DatasetConfig(role="listener"))
    assert (found["rows"], found["without_description"]) == (2, 1)


def speaker_rows(**changes: Any) -> Dataset:
    row = {
        "prompt": [{"role": "user", "content": "Describe the mug."}],
        "query": "a.jpg",
        "candidates": ["a.jpg", "b.jpg"],
        "target_index": 1,
        "category_word": "mug",
    }
    return Dataset.from_list([row | changes] * 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param({"candidates": ["a.jpg"], "target_index": 0}, "2 of 2 rows .* fewer than 2 candidates", id="one"),
        pytest.param({"candidates": ["a.jpg"] * 65}, "have 65 candidates, a listener takes 64 at most", id="many"),
        pytest.param({"target_index": 2}, "name a target that is none of their candidates, e.g. row 0", id="target"),
    ],
)
def test_games_without_candidates_are_refused(world: Path, rows: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_training(settings(world), speaker_rows(**rows), RUNTIME)


def test_long_prompts_and_cut_photos_are_refused(world: Path) -> None:
    rows = speaker_rows()
    found = check_training(settings(world), rows, RUNTIME)
    assert found["different_prompts"] == 1
    longest = found["longest_prompt_tokens"]
    assert check_training(settings(world, max_prompt_tokens=longest), rows, RUNTIME) == found
    with pytest.raises(ConfigError, match=f"raise it to {longest}, or lower training.model.max_pixels"):
        check_training(settings(world, max_prompt_tokens=longest - 1), rows, RUNTIME)
    with pytest.raises(ConfigError, match=r"takes \d+ positions; lower training.model.max_pixels"):
        check_training(settings(world, max_new_tokens=100_000), rows, RUNTIME)


def test_a_foreign_adapter_is_refused(world: Path, tmp_path: Path) -> None:
    model = {"path": str(world / "model"), "adapter": tmp_path / "nothing"}
    with pytest.raises(ModelError, match="there is no folder"):
        check_training(settings(world, model=model), speaker_rows(), RUNTIME)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ModelError, match="is not a LoRA adapter"):
        check_training(settings(world, model=model), speaker_rows(), RUNTIME)
    (tmp_path / "nothing" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2-VL-7B-Instruct"}', encoding="utf-8"
    )
    from safetensors.torch import save_file

    save_file({}, tmp_path / "nothing" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="it belongs to Qwen/Qwen2-VL-7B-Instruct, not to"):
        check_training(settings(world, model=model), speaker_rows(), RUNTIME)


@pytest.mark.parametrize(("number", "counted_mib"), [(None, 64), (0, 64), (2048, 64 + 2048)])
def test_services_beside_a_training_are_counted_with_what_they_keep(
    world: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, counted_mib: int
) -> None:
    """Unasked, a service keeps no keys and values there (``tests/orchestration/test_services.py``)."""
    counted: list[int] = []
    monkeypatch.setattr(preflight, "service_bytes", lambda _, cache_mib: counted.append(cache_mib) or 3 * 2.0**30)
    runtime = RUNTIME.model_copy(update={"vision_cache_mib": 64, "prompt_cache_mib": number})
    found = check_training(settings(world), speaker_rows(), runtime, [ModelRef(path="pocket:listener")] * 2)
    assert counted == [counted_mib] * 2
    assert "model services on the same GPU 6.0" in found["memory"]


def test_an_adapter_that_the_settings_do_not_describe_is_refused(world: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = str(world / "model")
    content = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 16, "lora_alpha": 8, "lora_dropout": 0.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file({"language_model.lora_A": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    config = settings(world, model={"path": base, "adapter": tmp_path})
    with pytest.raises(ConfigError, match=r"has r = 16, which it keeps, and training.lora says r = 4: write there"):
        check_training(config, speaker_rows(), RUNTIME)
    fitting = config.model_copy(update={"lora": LoraSettings(r=16, alpha=8)})
    assert check_training(fitting, speaker_rows(), RUNTIME)["different_prompts"] == 1
    save_file({"visual.blocks.0.lora_A": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"adapts the vision tower too \(visual.blocks.0.lora_A\)"):
        check_training(fitting, speaker_rows(), RUNTIME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"lora": {"target_modules": ["q_proj", "vproj"]}}, "no layers named vproj; it has q_proj", id="layers"
        ),
        pytest.param(
            {"rewards": {"consistency": {"weight": 0}, "format": {"weight": 0}}},
            "all rewards have weight 0",
            id="weights",
        ),
        pytest.param({"lora": {"r": 200}}, r"r is 200, but .* is \d+ wide: .* set it to \d+ at most", id="rank"),
    ],
)
def test_what_cannot_teach_anything_is_refused(world: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_training(settings(world, **changes), speaker_rows(), RUNTIME)


def test_flash_attention_is_never_required(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"path": str(world / "model"), "attention": "flash_attention_2"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package flash-attn, which is not installed; set it to 'sdpa'"):
        check_training(settings(world, model=model), speaker_rows(), RUNTIME)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="needs a GPU; set it to 'sdpa'"):
        check_training(settings(world, model=model), speaker_rows(), RUNTIME)


def test_foolish_settings_are_warned_of() -> None:
    model = {"path": "pocket:base"}
    config = TrainSpeakerConfig.model_validate(
        {"model": model, "listener": model, "held_out_listener": model, "warmup_steps": 9}
        | {"lora": {"r": 4}, "importance_sampling_level": "sequence", "epochs": 0.1}
    )
    told = list(preflight.foolish(config, config.steps(100)))
    assert [text.partition(" ")[0] for text in told] == [
        "training.warmup_steps",
        "training.lora.alpha",
        "training.importance_sampling_level",
        "training.held_out_listener",
    ]
    assert list(preflight.foolish(config.model_copy(update={"held_out_listener": None}), 9)) == told[1:3]


def test_deepspeed_has_to_be_installed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = settings(world, distributed={"strategy": "zero2"})
    with pytest.raises(ConfigError, match="needs DeepSpeed, which is not installed"):
        check_training(config, speaker_rows(), RUNTIME)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(preflight, "version", lambda _: "0.19.1")
    with pytest.raises(ConfigError, match=r"needs DeepSpeed 0.19.2 or newer, found 0.19.1"):
        check_training(config, speaker_rows(), RUNTIME)


def test_one_answer_teaches_nothing() -> None:
    with pytest.raises(DataError, match=r"are \['yes'\]; a listener learns from both"):
        check_answers(pair_rows().select([0]))
