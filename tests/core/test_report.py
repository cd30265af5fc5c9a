"""The report: honest words, numbers as in the artifacts, everything embedded and escaped, parts may be missing."""

import html
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lewis_core import stages
from lewis_core.artifacts import ArtifactRef, ArtifactStore, digest_file
from lewis_core.config.base import Runtime
from lewis_core.config.evaluation import ReportConfig
from lewis_core.errors import DataError
from lewis_core.evaluation.records import Comparison, EvaluationResult, Metric, PairedTest, Prediction
from lewis_core.pipeline import BUILD_REPORT
from lewis_core.records import (
    Catalog,
    Concept,
    Database,
    DatabaseEntry,
    Description,
    ImageRecord,
    save_jsonl,
    save_record,
)
from lewis_core.report import labels, tables
from lewis_core.report.build import build_report
from lewis_core.reporting import NullReporter
from lewis_core.stages import run_stage
from lewis_core.testing import write_image

Writer = Callable[[Path], None]
NAMES = ("c00", "c01", "c02", "c03")
HOSTILE = '<script>alert("x")</script>'


def publish(
    store: ArtifactStore, kind: str, write: Writer, arguments: dict | None = None, provenance: dict | None = None
) -> ArtifactRef:
    key = f"{sum(1 for _ in store.root.rglob('manifest.json')):024d}"
    with store.building(kind, key) as folder:
        write(folder)
        return store.publish(folder, kind, key, arguments or {}, "source", {}, provenance or {})


def photo(root: Path, path: str, seed: int) -> ImageRecord:
    write_image(root / path, seed)
    return ImageRecord(path=path, sha256=digest_file(root / path), width=32, height=32)


def make_catalog(root: Path, names: Sequence[str] = NAMES, category: str = "mug") -> Catalog:
    concepts = []
    for index, name in enumerate(names):
        safe = f"c{index:02d}"
        train = tuple(photo(root, f"train/{category}/{safe}/{n}.jpg", 10 * index + n) for n in range(2))
        test = tuple(photo(root, f"test/{category}/{safe}/{n}.jpg", 10 * index + 5 + n) for n in range(2))
        concepts.append(Concept(category=category, category_word="mug", name=name, train=train, test=test))
    return Catalog(concepts=tuple(concepts))


def make_database(catalog: Catalog, speaker: str, text: str) -> Database:
    entries = tuple(
        DatabaseEntry(
            concept=concept.id,
            category=concept.category,
            category_word=concept.category_word,
            reference=concept.train[0],
            completion=f"<coarse>A photo of a mug</coarse><detailed>{text}</detailed>",
            description=Description(thinking="I look closely.", coarse="A photo of a mug", detailed=text),
        )
        for concept in catalog.concepts
    )
    return Database(speaker=speaker, entries=entries)


def make_rounds(catalog: Catalog, answered: Sequence[int]) -> list[Prediction]:
    """One round for each concept; all concepts are candidates, and the target stands at the concept's index."""
    options = tuple(concept.test[0].path for concept in catalog.concepts)
    return [
        Prediction(
            item=f"{concept.id}#0",
            concept=concept.id,
            category=concept.category,
            options=options,
            expected=index,
            answered=answered[index],
            probabilities=tuple(0.875 if option == answered[index] else 0.125 for option in range(len(options))),
        )
        for index, concept in enumerate(catalog.concepts)
    ]


def make_pairs(catalog: Catalog) -> list[Prediction]:
    """Recognition of the first concept's photo as each concept; the second is a false alarm."""
    shown = catalog.concepts[0]
    return [
        Prediction(
            item=f"description:{shown.test[0].path}|{described.id}",
            concept=shown.id,
            category=shown.category,
            image=shown.test[0].path,
            options=("yes", "no"),
            expected=0 if described is shown else 1,
            answered=0 if index < 2 else 1,
            probabilities=(0.75, 0.25) if index < 2 else (0.25, 0.75),
            tags={"mode": "description", "negatives": "hard", "described": described.id},
        )
        for index, described in enumerate(catalog.concepts)
    ]


