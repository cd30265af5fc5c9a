"""Settings of the data stages: where photos come from, splits, retrieval, games, data set."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lewis_core.config.base import FrozenConfig
from lewis_core.data.limits import MAX_IMAGE_PIXELS
from lewis_core.pocket.config import PocketWorldConfig

LayoutName = Literal["perva", "yollava", "myvlm", "dreambooth", "this-is-my", "folders", "flat"]
"""Data sets as they are published; ``folders``: your own, by category; ``flat``: your own, without categories."""


class FolderSource(FrozenConfig):
    """Photos of your own (``<root>/{train,test}/<category>/<concept>/<n>.jpg`` and others), or a published data set."""

    type: Literal["folder"] = "folder"
    """Photos in a folder."""
    root: Path
    """Folder that holds ``train`` and ``test`` (or ``train_`` and ``test_``), or the categories or concepts themselves;
    see ``catalog.layout``."""


class PocketSource(FrozenConfig):
    """Photos rendered from the procedural pocket world."""

    type: Literal["pocket"] = "pocket"
    """Photos that are rendered."""
    world: PocketWorldConfig = PocketWorldConfig()
    """What is rendered."""


SourceConfig = Annotated[FolderSource | PocketSource, Field(discriminator="type")]


class CatalogConfig(FrozenConfig):
    """What counts as an image, and how much may be wrong with a folder."""

    layout: Literal["auto", LayoutName] = "auto"
    """How the photos' folders are arranged; ``auto`` finds out and says why."""
    listing: str | None = None
    """Name of a file in the data root, in the reference's catalog format, that says which image is whose and in which
    split; the folders' arrangement then says nothing."""
    flat_category: Literal["all", "word"] = "all"
    """Data sets without categories: put all concepts into one called ``all``, as the published protocols do, or make a
    category of each word for a kind, e.g. ``person`` and ``building``."""
    train_images: int | None = Field(default=None, ge=1)
    """Unsplit layouts only: images of each concept kept for training, chosen by seed; the rest is for testing."""
    max_quarantine_frac: float = Field(default=0.05, ge=0, le=1)
    """More unusable images than this share stop the run."""
    max_image_pixels: int = Field(default=MAX_IMAGE_PIXELS, ge=1, le=MAX_IMAGE_PIXELS)
    """Larger images are set aside (decompression bombs)."""
    caption_questions: bool = False
    """Data sets with captions: ask which of two captions is about a photo. Such questions are about the photo and not
    about the memory: let ``evaluation.vqa.show`` show the photo."""
    shared_images: Literal["report", "set-aside"] = "report"
    """What is done with a picture that lies in the folders of several concepts: it is listed only, or it is also taken
    from all of them. One that training and held-out concepts share stops the run when concepts are split."""
    category_words: dict[str, str] = {}
    """Word used in prompts for a category folder, e.g. ``{tro_bag = "trolley bag"}``; added to the built-in ones."""
    seed: int = 23
    """Seed of the per-concept choice in unsplit layouts."""


class SubsetConfig(FrozenConfig):
    """Few of the training concepts, with a wanted number of photos: a study of how much data is needed."""

    num_concepts: int = Field(default=30, ge=1)
    """How many concepts are trained on."""
    train_images: int = Field(default=1000, ge=1)
    """How many training photos they have together, as closely as possible."""
    cover_categories: bool = True
    """Take at least one concept of every category that has training concepts."""


class SplitConfig(FrozenConfig):
    """Which concepts are trained on and which are held out."""

    concept_frac: float = Field(default=0.5, gt=0, lt=1)
    """Share of a category's concepts that is trained on (rounded up)."""
    min_concepts: int = Field(default=4, ge=2)
    """Categories with fewer concepts are held out entirely."""
    training: tuple[str, ...] = ()
    """Concepts to train on, ``category/name``; empty: chosen by seed."""
    held_out: tuple[str, ...] = ()
    """Concepts held out; empty: all that are not trained on. Those in neither list are not used."""
    subset: SubsetConfig | None = None
    """Train on some of the training concepts only; the others are not used."""
    shared_images: Literal["stop", "report"] = "stop"
    """What is done when a picture is of a training concept and of a held-out one."""
    seed: int = 23
    """Seed of the choice."""


