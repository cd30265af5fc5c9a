"""One HTML file that says what came out of a run, shows it, and can be sent to others.

The page is complete in itself: styles, script, charts and photos are inside, nothing is requested, and a content
security policy forbids it. Everything that came from data is escaped. Equal inputs give equal bytes.
"""

import base64
import functools
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import Runtime
from lewis_core.config.evaluation import ReportConfig
from lewis_core.records import JsonObject
from lewis_core.report.charts import interval_axis, speaker_style, standalone
from lewis_core.report.curves import Curve, draw_curves
from lewis_core.report.facts import write_facts, write_notes
from lewis_core.report.gallery import Card, Failures, GalleryBuilder
from lewis_core.report.headline import find_verdicts, key_figures, write_headline
from lewis_core.report.images import PhotoAlbum
from lewis_core.report.labels import count
from lewis_core.report.load import LISTENER, ReportData, load_report_data
from lewis_core.report.samples import pick_samples
from lewis_core.report.tables import Block, forest_plot, main_blocks, matrix
from lewis_core.reporting import Reporter

FOLDER = Path(__file__).parent
REPORT = "report.html"
PLOTS = "plots"
NUMERIC = ("game", "identification", "recognition", "vqa")
ARROW = Markup(
    '<svg class="arrow" viewBox="0 0 34 20" width="34" height="20" aria-hidden="true">'
    '<path d="M2 10h26M21 3.5 28.5 10 21 16.5" fill="none" stroke="currentColor" stroke-width="1.6" '
    'stroke-linecap="round" stroke-linejoin="round"/></svg>'
)