def result(evaluation: str, speaker: str, metrics: Sequence[Metric], answering: str = "listener") -> EvaluationResult:
    return EvaluationResult(
        evaluation=evaluation, speaker=speaker, answering=answering, metrics=tuple(metrics), concepts=4
    )


def accuracy(value: float, name: str = "accuracy", n: int = 4) -> Metric:
    return Metric(name=name, value=value, low=value - 0.0625, high=value + 0.0625, n=n, note="chance 0.25")


def paired(baseline: float, other: float, p_value: float, answering: str = "listener", **changes: object) -> PairedTest:
    values = {
        "evaluation": "game",
        "answering": answering,
        "metric": "accuracy",
        "baseline": baseline,
        "other": other,
        "difference": other - baseline,
        "low": other - baseline - 0.0625,
        "high": other - baseline + 0.0625,
        "p_value": p_value,
        "n": 4,
        "concepts": 4,
    }
    return PairedTest(**{**values, **changes})


class Bench:
    """Artifacts of a small run, and the report made from them."""

    def __init__(self, folder: Path, names: Sequence[str] = NAMES, category: str = "mug") -> None:
        self.folder, self.root, self.store = folder, folder / "photos", ArtifactStore(folder / "store")
        self.catalog = make_catalog(self.root, names, category)
        self.databases: list[ArtifactRef] = []
        self.evaluations: list[ArtifactRef] = []
        self.comparisons: list[ArtifactRef] = []
        self.training: ArtifactRef | None = None
        self.facts: dict = {}
        self.summary: dict = {}

    def add_speaker(self, name: str, text: str, accuracy_value: float | None, answered: Sequence[int] = ()) -> None:
        """Add a database and, with an accuracy, a game."""
        database = make_database(self.catalog, name, text)
        self.databases.append(
            publish(self.store, "describe-concepts", lambda f: save_record(f / "database.json", database))
        )
        if accuracy_value is not None:
            self.add_evaluation(result("game", name, [accuracy(accuracy_value)]), make_rounds(self.catalog, answered))

    def add_evaluation(self, numbers: EvaluationResult, predictions: Sequence[Prediction] = ()) -> None:
        """Add an evaluation."""

        def write(folder: Path) -> None:
            save_record(folder / "metrics.json", numbers)
            save_jsonl(folder / "predictions.jsonl", predictions)

        self.evaluations.append(publish(self.store, numbers.evaluation, write))

    def add_comparison(self, *tests: PairedTest) -> None:
        """Add paired tests of trained against base."""
        comparison = Comparison(baseline="base", speaker="trained", tests=tests)
        self.comparisons.append(
            publish(self.store, "compare-speakers", lambda f: save_record(f / "comparison.json", comparison))
        )

    def add_training(self, rows: Sequence[dict], completions: Sequence[dict] = ()) -> None:
        """Add a training log."""

        def write(folder: Path) -> None:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in completions))
            (folder / "summary.json").write_text(json.dumps({"steps": len(rows), "num_candidates": 4}))

        settings = {"config": {"max_steps": len(rows), "beta": 0.04}}
        provenance = {"wall_s": 291.4, "versions": {"trl": "1.2.3", "open-clip-torch": None}}
        self.training = publish(self.store, "train-speaker", write, settings, provenance)

    def build(self, name: str = "report", **config: object) -> str:
        """Build the report and read it."""
        output = self.folder / name
        output.mkdir()

        def write(folder: Path) -> None:
            save_record(folder / "catalog.json", self.catalog)
            (folder / "quarantine.jsonl").write_text('{"path": "a/<b>.jpg", "reason": "empty file"}\n')

        self.summary = build_report(
            publish(self.store, "build-catalog", write),
            self.training,
            self.databases,
            self.evaluations,
            self.comparisons,
            self.facts,
            output,
            ReportConfig(**config),
            self.root,
            Runtime(),
            NullReporter(),
        )
        return (output / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Base finds 1 of 4, trained 3 of 4: base is right about c00 only, trained about c01, c02 and c03."""
    made = Bench(tmp_path)
    made.add_speaker("base", "The mug is open. It is on a table.", 0.25, [0, 0, 0, 0])
    made.add_speaker("trained", "The mug is red. It has white stripes.", 0.75, [3, 1, 2, 3])
    made.add_comparison(paired(0.25, 0.75, 0.004))
    made.add_training([{"step": step, "reward": step / 10, "kl": 0.01 * step} for step in range(1, 30)])
    return made


def visible(page: str) -> str:
    """Text of a page as a reader sees it, without styles, scripts, tags and photos."""
    page = re.sub(r"<(style|script)[^>]*>.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def headline(page: str) -> str:
    return visible(re.search(r"<h1>(.*?)</h1>", page, re.DOTALL).group(1)).strip()


def test_headline_says_improvement_with_both_numbers(bench: Bench) -> None:
    assert headline(bench.build()) == "The listener now finds the right thing 75 % of the time, up from 25 %."
    assert bench.summary["headline"].startswith("The listener now finds")


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        pytest.param(
            paired(0.25, 0.75, 0.21),
            "No clear difference: the listener finds the right thing 75 % of the time, against 25 % before training.",
            id="p-too-large",
        ),
        pytest.param(
            paired(0.25, 0.75, 0.01, low=-0.01),
            "No clear difference: the listener finds the right thing 75 % of the time, against 25 % before training.",
            id="interval-holds-zero",
        ),
        pytest.param(
            paired(0.25, 0.75, 0.01, difference=-0.5, low=-0.6, high=-0.4),
            "It got worse: the listener now finds the right thing 75 % of the time, down from 25 %.",
            id="worse",
        ),
    ],
)
def test_headline_is_honest(tmp_path: Path, test: PairedTest, expected: str) -> None:
    bench = Bench(tmp_path)
    bench.add_speaker("base", "It is open.", 0.25, [0, 0, 0, 0])
    bench.add_speaker("trained", "It is red.", 0.75, [3, 1, 2, 3])
    bench.add_comparison(test)
    bench.add_training([{"step": 1, "reward": 1.0}])
    assert headline(bench.build()) == expected


def test_headline_without_a_test_claims_no_improvement(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.add_speaker("base", "It is open.", 0.25, [0, 0, 0, 0])
    bench.add_speaker("trained", "It is red.", 0.75, [3, 1, 2, 3])
    page = bench.build()
    assert headline(page) == "With trained, the listener finds the right thing 75 % of the time; with base, 25 %."
    assert "up from" not in visible(page)


def test_numbers_of_the_page_are_those_of_the_artifacts(bench: Bench) -> None:
    text = visible(bench.build())
    # 0.75 ± 0.0625 is 69 to 81 %; the difference 0.50 ± 0.0625 is +44 to +56 points.
    for expected in (
        "75 % 69–81",
        "25 % 19–31",
        "+50 +44 to +56",
        "p = 0.004",
        "chance 25 %",
        "Only 4 things: intervals",
    ):
        assert expected in text.replace(labels.NO_BREAK, " ")


def test_independent_listener_says_how_much_of_the_gain_it_sees(bench: Bench) -> None:
    for speaker, value in (("base", 0.25), ("trained", 0.625)):
        bench.add_evaluation(
            result("game", speaker, [accuracy(value)], "independent"), make_rounds(bench.catalog, [0] * 4)
        )
    bench.comparisons.clear()
    bench.add_comparison(paired(0.25, 0.75, 0.004), paired(0.25, 0.625, 0.01, "independent"))
    # Its gain is 0.375 of the listener's 0.5: three quarters.
    expected = "A listener that no training has seen agrees: 62 %, up from 25 %, 75 % of the gain."
    assert expected in visible(bench.build()).replace(labels.NO_BREAK, " ")


def test_exact_reader_is_quoted(bench: Bench) -> None:
    for speaker, value in (("base", 0.25), ("trained", 0.5)):
        metrics = [accuracy(0.25), accuracy(value, "exact_reader_accuracy")]
        bench.add_evaluation(result("game", speaker, metrics, "independent"), make_rounds(bench.catalog, [0] * 4))
    bench.evaluations = bench.evaluations[-2:]
    text = visible(bench.build()).replace(labels.NO_BREAK, " ")
    assert "finds the target 50 % of the time (25 % before training)" in text


def test_every_photo_is_embedded_and_nothing_is_requested(bench: Bench) -> None:
    page = bench.build()
    sources = re.findall(r'<img[^>]* src="([^"]{0,30})', page)
    assert len(sources) > 4 * (1 + 4)
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "default-src 'none'" in page
    links = re.findall(r'(?:src|href|action|data|poster)\s*=\s*"([^"]{0,8})', page)
    assert {link[:5] for link in links if not link.startswith("#")} == {"data:"}
    assert not re.search(r"@import|url\(|<link|<iframe|fetch\(|XMLHttp", page)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}


def test_missing_photo_is_said_and_counted(bench: Bench) -> None:
    (bench.root / bench.catalog.concepts[0].train[0].path).unlink()
    page = bench.build()
    assert "photo not available" in page
    assert "1 photo could not be shown, the first: train/mug/c00/0.jpg" in visible(page).replace(labels.NO_BREAK, " ")
    assert bench.summary["photos_missing"] == 1


def test_hostile_names_and_texts_are_escaped(tmp_path: Path) -> None:
    bench = Bench(tmp_path, names=[HOSTILE, "../../etc", '" onmouseover="x', "{{ 7 * 6 }}"])
    bench.add_speaker("base", HOSTILE, 0.25, [0, 0, 0, 0])
    bench.add_speaker("trained</style>", "It is <b>red</b> & \u2028 \U0001f3fa.", 0.75, [3, 1, 2, 3])
    bench.add_evaluation(result("recognition", "trained</style>", [accuracy(0.5, "f1")]), make_pairs(bench.catalog))
    bench.facts = {"name": HOSTILE, "group</h3>": {"<i>": "<u>"}}
    page = bench.build(title=HOSTILE)
    for tag in ("<script>alert", "</style>t", "trained</style>", "<b>red", "<u>", "<i>:", "a/<b>", 'onmouseover="x"'):
        assert tag not in page.replace("<i style", "")
    assert page.count("<script") == 1
    assert page.count("</style>") == 1
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;") in page
    assert "{{ 7 * 6 }}" in page
    assert "../../etc" in page


def test_changes_between_speakers_are_marked(bench: Bench) -> None:
    page = bench.build()
    gallery = page[page.index('<section id="gallery">') : page.index('<section id="failures">')]
    # c00 was found by the base only; c01, c02 and c03 by the trained one only.
    assert re.findall(r'data-change="(\w+)"', gallery) == ["worse", "better", "better", "better"]
    text = visible(page[page.index('<section id="failures">') :])
    assert "Missed with trained, found with base: 1 of 4 rounds" in text.replace(labels.NO_BREAK, " ")
    assert "Found with trained, missed with base: 3 of 4 rounds" in text.replace(labels.NO_BREAK, " ")


def test_false_alarms_of_recognition_are_shown(bench: Bench) -> None:
    bench.add_evaluation(result("recognition", "trained", [accuracy(0.5, "f1")]), make_pairs(bench.catalog))
    text = visible(bench.build()).replace(labels.NO_BREAK, " ")
    # Of the three pairs that do not match, one was answered yes, with P(yes) 0.75.
    assert "1 of 3 pairs that do not match" in text
    assert "was taken for mug/c01" in text
    assert "P(yes) 75 % , hard negative" in text.replace("%,", "% ,")


def test_words_are_marked_by_kind(bench: Bench) -> None:
    page = bench.build()
    assert re.search(r'<mark class="identity">[^<]*red', page)
    assert '<mark class="identity">white stripes</mark>' in page
    assert re.search(r'<mark class="location">[^<]*table', page)


def test_same_inputs_give_the_same_bytes(bench: Bench) -> None:
    assert bench.build("one") == bench.build("two")
    plots = sorted(path.name for path in (bench.folder / "one/plots").iterdir())
    assert plots == ["evaluations.svg", "length.svg", "training-distance-from-the-base.svg", "training-reward.svg"]
    for name in plots:
        assert (bench.folder / "one/plots" / name).read_bytes() == (bench.folder / "two/plots" / name).read_bytes()


def test_report_runs_as_a_stage_from_json_forms(bench: Bench) -> None:
    bench.build()
    catalog = next(path.parent for path in bench.store.root.glob("build-catalog/*/manifest.json"))
    manifest = json.loads((catalog / "manifest.json").read_text())
    arguments = {
        "catalog": ArtifactRef(kind="build-catalog", key=catalog.name, digest=manifest["digest"], path=catalog),
        "training": None,
        "databases": bench.databases,
        "evaluations": [ref.model_dump(mode="json") for ref in bench.evaluations],
        "comparisons": [],
        "facts": {},
        "config": {"title": "As a stage"},
    }
    made = run_stage(BUILD_REPORT, bench.store, arguments, {"data_root": bench.root, "runtime": Runtime()})
    assert made.summary["speakers"] == ["base", "trained"]
    assert "As a stage" in made.file("report.html").read_text(encoding="utf-8")


def test_templates_are_part_of_the_stage_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = stages.source_digest.__wrapped__
    whole = digest("lewis_core.report.build")
    monkeypatch.setattr(stages, "ASSETS", (".css", ".js"))
    assert digest("lewis_core.report.build") != whole


def test_curves_name_the_parts_of_the_reward(bench: Bench) -> None:
    rows = [
        {"step": step, "reward": 1.0, "rewards/listener": 0.5, "rewards/format": 1, "listener/accuracy": 0.5, "loss": 9}
        for step in (1, 2, 3)
    ]
    bench.add_training(rows)
    page = bench.build()
    training = page[page.index('<section id="training">') : page.index('<section id="evaluations">')]
    assert re.findall(r"<h3>([^<]+)</h3>", training) == ["Reward", "Parts of the reward", "Listener accuracy"]
    assert re.findall(r'<text class="label[^>]*>([^<]+)<', training) == ["format", "listener"]
    assert ">chance<" in training


def test_time_and_versions_are_those_that_made_the_adapter(bench: Bench) -> None:
    bench.add_training([{"step": 1, "reward": 1.0}])
    page = re.sub(r"<[^>]+>|\s+", " ", bench.build())
    assert re.search(r"took +4 min 51 s", page)
    assert re.search(r"Versions +trl +1\.2\.3", page)
    assert "open-clip-torch" not in page


def test_without_training_versions_are_those_of_the_evaluations(bench: Bench) -> None:
    bench.training = None
    bench.add_speaker("other", "It is red.", 0.25, [0, 0, 0, 0])
    for evaluation, version in zip(bench.evaluations, ("2.0", "2.1", "2.0"), strict=True):
        (evaluation.path / "provenance.json").write_text(json.dumps({"versions": {"numpy": version}}))
    page = re.sub(r"<[^>]+>|\s+", " ", bench.build())
    assert re.search(r"Versions +numpy +2\.0, 2\.1", page)


def test_samples_are_spread_and_not_chosen(bench: Bench) -> None:
    text = "<thinking>I see a mug.</thinking> <coarse>A photo of a mug</coarse> <detailed>It is red.</detailed>"
    rows = [{"step": step, "completion": text, "listener": reward} for step in range(1, 10) for reward in (0.125, 0.9)]
    rows[-2]["completion"] = "<oops> no format"
    bench.add_training([{"step": 1, "reward": 1.0}], rows)
    page = bench.build()
    table = page[page.index('<table class="samples">') : page.index('<section id="evaluations">')]
    # Nine steps, five shown: positions 0, 2, 4, 6, 8, and the first completion of each.
    assert re.findall(r'<td class="num soft">(\d+)</td>', table) == ["1", "3", "5", "7", "9"]
    assert table.count(">0.12<") == 5
    assert '<td class="wrote unreadable">&lt;oops&gt; no format</td>' in table


def test_further_speakers_get_rows_and_a_range(bench: Bench) -> None:
    bench.add_speaker("seed-1", "The mug is red.", 0.5, [0, 1, 0, 0])
    text = visible(bench.build()).replace(labels.NO_BREAK, " ")
    assert "Over the 2 speakers compared with the baseline, it ranges from 50 % to 75 %." in text
    assert "seed-1 50 % 44–56" in text


@pytest.mark.parametrize("parts", ["nothing", "one-speaker", "no-game", "no-description"])
def test_missing_parts_shorten_the_report(tmp_path: Path, parts: str) -> None:
    bench = Bench(tmp_path)
    if parts == "one-speaker":
        bench.add_speaker("base", "It is red.", 0.25, [0, 0, 0, 0])
    if parts == "no-game":
        bench.add_speaker("base", "It is red.", None)
        bench.add_evaluation(result("vqa", "base", [accuracy(0.5)]))
    if parts == "no-description":
        bench.add_evaluation(result("game", "base", [accuracy(0.25)]), make_rounds(bench.catalog, [0] * 4))
    page = bench.build(title="Plain title")
    expected = {
        "nothing": "Plain title",
        "one-speaker": "The listener finds the right thing 25 % of the time.",
        "no-game": "50 % of the questions are answered correctly.",
        "no-description": "The listener finds the right thing 25 % of the time.",
    }
    assert headline(page).replace(labels.NO_BREAK, " ") == expected[parts]
    assert 'id="training"' not in page
    assert ('id="gallery"' in page) == (parts in {"one-speaker", "no-game"})
    anchors, targets = re.findall(r'href="#(\w+)"', page), re.findall(r'<section id="(\w+)"', page)
    assert anchors == targets


def test_unusable_description_shows_the_raw_text(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    database = make_database(bench.catalog, "base", "It is red.")
    broken = database.entries[0].model_copy(update={"description": None, "error": "no <detailed>", "completion": "<x>"})
    database = database.model_copy(update={"entries": (broken, *database.entries[1:])})
    bench.databases.append(
        publish(bench.store, "describe-concepts", lambda f: save_record(f / "database.json", database))
    )
    page = bench.build()
    assert "No usable description: no &lt;detailed&gt;" in page
    assert "<pre>&lt;x&gt;</pre>" in page


def test_damaged_training_log_is_named(bench: Bench) -> None:
    bench.add_training([{"step": 1, "reward": 1.0}])
    bad = publish(
        bench.store,
        "train-speaker",
        lambda f: [(f / name).write_text("[1]\n") for name in ("metrics.jsonl", "completions.jsonl", "summary.json")],
    )
    bench.training = bad
    with pytest.raises(DataError, match="expected a JSON object, found list"):
        bench.build()


def test_fewer_state_words_are_better() -> None:
    test = paired(0.5, 0.25, 0.001, metric="state_rate", evaluation="descriptions")
    assert tables.describe_difference(test).verdict == "better"
    assert tables.describe_difference(test.model_copy(update={"metric": "accuracy"})).verdict == "worse"
    assert tables.describe_difference(test.model_copy(update={"metric": "words_mean"})).verdict == "neutral"
