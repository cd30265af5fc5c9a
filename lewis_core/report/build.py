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
from lewis_core.report.curves import Curve, draw_curves, draw_shared_curves
from lewis_core.report.export import export_tables
from lewis_core.report.facts import write_facts, write_notes
from lewis_core.report.figures import Figure, by_category, confusions, count_yes_no, draw_figures
from lewis_core.report.gallery import Card, Failures, GalleryBuilder
from lewis_core.report.headline import find_verdicts, key_figures, write_headline
from lewis_core.report.images import PhotoAlbum
from lewis_core.report.labels import beside_bar, count
from lewis_core.report.load import LISTENER, ReportData, load_report_data
from lewis_core.report.samples import pick_samples
from lewis_core.report.seeds import seed_tables
from lewis_core.report.tables import Block, forest_plot, main_blocks, matrix
from lewis_core.reporting import Reporter

FOLDER = Path(__file__).parent
REPORT = "report.html"
PLOTS, TABLES = "plots", "tables"
MAX_CONTRASTS = 5
"""Speakers whose wins and losses are shown with photos."""
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
        output_dir: Receives ``report.html``, ``plots/*.svg`` and ``tables/*``.
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
    for path in write_report(report, output_dir):
        reporter.log_artifact(path)
    return {
        "headline": report.headline,
        "speakers": [speaker.name for speaker in data.speakers],
        "evaluations": len(data.evaluations),
        "concepts_shown": report.num_cards,
        "photos_missing": len(album.missing),
        "bytes": (output_dir / REPORT).stat().st_size,
    }


def write_report(report: "Report", folder: Path) -> list[Path]:
    """Write the page, its charts and its tables; returns the files, the page last."""
    written = []
    for place, files in ((PLOTS, report.plots), (TABLES, report.tables)):
        (folder / place).mkdir()
        for name, text in files.items():
            written.append(folder / place / name)
            written[-1].write_text(text, encoding="utf-8")
    (folder / REPORT).write_text(report.html, encoding="utf-8")
    return [*written, folder / REPORT]


class Report:
    """A rendered page, its charts and its tables.

    Args:
        html: The page.
        plots: SVG files by name.
        tables: CSV, JSON and LaTeX files by name.
        headline: Title sentence.
        num_cards: Concepts in the gallery.
    """

    def __init__(self, html: str, plots: dict[str, str], tables: dict[str, str], headline: str, num_cards: int) -> None:
        self.html, self.plots, self.tables, self.headline, self.num_cards = html, plots, tables, headline, num_cards


def render_report(data: ReportData, config: ReportConfig, album: PhotoAlbum) -> Report:
    """Arrange the data and fill the template.

    Args:
        data: All inputs.
        config: Title and sizes.
        album: Embeds photos; knows afterwards which were missing.
    """
    headline = write_headline(data, config.title)
    curves, blocks, figures = _curves(data), main_blocks(data), draw_figures(data)
    builder = GalleryBuilder(data, album, _shown_listener(data))
    gallery = builder.gallery(config.gallery, config.seed)
    context = {
        "title": config.title,
        "headline": headline,
        "figures": key_figures(data),
        "speakers": [{"name": speaker.name, "style": speaker_style(speaker.slot)} for speaker in data.speakers],
        "main": {"name": data.main.name, "style": speaker_style(data.main.slot)} if data.main else None,
        "baseline": data.baseline,
        "training": data.training or data.trainings,
        "facts": write_facts(data),
        "quarantine": data.quarantine,
        "quarantine_count": count(len(data.quarantine), "file"),
        "curves": curves,
        "samples": pick_samples(data.training) if data.training else (),
        "blocks": blocks,
        "axis": interval_axis(),
        "has_chance": any(block.chance for block in blocks),
        "verdicts": find_verdicts(data),
        "seed_tables": seed_tables(data),
        "all_numbers": matrix(data, NUMERIC),
        "description_rows": matrix(data, ("descriptions",)),
        "closer": figures,
        "categories_blocks": by_category(data),
        "confusions": confusions(data),
        "yes_no": count_yes_no(data),
        **_gallery_context(gallery, config),
        "example": _example(data, album, config),
        "contrasts": _contrasts(data, album, config),
        "notes": write_notes(data, album),
        "origin": _origin(data),
        "arrow": ARROW,
    }
    context["sections"] = _sections(context)
    return Report(_render(context), _plots(curves, figures, blocks), export_tables(data), headline.title, len(gallery))


def _curves(data: ReportData) -> tuple[Curve, ...]:
    """Training curves: all quantities of one training, or the main ones of several over one another."""
    if data.training:
        return draw_curves(data.training)
    if len(data.trainings) == 1:
        return draw_curves(data.trainings[0][1])
    slots = {speaker.name: speaker.slot for speaker in data.speakers}
    return draw_shared_curves([(name, speaker_style(slots[name]), training) for name, training in data.trainings])


def _contrasts(data: ReportData, album: PhotoAlbum, config: ReportConfig) -> list[Failures]:
    """Wins and losses of each speaker against the baseline; of a speaker alone, its failures."""
    if data.baseline is None:
        pairs = [[speaker] for speaker in data.speakers]
    else:
        pairs = [[data.baseline, other] for other in data.speakers[1 : 1 + MAX_CONTRASTS]]
    listener = _shown_listener(data)
    found = [GalleryBuilder(data, album, listener, pair).failures(config.failures) for pair in pairs]
    return [one for one in found if one.gains or one.misses or one.regressions or one.false_positives]


def _gallery_context(gallery: tuple[Card, ...], config: ReportConfig) -> JsonObject:
    """What the gallery shows."""
    return {
        "gallery": gallery,
        "gallery_note": f"seed {config.seed}, spread evenly over categories",
        "has_games": any(card.candidates for card in gallery),
        "has_changes": any(card.change != "same" for card in gallery),
        "categories": sorted({(card.category, card.category_word) for card in gallery}),
    }


def _example(data: ReportData, album: PhotoAlbum, config: ReportConfig) -> Card | None:
    """A round that shows what the game is: one of the gallery that was won most clearly, if there is any."""
    if data.main is None:
        return None
    builder = GalleryBuilder(data, album, _shown_listener(data), [data.main])
    cards = [card for card in builder.gallery(config.gallery, config.seed) if card.candidates and card.photo]
    playable = [card for card in cards if not card.tellings[-1].error]
    return max(playable, key=_clarity, default=None)


def _clarity(card: Card) -> tuple[bool, float]:
    """Whether a round was won, and how much more the listener believed in the target than in another candidate."""
    beliefs = {c.is_target: [a.probability or 0.0 for a in c.answers] for c in card.candidates}
    others = [a.probability or 0.0 for c in card.candidates if not c.is_target for a in c.answers]
    won = any(outcome.verdict == "right" for outcome in card.outcomes.values())
    return won, max(beliefs.get(True) or [0.0]) - max(others, default=0.0)


def _sections(context: JsonObject) -> list[tuple[str, str]]:
    """Contents of the page: only what is there."""
    found = (
        ("run", "What was run", True),
        ("training", "Training", context["curves"] or context["samples"]),
        ("evaluations", "Evaluations", context["blocks"]),
        ("descriptions", "Descriptions", context["description_rows"]),
        ("closer", "A closer look", context["closer"] or context["categories_blocks"] or context["confusions"]),
        ("gallery", "Gallery", context["gallery"]),
        ("failures", "Wins and losses" if context["baseline"] else "Failures", context["contrasts"]),
        ("reading", "How to read it", True),
    )
    return [(anchor, name) for anchor, name, shown in found if shown]


def _shown_listener(data: ReportData) -> str | None:
    """Whose games the gallery shows: those of the training's listener, if it played."""
    names = sorted({item.result.answering for item in data.evaluations if item.result.evaluation == "game"})
    return LISTENER if LISTENER in names else next(iter(names), None)


def _plots(curves: tuple[Curve, ...], figures: tuple[Figure, ...], blocks: tuple[Block, ...]) -> dict[str, str]:
    """Charts as files of their own."""
    plots = {
        f"training-{curve.slug}.svg": standalone(curve.chart, f"{curve.title}: {curve.caption}") for curve in curves
    }
    plots |= {f"{figure.slug}.svg": standalone(figure.chart, figure.title) for figure in figures}
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
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["beside_bar"] = beside_bar
    return environment


def _render(context: JsonObject) -> str:
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    style = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("chart.css", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(**context, style=Markup(style), script=Markup(script), script_hash=f"sha256-{digest}")
    )
