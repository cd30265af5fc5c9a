"""Finished runs in one report: found by digest, named apart, compared on the same items only."""

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.__main__ import main
from lewis_core.artifacts import ArtifactRef, ArtifactStore
from lewis_core.config.evaluation import CompareConfig, StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import game, recognition
from lewis_core.evaluation.records import EvaluationResult, Prediction
from lewis_core.records import Catalog
from lewis_core.report.contrast import compare_runs
from lewis_core.report.runs import open_run
from lewis_core.testing import make_catalog, make_database

STATISTICS = StatisticsConfig(resamples=100)
CATALOG = make_catalog({"mug": 4, "bag": 4})
NONE, ALL, HALF = (), tuple(range(8)), tuple(range(0, 8, 2))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Run:
    """A work folder, filled as the flows fill it."""

    def __init__(self, folder: Path, catalog: Catalog = CATALOG, answering: str = "weights") -> None:
        self.folder, self.catalog, self.answering = folder, catalog, answering
        self.store = ArtifactStore(folder / "store")
        self.refs: dict[str, list[ArtifactRef]] = {"databases": [], "evaluations": []}
        self.number = 0
        self.home = self.publish("build-catalog", {"catalog.json": catalog.model_dump_json()})
        self.training: ArtifactRef | None = None

    def publish(self, kind: str, files: dict[str, str], arguments: dict[str, object] | None = None) -> ArtifactRef:
        """Publish files, later ones with later times."""
        self.number += 1
        key = f"{self.number:024d}"
        with self.store.building(kind, key) as folder:
            for name, text in files.items():
                (folder / name).write_text(text)
            return self.store.publish(folder, kind, key, arguments or {}, "source", {}, {"started": self.number})

    def train(self, seed: int, rate: float = 0.1) -> "Run":
        """Add a training with that seed."""
        rows = "".join(json.dumps({"step": step, "reward": 0.1 * step + seed}) + "\n" for step in (1, 2, 3))
        files = {"summary.json": "{}", "metrics.jsonl": rows}
        arguments = {"config": {"seed": seed, "rate": rate}, "dataset": {"artifact": "d", "digest": "1"}}
        self.training = self.publish("train-speaker", files, arguments)
        return self

    def speaker(self, name: str, right: Sequence[int], evaluations: Sequence[str] = ("game", "recognition")) -> "Run":
        """Add a speaker that is right about these concepts."""
        texts = {c.id: f"It is {name} {'very ' * n}{c.id[-2:]}." for n, c in enumerate(self.catalog.concepts)}
        database = make_database(self.catalog, texts, name)
        self.refs["databases"].append(self.publish("describe-concepts", {"database.json": database.model_dump_json()}))
        for evaluation in evaluations:
            self.evaluate(name, evaluation, right)
        return self

    def evaluate(self, name: str, evaluation: str, right: Sequence[int]) -> None:
        """Add an evaluation of the last speaker."""
        rows = rounds(self.catalog, right) if evaluation == "game" else pairs(self.catalog, right)
        module = game if evaluation == "game" else recognition
        result = EvaluationResult(
            evaluation=evaluation, speaker=name, answering="listener", metrics=module.aggregate(rows, STATISTICS),
            concepts=8, failed=sum(row.error is not None for row in rows),
        )  # fmt: skip
        files = {
            "metrics.json": result.model_dump_json(),
            "predictions.jsonl": "".join(row.model_dump_json() + "\n" for row in rows),
        }
        kind = "play-games" if evaluation == "game" else f"evaluate-{evaluation}"
        arguments = {"answering": self.answering, "catalog": mention(self.home), "settings": evaluation}
        arguments["database"] = mention(self.refs["databases"][-1])
        self.refs["evaluations"].append(self.publish(kind, files, arguments))

    def finish(self) -> Path:
        """Add the report, which makes it a finished run."""
        arguments = {
            "catalog": mention(self.home),
            "facts": {"name": self.folder.name, "photos": "made up"},
            **{name: [mention(ref) for ref in refs] for name, refs in self.refs.items()},
            "training": mention(self.training) if self.training else None,
        }
        self.publish("build-report", {"report.html": ""}, arguments)
        return self.folder


def mention(ref: ArtifactRef) -> dict[str, str]:
    return {"artifact": ref.kind, "digest": ref.digest}


def rounds(catalog: Catalog, right: Sequence[int]) -> list[Prediction]:
    return [
        Prediction(
            item=f"round {concept.id}", concept=concept.id, category=concept.category, image=concept.test[0].path,
            options=tuple(photo.path for photo in concept.test), expected=0, answered=0 if index in right else 1,
            probabilities=(0.6, 0.2) if index in right else (0.2, 0.6), scores=(1.0, -1.0),
        )
        for index, concept in enumerate(catalog.concepts)
    ]  # fmt: skip