def build_report(
    catalog: ArtifactRef,
    training: ArtifactRef | None,
    databases: list[ArtifactRef],
    evaluations: list[ArtifactRef],
    comparisons: list[ArtifactRef],
    facts: JsonObject,
    output_dir: Path,
    config: ReportConfig,
    data_root: Path,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Write ``report.html`` and its charts as files (stage ``build-report``).

    Args:
        catalog: Artifact of ``build-catalog``.
        training: Artifact of ``train-speaker``, if a speaker was trained.
        databases: Artifacts of ``describe-concepts``, the baseline's first.
        evaluations: Artifacts of the evaluations, of all speakers.
        comparisons: Artifacts of ``compare-speakers``.
        facts: What else is worth saying about the run: models, seeds; nested objects become groups.
        output_dir: Receives ``report.html`` and ``plots/*.svg``.
        config: Title and sizes.
        data_root: Folder that image paths are relative to.
        runtime: Unused; a report is one process.
        reporter: Receives the files.

    Returns:
        Counts, and the headline.

    Raises:
        DataError: If a file is not what its artifact promises.
        ArtifactError: If an artifact lacks a file that it must have.
    """
    del runtime
    data = load_report_data(catalog, training, databases, evaluations, comparisons, facts)
    album = PhotoAlbum(data_root)
    report = render_report(data, config, album)
    path = output_dir / REPORT
    path.write_text(report.html, encoding="utf-8")
    (output_dir / PLOTS).mkdir()
    for name, chart in report.plots.items():
        (output_dir / PLOTS / name).write_text(chart, encoding="utf-8")
        reporter.log_artifact(output_dir / PLOTS / name)
    reporter.log_artifact(path)
    return {
        "headline": report.headline,
        "speakers": [speaker.name for speaker in data.speakers],
        "evaluations": len(data.evaluations),
        "concepts_shown": report.num_cards,
        "photos_missing": len(album.missing),
        "bytes": path.stat().st_size,
    }


class Report:
    """A rendered page and its charts.

    Args:
        html: The page.
        plots: SVG files by name.
        headline: Title sentence.
        num_cards: Concepts in the gallery.
    """

    def __init__(self, html: str, plots: dict[str, str], headline: str, num_cards: int) -> None:
        self.html, self.plots, self.headline, self.num_cards = html, plots, headline, num_cards


def render_report(data: ReportData, config: ReportConfig, album: PhotoAlbum) -> Report:
    """Arrange the data and fill the template.

    Args:
        data: All inputs.
        config: Title and sizes.
        album: Embeds photos; knows afterwards which were missing.
    """
    headline = write_headline(data, config.title)
    curves = draw_curves(data.training) if data.training else ()
    blocks = main_blocks(data)
    builder = GalleryBuilder(data, album, _shown_listener(data))
    gallery = builder.gallery(config.gallery, config.seed)
    failures = builder.failures(config.failures)
    context = {
        "title": config.title,
        "headline": headline,
        "figures": key_figures(data),
        "speakers": [{"name": speaker.name, "style": speaker_style(speaker.slot)} for speaker in data.speakers],
        "main": {"name": data.main.name, "style": speaker_style(data.main.slot)} if data.main else None,
        "baseline": data.baseline,
        "training": data.training,
        "facts": write_facts(data),
        "quarantine": data.quarantine,
        "quarantine_count": count(len(data.quarantine), "photo"),
        "curves": curves,
        "samples": pick_samples(data.training) if data.training else (),
        "blocks": blocks,
        "axis": interval_axis(),
        "has_chance": any(block.chance for block in blocks),
        "verdicts": find_verdicts(data),
        "all_numbers": matrix(data, NUMERIC),
        "description_rows": matrix(data, ("descriptions",)),
        **_gallery_context(gallery, failures, config),
        "notes": write_notes(data, album),
        "origin": _origin(data),
        "arrow": ARROW,
    }
    context["sections"] = _sections(context)
    plots = _plots(curves, blocks)
    return Report(_render(context), plots, headline.title, len(gallery))


def _gallery_context(gallery: tuple[Card, ...], failures: Failures, config: ReportConfig) -> JsonObject:
    """What the gallery, the failures and the picture of the game show."""
    playable = [card for card in gallery if card.candidates and card.photo and not card.tellings[-1].error]
    telling = [card for card in playable if [*card.outcomes.values()][-1].verdict == "right"]
    return {
        "gallery": gallery,
        "gallery_note": f"seed {config.seed}, spread evenly over categories",
        "has_games": any(card.candidates for card in gallery),
        "has_changes": any(card.change != "same" for card in gallery),
        "categories": sorted({(card.category, card.category_word) for card in gallery}),
        "example": next(iter([*telling, *playable]), None),
        "failures": failures,
    }


def _sections(context: JsonObject) -> list[tuple[str, str]]:
    """Contents of the page: only what is there."""
    failures: Failures = context["failures"]
    found = (
        ("run", "What was run", True),
        ("training", "Training", context["curves"] or context["samples"]),
        ("evaluations", "Evaluations", context["blocks"]),
        ("descriptions", "Descriptions", context["description_rows"]),
        ("gallery", "Gallery", context["gallery"]),
        ("failures", "Failures", failures.misses or failures.regressions or failures.false_positives),
        ("reading", "How to read it", True),
    )
    return [(anchor, name) for anchor, name, shown in found if shown]


def _shown_listener(data: ReportData) -> str | None:
    """Whose games the gallery shows: those of the training's listener, if it played."""
    names = sorted({item.result.answering for item in data.evaluations if item.result.evaluation == "game"})
    return LISTENER if LISTENER in names else next(iter(names), None)


def _plots(curves: tuple[Curve, ...], blocks: tuple[Block, ...]) -> dict[str, str]:
    """Charts as files of their own."""
    plots = {
        f"training-{curve.slug}.svg": standalone(curve.chart, f"{curve.title}: {curve.caption}") for curve in curves
    }
    if blocks:
        plots["evaluations.svg"] = standalone(forest_plot(blocks), "Evaluations with 95 % intervals")
    return plots


def _origin(data: ReportData) -> str:
    """What the page was made from, in one line."""
    parts = [count(len(data.evaluations), "evaluation"), count(len(data.comparisons), "comparison")]
    return f"Made by Lewis from {' and '.join(parts)}. This file is complete in itself and requests nothing."


@functools.cache
def _environment() -> Environment:
    """Templates escape everything that is not markup, and refuse names that are not there."""
    return Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )


def _render(context: JsonObject) -> str:
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    style = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("chart.css", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(**context, style=Markup(style), script=Markup(script), script_hash=f"sha256-{digest}")
    )
