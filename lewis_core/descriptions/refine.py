"""Take talk of state and place out of descriptions: a language model rewrites them, or a word list drops sentences.

Only texts in which the judge found something to remove are touched, so the judgements of the same descriptions are an
input. Coarse and detailed text are refined apart from each other. A text that could not be refined stays as it was and
is listed. The result is written in the form of the file that it came from, and can be judged again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import Runtime
from lewis_core.config.processing import JudgeConfig, RefineMode
from lewis_core.descriptions.answers import Answer, AnswerFile, Failure, ask_for_json
from lewis_core.descriptions.formats import ITEMS, SOURCE, DescriptionItem, load_content, read_items, replace_texts
from lewis_core.descriptions.judge import FAILURES, STATS, JudgedFile, JudgedText, check_failures
from lewis_core.descriptions.lexicon import mentions_location, mentions_state
from lewis_core.descriptions.tokens import sentences, words
from lewis_core.prompts.processing import refine_prompt
from lewis_core.records import JsonObject, Record, load_jsonl, load_record, save_jsonl
from lewis_core.reporting import Reporter

CHANGES = "changes.jsonl"
MAX_NEW_WORDS = 0.2
"""A refined text may hold this share of words that the original has not (to mend a sentence), or two words."""
GENERAL, DETAILED = "#general", "#detailed"


class Refined(Answer):
    """A text without what was to be removed."""

    text: str = Field(min_length=1)


class Change(Record):
    """One description before and after; a line of ``changes.jsonl``."""

    id: str
    general_before: str
    general: str
    detailed_before: str
    detailed: str


def refine_descriptions(
    descriptions: ArtifactRef,
    judged: ArtifactRef,
    mode: RefineMode,
    config: JudgeConfig,
    name: str,
    output_dir: Path,
    work_dir: Path,
    runtime: Runtime,
    reporter: Reporter,
) -> JsonObject:
    """Remove state, location or both from descriptions.

    Args:
        descriptions: Artifact of ``import-descriptions``.
        judged: Artifact of ``judge-descriptions`` about the same descriptions.
        mode: What is removed.
        config: Who refines, and how; a method that writes no JSON refines by word list.
        name: Name of the file that the descriptions came from.
        output_dir: Receives ``<name up to its first dot>_<mode>_refined.json``, and ``items.jsonl``,
            ``source.json``, ``changes.jsonl`` and ``failures.jsonl``.
        work_dir: Keeps answers of a run that was killed.
        runtime: Device, batch size.
        reporter: Receives progress and a table of the changes.

    Returns:
        Counts, and the name of the refined file.

    Raises:
        EvaluationError: If no text could be refined, or any failed and ``fail_on_error`` is set.
        ModelError: If the model cannot be loaded.
    """
    items = load_jsonl(descriptions.file(ITEMS), DescriptionItem)
    judgements = load_record(judged.file(STATS), JudgedFile)
    flagged = choose_flagged(items, judgements.response, mode)
    texts = {item.id + part: text for item in flagged for part, text in _parts(item) if text}
    kept = AnswerFile(work_dir / "refined.jsonl", Refined)
    failures = refine(texts, mode, kept, config, runtime, reporter)
    changes = [_change(item, kept.answers, failures) for item in flagged]
    content = load_content(descriptions.file(SOURCE))
    kind, _ = read_items(content, SOURCE)
    refined = replace_texts(content, kind, {change.id: (change.general, change.detailed) for change in changes})
    file = f"{name.partition('.')[0]}_{mode}_refined.json"
    for path in (output_dir / file, output_dir / SOURCE):
        path.write_text(json.dumps(refined, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    save_jsonl(output_dir / ITEMS, read_items(refined, file)[1])
    save_jsonl(output_dir / CHANGES, changes)
    save_jsonl(output_dir / FAILURES, failures)
    reporter.log_table("refined", [change.model_dump() for change in changes])
    check_failures("refined", failures, len(texts) - len(failures), config)
    changed = sum((c.general, c.detailed) != (c.general_before, c.detailed_before) for c in changes)
    counts = {"texts": len(items), "flagged": len(flagged), "changed": changed, "failed": len(failures)}
    return {"mode": mode, "file": file, **counts}


def choose_flagged(
    items: Sequence[DescriptionItem], judgements: Sequence[JudgedText], mode: RefineMode
) -> list[DescriptionItem]:
    """Keep the descriptions in which the judge found what is to be removed."""
    flagged = {
        judgement.id
        for judgement in judgements
        if ("state" in mode and judgement.has_state) or ("location" in mode and judgement.has_location)
    }
    return [item for item in items if item.id in flagged]


def refine(
    texts: Mapping[str, str],
    mode: RefineMode,
    kept: AnswerFile[Refined],
    config: JudgeConfig,
    runtime: Runtime,
    reporter: Reporter,
) -> list[Failure]:
    """Refine texts that were not refined yet.

    Returns:
        Texts that could not be refined.
    """
    if config.method != "json":
        return refine_by_lexicon(texts, mode, kept)
    from lewis_core.models.text import open_text_model

    def prompt(shown: Mapping[str, str], remind: bool) -> str:
        return refine_prompt(shown, mode, remind)

    if all(key in kept.answers for key in texts):
        return []
    model = open_text_model(config.model, runtime)
    return ask_for_json(model, texts, prompt, kept, Refined, config, runtime.batch_size, reporter, check=what_is_wrong)


def what_is_wrong(answer: Refined, text: str) -> str | None:
    """Say why a refined text cannot be one: it is blank, longer than the original, or tells something new."""
    written, known = words(answer.text), set(words(text))
    if not written:
        return "the refined text holds no word"
    if len(written) > len(words(text)):
        return f"the refined text has {len(written)} words, the original {len(words(text))}"
    new = [word for word in written if word not in known]
    if len(new) > max(2, MAX_NEW_WORDS * len(written)):
        return f"the refined text holds words that the original has not: {', '.join(new[:5])}"
    return None


def refine_by_lexicon(texts: Mapping[str, str], mode: RefineMode, kept: AnswerFile[Refined]) -> list[Failure]:
    """Drop the sentences in which the word list finds what is to be removed.

    Identity that such a sentence tells as well is lost: this suits texts of short sentences.

    Returns:
        Texts of which nothing would be left.
    """
    finders: list[Callable[[str], bool]] = []
    finders += [mentions_state] if "state" in mode else []
    finders += [mentions_location] if "location" in mode else []
    failures = []
    for key, text in texts.items():
        left = [sentence for sentence in sentences(text) if not any(find(sentence) for find in finders)]
        if left:
            kept.keep(Refined(id=key, text=" ".join(left)))
        else:
            failures.append(Failure(id=key, reason="every sentence mentions what is to be removed: nothing is left"))
    return failures


def _parts(item: DescriptionItem) -> tuple[tuple[str, str], tuple[str, str]]:
    return (GENERAL, item.general), (DETAILED, item.detailed)


def _change(item: DescriptionItem, refined: Mapping[str, Refined], failures: Sequence[Failure]) -> Change:
    """Put a description's parts together; what failed stays as it was."""
    failed = {failure.id for failure in failures}

    def after(part: str, text: str) -> str:
        key = item.id + part
        return refined[key].text if text and key not in failed else text

    return Change(
        id=item.id,
        general_before=item.general,
        general=after(GENERAL, item.general),
        detailed_before=item.detailed,
        detailed=after(DETAILED, item.detailed),
    )