def pairs(catalog: Catalog, right: Sequence[int]) -> list[Prediction]:
    return [
        Prediction(
            item=f"{concept.id}|{kind}", concept=concept.id, category=concept.category, image=concept.test[0].path,
            options=("yes", "no"), expected=expected, answered=expected if index in right else 1 - expected,
            probabilities=(0.75, 0.25), captured_mass=1.0,
            tags={"mode": "description", "negatives": kind, "described": catalog.concepts[index - expected].id},
        )
        for index, concept in enumerate(catalog.concepts)
        for expected, kind in ((0, "none"), (1, "hard"))
    ]  # fmt: skip


def compare(tmp_path: Path, *runs: Path, **more: object) -> dict[str, object]:
    config = CompareConfig.model_validate({"runs": runs, "output": tmp_path / "out", "statistics": STATISTICS, **more})
    return compare_runs(config)


def seeds(tmp_path: Path) -> list[Path]:
    return [
        Run(tmp_path / f"seed-{seed}").train(seed).speaker("base", NONE).speaker("trained", right).finish()
        for seed, right in ((0, ALL), (1, HALF))
    ]


def test_seeds_are_found_named_and_put_together(tmp_path: Path) -> None:
    result = compare(tmp_path, *seeds(tmp_path))
    assert result["speakers"] == ["base", "seed-0", "seed-1"]  # the base of both runs has the same words
    assert result["groups"] == {"trained, 2 seeds": ["seed-0", "seed-1"]}
    tests = result["tests"]
    assert isinstance(tests, dict)
    assert tests["seed-0"]["game/listener/accuracy"]["difference"] == 1
    assert tests["seed-1"]["game/listener/accuracy"]["difference"] == 0.5
    # 2 of 2⁸ swaps are as far apart; six tests on the page, of which three of seed-0 are this small
    assert tests["seed-0"]["game/listener/accuracy"]["p_value"] == pytest.approx(2 / 256)
    assert tests["seed-0"]["game/listener/accuracy"]["p_holm"] == pytest.approx(6 * 2 / 256)
    folder = tmp_path / "out"
    with (folder / "tables/seeds.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if (row["evaluation"], row["metric"]) == ("game", "accuracy"))
    assert (row["mean"], row["value seed-0"], row["value seed-1"]) == ("0.75", "1.0", "0.5")
    assert float(row["deviation"]) == pytest.approx(0.25 * 2**0.5)
    assert float(row["difference"]) == 0.75
    page = (folder / "report.html").read_text()
    assert "Mean of 2 seeds: the listener finds the right thing 75 % of the time; with base, 0 %." in page.replace(
        "\xa0", " "
    )
    assert "same recipe, other seeds" in page
    for name in ("seed-0", "seed-1"):
        assert f"Found with {name}, missed with base" in page
    plain = page.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in plain and "https://" not in plain
    assert {path.name for path in (folder / "tables").iterdir()} == {
        f"{table}.{kind}" for table in ("numbers", "tests", "seeds") for kind in ("csv", "json", "tex")
    }
    assert {"calibration.svg", "length.svg", "training-reward.svg"} <= {p.name for p in (folder / "plots").iterdir()}


def test_tables_hold_the_numbers_of_the_artifacts_and_failures_are_in_their_footnotes(tmp_path: Path) -> None:
    run = Run(tmp_path / "a_b").speaker("base", NONE).speaker("new & shiny", ALL)
    failed = rounds(CATALOG, HALF)[-1].model_copy(update={"answered": None, "error": "e: x"})
    silent = [*rounds(CATALOG, HALF)[:-1], failed]
    result = EvaluationResult(
        evaluation="game", speaker="third", answering="listener", metrics=game.aggregate(silent, STATISTICS),
        concepts=8, failed=1,
    )  # fmt: skip
    database = make_database(CATALOG, {c.id: "x" for c in CATALOG.concepts}, "third").model_dump_json()
    run.refs["databases"].append(run.publish("describe-concepts", {"database.json": database}))
    lines = "".join(p.model_dump_json() + "\n" for p in silent)
    run.refs["evaluations"].append(
        run.publish("play-games", {"metrics.json": result.model_dump_json(), "predictions.jsonl": lines})
    )
    compare(tmp_path, run.finish())
    tables = tmp_path / "out/tables"
    rows = json.loads((tables / "numbers.json").read_text())
    assert rows == [
        {**row, "value": None if row["value"] == "" else float(row["value"])}
        | {key: rows[i][key] for key in rows[i] if key != "value"}
        for i, row in enumerate(csv.DictReader(io.StringIO((tables / "numbers.csv").read_text())))
    ]
    value = {(r["speaker"], r["evaluation"], r["metric"]): r["value"] for r in rows}
    assert value["base", "game", "accuracy"] == 0
    assert value["third", "game", "accuracy"] == 4 / 8
    assert value["new & shiny", "recognition", "f1"] == 1
    latex = (tables / "numbers.tex").read_text()
    assert r"new \& shiny" in latex and r"\toprule" in latex and r"100~\%$^{*}$" in latex
    assert latex.count("{") == latex.count("}")
    note = "The game (third, listener): 1 items failed and 0 answers were invalid of 8; both count as wrong."
    assert note in latex and note in (tables / "tests.tex").read_text()
    page = (tmp_path / "out/report.html").read_text()
    assert "1 failed" in page
    assert "Only one of base and third was evaluated on recognition of listener: not compared." in page


def test_the_baseline_and_the_groups_can_be_named(tmp_path: Path) -> None:
    runs = seeds(tmp_path)
    result = compare(tmp_path, *runs, baseline="seed-1", groups={"mixed": ("base", "seed-0")})
    assert (result["baseline"], result["groups"]) == ("seed-1", {"mixed": ["base", "seed-0"]})
    tests = result["tests"]
    assert isinstance(tests, dict) and tests["base"]["game/listener/accuracy"]["difference"] == -0.5
    with pytest.raises(EvaluationError, match="no speaker 'trained'; there are base, seed-0, seed-1"):
        compare(tmp_path, *runs, baseline="trained")
    with pytest.raises(EvaluationError, match="group g: there is no speaker 'x'"):
        compare(tmp_path, *runs, groups={"g": ("x", "base")})
    with pytest.raises(EvaluationError, match="group g: expected two speakers or more"):
        compare(tmp_path, *runs, groups={"g": ("base", "base")})


def test_other_recipes_are_no_seeds_of_one(tmp_path: Path) -> None:
    runs = [
        Run(tmp_path / name).train(0, rate).speaker("trained", ALL).finish() for name, rate in (("x", 0.1), ("y", 0.2))
    ]
    result = compare(tmp_path, *runs)
    assert (result["speakers"], result["groups"]) == (["x", "y"], {})
    twice = compare(tmp_path, runs[0], runs[0])  # the same run twice is one
    assert twice["speakers"] == ["trained"]


def test_an_evaluation_alone_can_be_compared_and_the_newest_report_counts(tmp_path: Path) -> None:
    first = Run(tmp_path / "first").speaker("base", NONE)
    first.finish()
    first.speaker("late", ALL).finish()
    assert len(open_run(tmp_path / "first").databases) == 2
    alone = Run(tmp_path / "second").speaker("other", HALF)
    folder = alone.refs["evaluations"][0].path
    result = compare(tmp_path, first.folder, folder)
    assert result["speakers"] == ["base", "late", "other"]
    assert set(result["tests"]["other"]) == {"game/listener/accuracy"}  # type: ignore[index]


def test_another_judge_is_another_arm_and_said(tmp_path: Path) -> None:
    one = Run(tmp_path / "one").speaker("base", NONE).finish()
    two = Run(tmp_path / "two", answering="another model").speaker("base", ALL).finish()
    result = compare(tmp_path, one, two)
    assert result["speakers"] == ["one", "two"]
    assert "one and two were not judged by the same model (game)" in (tmp_path / "out/report.html").read_text()


def test_other_things_pictures_and_questions_are_refused_by_name(tmp_path: Path) -> None:
    one = Run(tmp_path / "one").speaker("base", NONE).finish()
    strange = make_catalog({"cup": 8})
    other = Run(tmp_path / "strange", strange).speaker("base", ALL).finish()
    with pytest.raises(EvaluationError, match="one and strange are about other things"):
        compare(tmp_path, one, other)
    concept = CATALOG.concepts[0]
    swapped = concept.test[0].model_copy(update={"sha256": "changed"})
    edited = concept.model_copy(update={"test": (swapped, *concept.test[1:])})
    changed = Catalog(concepts=(edited, *CATALOG.concepts[1:]))
    with pytest.raises(EvaluationError, match=r"other pictures: .*0\.jpg and 0 more differ"):
        compare(tmp_path, one, Run(tmp_path / "changed", changed).speaker("x", ALL).finish())
    fewer = Catalog(concepts=CATALOG.concepts[:6])
    with pytest.raises(EvaluationError, match=r"x \(fewer\) do not describe the same things: .*\(2 such concepts\)"):
        compare(tmp_path, one, Run(tmp_path / "fewer", fewer).speaker("x", ALL).finish())
    elsewhere = Run(tmp_path / "elsewhere").speaker("x", ALL, ())
    for ask in ("game", "recognition"):
        elsewhere.evaluate("x", ask, ALL)
    one_less = elsewhere.refs["evaluations"][0].path
    lines = (one_less / "predictions.jsonl").read_text().splitlines(keepends=True)
    files = {"metrics.json": (one_less / "metrics.json").read_text(), "predictions.jsonl": "".join(lines[:-2])}
    elsewhere.refs["evaluations"][0] = elsewhere.publish("play-games", files)
    with pytest.raises(EvaluationError, match=r"base \(one\) and x \(elsewhere\): game .*2 items of 8 differ"):
        compare(tmp_path, one, elsewhere.finish())


def test_what_is_no_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds no finished run"):
        open_run(tmp_path)
    run = Run(tmp_path / "run").speaker("base", NONE)
    with pytest.raises(EvaluationError, match="holds an artifact of build-catalog; expected a work folder"):
        open_run(run.home.path)
    run.finish()
    game_file = run.refs["evaluations"][0].path / "predictions.jsonl"
    game_file.write_text(game_file.read_text() + "\n")
    with pytest.raises(EvaluationError, match=r"is damaged: .*was changed"):
        open_run(run.folder)
    shutil.rmtree(run.refs["evaluations"][0].path)
    with pytest.raises(EvaluationError, match=r"made from play-games .* its store does not hold"):
        open_run(run.folder)


def test_a_copied_run_without_photos_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path / "here").speaker("base", NONE).speaker("new", ALL).finish()
    shutil.copytree(run, tmp_path / "there")
    shutil.rmtree(run)
    result = compare(tmp_path, tmp_path / "there")
    assert result["photos_missing"] != 0
    assert "could not be shown" in (tmp_path / "out/report.html").read_text()


