"""What each flow is called on the command line, what it does, and which tables of a settings file it reads.

Written out here so that ``--help`` is instant; a test compares it with the settings' models.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

DATA = ("run", "source", "catalog", "splits", "encoder", "mining", "games", "dataset")
"""Tables that turn photos into games."""
EVALUATION = ("training", "describe", "evaluation")
"""Tables that say which speakers describe, and who is asked about it; what a speaker was trained with names it."""
NEEDED = ("source", "training", "evaluation")
"""Tables that a file must have, so that one serves all flows."""
DEFAULTS = "All of them have defaults."
OUTPUT = "The last line on standard output is one JSON object with the results."
AGAIN = "\nThe same command a second time computes nothing again; after an interruption it goes on where it stopped."
WIDTH = 100
"""Columns of a help page."""
POCKET = "deployments/settings/pocket.toml"


@dataclass(frozen=True)
class Command:
    """A flow as its user knows it."""

    summary: str
    """What it does, in a line."""
    story: str
    """What it does, in a sentence or two."""
    reads: tuple[str, ...]
    """Tables of the settings file that change what it does, in the order of their use."""
    needs: tuple[str, ...] = NEEDED
    """Tables that the file must have."""
    example: str = POCKET
    """Settings file and options of an example that works in a fresh clone."""


FLOWS = {
    "full-pipeline": Command(
        "everything: photos, training, evaluation, report",
        "Reads the photos, mines look-alikes, trains the speaker against the listener, lets the base and the trained "
        "speaker describe things that training has never seen, evaluates the descriptions, and writes the report.",
        (*DATA, *EVALUATION, "analyses", "report"),
    ),
    "prepare-data": Command(
        "photos to the training data set",
        "Reads the photos into a catalog, splits its concepts, embeds the photos with CLIP, mines look-alikes, and "
        "writes the games as a Hugging Face data set. Nothing is trained; of [training] only the model's prompts are "
        "read.",
        (*DATA, "training"),
        ("source",),
    ),
    "train-speaker": Command(
        "prepare the data and train the speaker",
        "Prepares the data unless that was done, and trains the speaker with GRPO: the listener's success is its "
        "reward.",
        (*DATA, "training"),
    ),
    "train-listener": Command(
        "prepare the data and train the listener on yes-or-no questions",
        "Prepares the data unless that was done, and trains a listener with GRPO on yes-or-no questions about photos, "
        "or about the base speaker's descriptions.",
        (*DATA, "training", "listener_training"),
        (*NEEDED, "listener_training"),
        "deployments/settings/pocket_iterate.toml",
    ),
    "iterate": Command(
        "rounds: train the speaker, then the listener, then the speaker against the new listener",
        "Prepares the data unless that was done, and trains speaker and listener in turn, iterate.rounds times.",
        (*DATA, "training", "listener_training", "iterate"),
        (*NEEDED, "listener_training"),
        "deployments/settings/pocket_iterate.toml",
    ),
    "describe": Command(
        "describe held-out concepts with every speaker there is",
        "Lets the base, the trained speaker (if one was trained with these settings) and those of evaluation.speakers "
        "describe the held-out concepts. Trains nothing.",
        (*DATA, *EVALUATION),
    ),
    "evaluate": Command(
        "evaluate every speaker there is and build the report",
        "Describes the held-out concepts unless that was done, evaluates the descriptions of every speaker (the base, "
        "the trained one if there is one, those of evaluation.speakers), and writes the report. Trains nothing.",
        (*DATA, *EVALUATION, "analyses", "report"),
    ),
    "reevaluate-checkpoints": Command(
        "evaluate every checkpoint that was not evaluated yet, and choose the champion",
        "Evaluates the versions of the registered model, and adapters below reevaluation.watch, that were not "
        "evaluated with these settings yet, compares them with the champion, and promotes what is better.",
        (*DATA, *EVALUATION, "reevaluation"),
    ),
    "analyse": Command(
        "look behind the evaluations: uncertainty, false claims, harder games, examples",
        "Analyses the evaluations of every speaker: uncertainty, false claims, larger games and bags of look-alikes, "
        "examples. Evaluates what was not evaluated yet; trains nothing.",
        (*DATA, *EVALUATION, "analyses"),
    ),
    "process-descriptions": Command(
        "find state and location in a file of descriptions, and take them out",
        "Judges which descriptions of a file talk about a state or a location, and, if processing.refine asks for it, "
        "writes a file without those parts and judges it again.",
        ("run", "processing"),
        ("processing",),
        "deployments/settings/processing_pocket.toml \\\n"
        '      --set processing.file="$(ls runs/pocket/store/describe-concepts/*/database.json | head -n 1)"',
    ),
    "build-pocket": Command(
        "make the embedded pocket models from scratch",
        "Trains the three small models that come with the project; about ten minutes on one large GPU.",
        ("base_stream", "base", "clip", "listener_stream", "listener"),
        (),
        "deployments/settings/build_pocket.toml",
    ),
}


def in_brackets(tables: Sequence[str]) -> str:
    """Names of tables as a settings file has them."""
    return ", ".join(f"[{table}]" for table in tables)


def advise(name: str) -> str:
    """What ``--help`` says below a flow's options: the tables it reads, and an example."""
    command = FLOWS[name]
    tables = textwrap.fill(in_brackets(command.reads), WIDTH)
    needed = f"The file must have {in_brackets(command.needs)}; the rest has defaults." if command.needs else DEFAULTS
    parts = [
        f"tables of the settings file that it reads:\n{tables}\n{needed}",
        f"example:\npython -m flows {name} {command.example}",
    ]
    indented = "\n\n".join(part.replace("\n", "\n  ") for part in parts)
    return f"{indented}\n\n{OUTPUT}{AGAIN if 'run' in command.reads else ''}"
