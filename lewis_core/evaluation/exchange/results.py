"""Result files of the reference's evaluations → predictions.

Four scripts wrote ``{"config": …, "metrics": …, "results": [rows]}``: identification (``personalize.py``), all pairs
(``personalize_skip_retrieval.py``), recognition and visual question answering. What a model wrote is read anew
(:mod:`lewis_core.evaluation.spoken`), because the reference misread answers ("A.", "the answer is: B"), counted
unreadable ones differently in every script, and scored failed batches as if they were answers. Files of single concepts
are put together.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lewis_core.data.json_files import load_json_object
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.records import Prediction
from lewis_core.evaluation.spoken import read_letter, read_yes_no
from lewis_core.models.answers import YES_NO
from lewis_core.prompts import LETTERS

Kind = Literal["identification", "pairs", "recognition", "vqa"]
Row = Mapping[str, Any]
KEYS: Mapping[Kind, frozenset[str]] = {
    "identification": frozenset({"image_path", "solution", "ret_paths", "response"}),
    "pairs": frozenset({"query_path", "name", "concept_name", "solution", "response"}),
    "recognition": frozenset({"query_path", "ref_path", "solution", "response"}),
    "vqa": frozenset({"image_path", "problem", "solution", "ret_path", "response"}),
}
"""What tells the four kinds of rows apart."""
SPLITS = frozenset({"train", "test"})
NO_RESPONSE = "no response: the reference's batch failed, or the model wrote nothing"
OPTIONS = re.compile(r"\{[^{}]*\}", re.DOTALL)


@dataclass(frozen=True)
class Imported:
    """Predictions of one or several files of a kind."""

    kind: Kind
    predictions: tuple[Prediction, ...]
    verdicts: tuple[bool, ...]
    """Whether the reference counted each as right."""
    config: Row
    """Settings of the first file."""


def load_results(paths: Sequence[Path]) -> Imported:
    """Read result files of one kind.

    Raises:
        EvaluationError: If a file is no result file, files are of several kinds, or an item is there twice.
        DataError: If a file cannot be read or is not JSON.
    """
    kinds: dict[Kind, Path] = {}
    predictions: list[Prediction] = []
    verdicts: list[bool] = []
    configs: list[Row] = []
    for path in paths:
        content = load_json_object(path)
        rows = content.get("results")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise EvaluationError(
                f"{path}: expected an object with a list 'results' of rows, as the reference writes it"
            )
        configs.append(content["config"] if isinstance(content.get("config"), dict) else {})
        for number, row in enumerate(rows):
            kind = find_kind(row, path)
            kinds.setdefault(kind, path)
            predictions.append(_read(kind, row, configs[-1], f"{path}, row {number}"))
            verdicts.append(bool(row.get("correct", False)))
    if len(kinds) != 1:
        found = ", ".join(f"{kind} ({path})" for kind, path in kinds.items()) or "no rows at all"
        raise EvaluationError(f"expected result files of one evaluation, found {found}")
    _check_unique(predictions)
    return Imported(next(iter(kinds)), tuple(predictions), tuple(verdicts), configs[0])


def find_kind(row: Row, path: Path) -> Kind:
    """Tell which script wrote a row.

    Raises:
        EvaluationError: If none did.
    """
    for kind, keys in KEYS.items():
        if keys <= row.keys():
            return kind
    wanted = "; ".join(f"{kind}: {', '.join(sorted(keys))}" for kind, keys in KEYS.items())
    raise EvaluationError(
        f"{path}: a row with the keys {', '.join(sorted(row))} is of no known kind; expected {wanted}"
    )


def _check_unique(predictions: Sequence[Prediction]) -> None:
    seen: set[str] = set()
    for prediction in predictions:
        if prediction.item in seen:
            raise EvaluationError(f"{prediction.item} is there twice; give every file once, and files of one run only")
        seen.add(prediction.item)


def _read(kind: Kind, row: Row, config: Row, place: str) -> Prediction:
    readers = {"identification": _identification, "pairs": _pair, "recognition": _recognition, "vqa": _question}
    try:
        prediction = readers[kind](row, config)
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f"{place}: cannot be read: {error}") from error
    response = row["response"]
    text = response[0] if isinstance(response, list) and len(response) == 1 else response
    if not isinstance(text, str) or not text.strip():
        return prediction.model_copy(update={"answered": None, "error": NO_RESPONSE})
    return prediction.model_copy(update={"answered": _answer(kind, prediction, text, row), "response": text})


def _answer(kind: Kind, prediction: Prediction, text: str, row: Row) -> int | None:
    """Index of the answer that a text means; a name instead of a letter counts for identification."""
    if kind in {"pairs", "recognition"}:
        return read_yes_no(text)
    letters = LETTERS[: len(prediction.options)]
    texts = [_name(option) for option in prediction.options] if kind == "identification" else prediction.options
    found = read_letter(text, letters, texts)
    if found is None and kind == "identification":
        named = [
            index for index, name in enumerate(texts) if name.casefold() == str(row.get("pred_name", "")).casefold()
        ]
        return named[0] if len(named) == 1 else None
    return found


def _identification(row: Row, config: Row) -> Prediction:
    concept = concept_of(row["image_path"])
    options = tuple(concept_of(path) for path in row["ret_paths"])
    if len(set(options)) < 2 or len(set(options)) != len(options):
        raise ValueError(f"expected two retrieved concepts or more, each once, found {', '.join(options) or 'none'}")
    solution = str(row["solution"])
    names = [_name(option).casefold() for option in options]
    if solution.casefold() in names:
        expected: int | None = names.index(solution.casefold())
    else:
        letter = solution in LETTERS[: len(options)] and len(solution) == 1
        expected = LETTERS.index(solution) if letter else None
    mode = "oracle" if config.get("gt_present") else "retrieval"
    return Prediction(
        item=f"{mode}:{row['image_path']}", concept=concept, category=_category(concept),
        image=_inside(row["image_path"]), options=options, expected=expected, answered=None,
        probabilities=_confidence(row, len(options)), tags={"mode": mode},
    )  # fmt: skip


def _confidence(row: Row, count: int) -> tuple[float, ...]:
    """Probabilities of the analysis mode, by letter; nothing where there are none for all letters."""
    found = row.get("confidence")
    given = found.get("probabilities") if isinstance(found, dict) else None
    if not isinstance(given, dict) or any(letter not in given for letter in LETTERS[:count]):
        return ()
    values = [float(given[letter]) for letter in LETTERS[:count]]
    total = sum(values)
    return tuple(value / total for value in values) if total > 0 else ()


def _pair(row: Row, config: Row) -> Prediction:
    """A pair of the all-pairs script; which category a description is of is known if one category was evaluated."""
    concept = concept_of(row["query_path"])
    same = str(row["name"]).casefold() == str(row["concept_name"]).casefold()
    described = concept if same else f"{_category(concept)}/{row['concept_name']}"
    return _yes_no(row, concept, described, "easy" if config.get("category") in {None, "", "all"} else "hard")


def _recognition(row: Row, config: Row) -> Prediction:
    del config
    concept, described = concept_of(row["query_path"]), concept_of(row["ref_path"])
    return _yes_no(row, concept, described, "hard" if _category(concept) == _category(described) else "easy")


def _yes_no(row: Row, concept: str, described: str, negatives: str) -> Prediction:
    """A photo and a description, or reference photo, of the same concept or another."""
    expected = read_yes_no(str(row["solution"]))
    if expected is None:
        raise ValueError(f"'solution': expected yes or no, found {row['solution']!r}")
    kind = "none" if expected == 0 else negatives
    return Prediction(
        item=f"description:{row['query_path']}|{described}", concept=concept, category=_category(concept),
        image=_inside(row["query_path"]), options=YES_NO, expected=expected, answered=None,
        tags={"mode": "description", "negatives": kind, "described": described},
    )  # fmt: skip


def _question(row: Row, config: Row) -> Prediction:
    del config
    options = next(_options(str(row["problem"])), None)
    solution = str(row["solution"]).strip().strip(".)").upper()
    if options is None:
        options = {letter: letter for letter in "AB"}
    if len(options) < 2 or solution not in options:
        raise ValueError(f"'solution': expected one of two letters or more ({', '.join(options)}), found {solution!r}")
    concept = concept_of(row["image_path"])
    return Prediction(
        item=f"both:{row['image_path']}|{row['problem']}", concept=concept, category=_category(concept),
        image=_inside(row["image_path"]), options=tuple(options.values()), expected=[*options].index(solution),
        answered=None, tags={"mode": "both", "question": str(row["problem"])},
    )  # fmt: skip


def _options(problem: str) -> Iterator[dict[str, str]]:
    """Options that stand in a question as a Python or JSON object, by letter in their order."""
    for found in OPTIONS.findall(problem):
        try:
            value = ast.literal_eval(found)
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, dict) and [*value] == [*LETTERS[: len(value)]]:
            yield {str(letter): str(text) for letter, text in value.items()}


def concept_of(path: str) -> str:
    """Concept id that a photo's path tells: ``…/test_/bag/alx/1.jpg`` is ``bag/alx``, ``…/test/bo/1.png`` ``all/bo``.

    Raises:
        ValueError: If the path has no folder.
    """
    parts = PurePosixPath(str(path)).parts
    folders = parts[:-1]
    places = [index for index, part in enumerate(folders) if part.rstrip("_") in SPLITS]
    below = folders[places[-1] + 1 :] if places else folders[-1:]
    if not below:
        raise ValueError(f"the path {path!r} does not say which thing it shows")
    return f"{below[-2]}/{below[-1]}" if len(below) > 1 else f"all/{below[-1]}"


def _category(concept: str) -> str:
    return concept.partition("/")[0]


def _name(concept: str) -> str:
    return concept.partition("/")[2]


def _inside(path: str) -> str:
    """A path as records want it: relative."""
    return PurePosixPath(path).as_posix().lstrip("/")
