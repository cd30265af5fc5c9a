"""Take over and hand back experiments of the reference system.

    python -m lewis_core.data.exchange splits-from TRAIN_FILE [--test TEST_FILE] [--merged FILE]
    python -m lewis_core.data.exchange games-from RETRIEVAL_FILE CATALOG OUT
    python -m lewis_core.data.exchange catalog-to CATALOG OUT [--prefix data/PerVA/]
    python -m lewis_core.data.exchange splits-to CATALOG SPLITS OUT_FOLDER [--prefix …]
    python -m lewis_core.data.exchange games-to GAMES OUT [--prefix …]

CATALOG, SPLITS and GAMES are artifact folders or the files in them. A catalog of the reference's is taken over by the
setting ``catalog.listing``. Exit status: 0, or 2 when something is wrong; the message says what.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lewis_core.artifacts import MANIFEST, Manifest
from lewis_core.config.data import SplitConfig
from lewis_core.data.exchange.catalogs import export_catalog
from lewis_core.data.exchange.games import export_retrieval, import_retrieval
from lewis_core.data.exchange.splits import export_splits, import_splits, merge_splits, parse_concept_list
from lewis_core.data.json_files import load_json, load_json_object
from lewis_core.errors import CatalogError, DataError, LewisError
from lewis_core.records import Catalog, Game, Splits, load_jsonl, load_record, save_jsonl

SOURCES = {
    "catalog": "artifact of build-catalog in <work folder>/store, or its catalog.json",
    "splits": "artifact of split-concepts, or its splits.json",
    "games": "artifact of build-games, or its games.jsonl",
}
"""What the commands read of ours."""
_NAMED = 5
"""Refused rows shown."""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends the process with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m lewis_core.data.exchange", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("splits-from", help="print settings with the concepts of a split or concept list")
    command.add_argument("train", type=Path, help="train_combined_concepts_*.json, a subset, or lines category,concept")
    command.add_argument("--test", type=Path, help="test_combined_concepts_*.json; else the others are held out")
    command.add_argument("--merged", type=Path, help="write both files as one catalog file, for catalog.listing")
    command = commands.add_parser("games-from", help="turn a retrieval list into games.jsonl")
    command.add_argument("rows", type=Path, help="file of the reference with query_path, ret_paths, label")
    command.add_argument("catalog", type=Path, help=SOURCES["catalog"])
    command.add_argument("out", type=Path, help="file to write, as build-games writes it")
    for name, inputs in (("catalog-to", ("catalog",)), ("splits-to", ("catalog", "splits")), ("games-to", ("games",))):
        command = commands.add_parser(name, help=f"write {name.partition('-')[0]} as the reference does")
        for source in inputs:
            command.add_argument(source, type=Path, help=SOURCES[source])
        target = "folder for three files" if name == "splits-to" else "JSON file to write"
        command.add_argument("out", type=Path, help=target)
        command.add_argument("--prefix", default="", help="put before every path, e.g. data/PerVA/")
    return parser.parse_args(arguments)


def splits_from(train: Path, test: Path | None, merged: Path | None) -> str:
    """Concept lists as settings."""
    if train.suffix == ".txt":
        lists = {"training": parse_concept_list(train.read_text(encoding="utf-8"), train.name)}
    else:
        held_out = load_json_object(test) if test else None
        lists = import_splits(load_json_object(train), held_out)
        if merged is not None:
            if held_out is None:
                raise DataError("--merged joins two files: give the second with --test")
            save_json(merged, merge_splits(load_json_object(train), held_out))
    return "[splits]\n" + "".join(f"{side} = {json.dumps(ids, ensure_ascii=False)}\n" for side, ids in lists.items())


def games_from(rows: Path, catalog: Path, out: Path) -> str:
    """Games of a retrieval list; says which rows cannot be played.

    Raises:
        CatalogError: If the file holds no list, or none of its rows can be played.
    """
    content = load_json(rows)
    if not isinstance(content, list):
        raise CatalogError(f"{rows}: expected a list of games, found a {type(content).__name__}")
    games, refused = import_retrieval(content, load_record(locate(catalog, "catalog.json"), Catalog))
    named = "".join(f"\n  {entry.path}: {entry.reason}" for entry in refused[:_NAMED])
    if not games:
        raise CatalogError(f"{rows}: none of {len(content)} rows can be played{named}")
    save_jsonl(out, games)
    more = f"\n  … and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    return f"{len(games)} games, {len(refused)} rows refused{named}{more}\n"


def splits_to(catalog: Path, splits: Path, out: Path, prefix: str) -> str:
    """The reference's three files of a split; names them."""
    sides = load_record(locate(splits, "splits.json"), Splits)
    contents = export_splits(load_record(locate(catalog, "catalog.json"), Catalog), sides, made_with(splits), prefix)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        save_json(out / name, content)
    return "".join(f"{out / name}\n" for name in contents)


def made_with(splits: Path) -> SplitConfig:
    """The settings that a split was made with, if its artifact is known."""
    manifest = (splits if splits.is_dir() else splits.parent) / MANIFEST
    if not manifest.is_file():
        return SplitConfig()
    settings = load_record(manifest, Manifest).arguments["config"]
    return SplitConfig(**{name: settings[name] for name in ("seed", "concept_frac", "min_concepts")})


def locate(place: Path, name: str) -> Path:
    """A file, or the file of that name in an artifact folder."""
    return place / name if place.is_dir() else place


def save_json(path: Path, content: object) -> None:
    """Write JSON as the reference does: indented, and readable in any script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run(options: argparse.Namespace) -> str:
    """Do what the command line says; returns what there is to say."""
    if options.command == "splits-from":
        return splits_from(options.train, options.test, options.merged)
    if options.command == "games-from":
        return games_from(options.rows, options.catalog, options.out)
    if options.command == "splits-to":
        return splits_to(options.catalog, options.splits, options.out, options.prefix)
    if options.command == "catalog-to":
        catalog = load_record(locate(options.catalog, "catalog.json"), Catalog)
        save_json(options.out, export_catalog(catalog, options.prefix))
    else:
        games = load_jsonl(locate(options.games, "games.jsonl"), Game)
        save_json(options.out, export_retrieval(games, options.prefix))
    return f"{options.out}\n"


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        sys.stdout.write(run(parse_arguments(arguments)))
    except (LewisError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