class EncoderConfig(FrozenConfig):
    """The CLIP model that finds look-alikes and answers retrieval queries (open_clip)."""

    model: str = "ViT-L-14-336"
    """open_clip architecture, ``local-dir:<folder>``, or ``pocket:clip``."""
    pretrained: str | None = "openai"
    """open_clip tag, or a file of weights; ``None`` for local folders."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the encoder's forward pass; similarities are always computed in double precision."""
    batch_size: int = Field(default=64, ge=1)
    """Photos of one forward pass. Every pass has this size, because it decides the last bits of an embedding; only when
    a GPU's memory runs out it is halved."""


class MiningConfig(FrozenConfig):
    """How distractors and targets are chosen for each query photo."""

    strategy: Literal["hard", "nearest-image", "random"] = "hard"
    """``hard``: of the concepts that are nearest on average, the best image of each; ``nearest-image``: each concept's
    best image; ``random``: any image of any concept of the category."""
    shortlist: int = Field(default=8, ge=1)
    """``hard`` and easy queries: concepts that are nearest on average, of which images are taken."""
    pool: int = Field(default=8, ge=1)
    """Distractors, and targets, kept per query, the best first; games draw theirs from these. ``num_candidates - 1``
    makes every game the hardest one."""
    positive: Literal["hardest", "random", "easiest"] = "random"
    """Which other view of the concept is the target: least similar, any, or most similar to the query."""
    easy_frac: float = Field(default=0, ge=0, le=1)
    """Share of queries with easy distractors: of each concept on the shortlist the least similar image. An independent
    draw with the same share makes the most similar view the target."""
    cross_category_frac: float = Field(default=0, ge=0, le=1)
    """Share of queries whose distractors are any photos of other categories."""
    negatives_frac: float = Field(default=0, ge=0, le=1)
    """Share of queries whose distractors are the nearest negatives, of the concept first (such as LAION images)."""
    mix: Literal["query", "distractor"] = "query"
    """What the shares are of: queries, each with distractors of one kind; or distractors, so that a game has several
    kinds."""
    seed: int = 23
    """Seed of random choices."""

    @model_validator(mode="after")
    def _leave_a_share(self) -> "MiningConfig":
        if (total := self.easy_frac + self.cross_category_frac + self.negatives_frac) > 1:
            raise ValueError(
                f"mining.easy_frac, cross_category_frac and negatives_frac add up to {total:g}, more than 1; the rest "
                "follows mining.strategy"
            )
        return self


class GamesConfig(FrozenConfig):
    """How many games are built, and how wide they are."""

    retrieval_list: str | None = None
    """Name of a file in the data root, in the reference's format of retrieval lists: its games are played, and none are
    mined; the other settings here but ``max_degenerate_frac`` say nothing then."""
    num_candidates: int = Field(default=3, ge=2, le=64)
    """K: the target and K - 1 distractors."""
    games_per_concept: int | None = Field(default=None, ge=1)
    """Games of each training concept (each a different query photo, repeating with other candidates when more are
    asked for than there are photos); ``None``: one per photo."""
    max_degenerate_frac: float = Field(default=0.2, ge=0, le=1)
    """More queries than this share without a game (too few distractors, no second view) stop the run."""
    seed: int = 23
    """Seed of the candidates' order and of the draw from the pool."""


class DatasetConfig(FrozenConfig):
    """The Hugging Face data set made from the games."""

    role: Literal["speaker", "listener"] = "speaker"
    """Whose training rows are built: ``speaker``: games, one photo to describe; ``listener``: pairs of photos, and
    whether they show the same thing."""
    embed_images: bool = False
    """Store the photos' bytes in the data set instead of their paths (of games: the query photo)."""
    max_shard_mb: int = Field(default=500, ge=1)
    """Largest file of the data set, in MB."""
    same_frac: float = Field(default=0.5, ge=0, le=1)
    """Listener: share of pairs that show the same thing."""
    cross_category_frac: float = Field(default=0.0, ge=0, le=1)
    """Listener: share of the other pairs whose second photo is of another category, and not of a look-alike. The
    reference has 0.4."""
    seed: int = 23
    """Listener: seed of the draws."""