def test_the_command_says_what_it_did_and_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(path) for path in seeds(tmp_path)]
    out = str(tmp_path / "page")
    (tmp_path / "page").mkdir()
    (tmp_path / "page/mine.txt").write_text("stays")
    assert main(["compare", *runs, "--output", out, "--title", "Ours"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["report"] == f"{out}/report.html" and "Ours" in Path(result["report"]).read_text()
    assert (tmp_path / "page/mine.txt").read_text() == "stays"
    assert not list(tmp_path.glob(".page-*"))
    assert main(["compare", str(tmp_path)]) == 1
    assert "compare failed: EvaluationError" in capsys.readouterr().err
    for wrong in (["--group", "a=b"], ["--photos", str(tmp_path / "no")], ["--output", f"{out}/mine.txt"]):
        assert main(["compare", *runs, *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err


def browse(page: Path, *options: str) -> str:
    """Open a page in a browser without a window; returns what was printed."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={page.parent / 'profile'}",
    ]
    command += [*options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Content Security Policy" not in done.stderr
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on this machine")
def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    compare(tmp_path, *seeds(tmp_path))
    page = tmp_path / "out/report.html"
    dom = browse(page, "--dump-dom")
    assert '<html lang="en" class="js">' in dom  # the script ran
    assert "8 of 8 shown" in dom
    browse(page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


CLICK = """<script>
var bar = document.querySelector(".filters"), said = [];
function say(what) {
  var visible = bar.parentNode.querySelectorAll(".card:not([hidden])").length;
  said.push(what + ": " + bar.querySelector("output").textContent + ", " + visible + " visible");
}
Array.prototype.forEach.call(bar.querySelectorAll("button"), function (button) {
  button.click();
  say(button.textContent);
  button.parentNode.querySelector("button").click();
});
var search = bar.querySelector("input");
["BAG", "nothing like this", ""].forEach(function (words) {
  search.value = words;
  search.dispatchEvent(new Event("input"));
  say("find " + words);
});
document.title = said.join("; ");
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on this machine")
def test_clicks_and_words_choose_among_the_photos(tmp_path: Path) -> None:
    compare(tmp_path, *seeds(tmp_path))
    page = tmp_path / "out/report.html"
    html = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text()
    )  # else no click by a script
    page.write_text(html.replace("</body>", CLICK))
    title = re.search(r"<title>(.*?)</title>", browse(page, "--dump-dom"))
    assert title is not None
    assert title[1].split("; ") == [
        *("all kinds: 8 of 8 shown, 8 visible", "bag: 4 of 8 shown, 4 visible", "mug: 4 of 8 shown, 4 visible"),
        *("all outcomes: 8 of 8 shown, 8 visible", "wins: 8 of 8 shown, 8 visible"),
        *("losses: 0 of 8 shown, 0 visible", "no change: 0 of 8 shown, 0 visible"),
        *("find BAG: 4 of 8 shown, 4 visible", "find nothing like this: 0 of 8 shown, 0 visible"),
        "find : 8 of 8 shown, 8 visible",
    ]
