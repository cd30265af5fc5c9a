"""The settings of a whole run: one file, one model, every flow reads the same."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, GetJsonSchemaHandler, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lewis_core.config.analyses import AnalysesConfig
from lewis_core.config.base import FrozenConfig, Runtime
from lewis_core.config.data import (
    CatalogConfig,
    DatasetConfig,
    EncoderConfig,
    GamesConfig,
    MiningConfig,
    SourceConfig,
    SplitConfig,
)
from lewis_core.config.evaluation import DescribeConfig, EvaluationConfig, ReportConfig
from lewis_core.config.gpus import GpuConfig
from lewis_core.config.listener_training import IterateConfig, TrainListenerConfig
from lewis_core.config.processing import ProcessingConfig
from lewis_core.config.reevaluation import ReevaluationConfig
from lewis_core.config.storage import StorageConfig
from lewis_core.config.training import TrainSpeakerConfig

NamesT = TypeVar("NamesT", tuple[str, ...], dict[str, float])


class _StageNames:
    """Lists the stages in the schema, so that forms can offer them; they are not known before it is asked for."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        from lewis_core.pipeline import STAGES

        return {**handler(core_schema), "enum": list(STAGES)}


StageName = Annotated[str, _StageNames()]
"""Name of a stage; checked by :class:`RunConfig`."""


class TrackingConfig(FrozenConfig):
    """MLflow."""

    uri: str | None = None
    """Tracking URI; ``None``: MLFLOW_TRACKING_URI, else a sqlite file in the work folder."""
    experiment: str = "lewis"
    """Experiment name."""
    registered_model: str | None = "lewis-speaker"
    """Name under which adapters are registered; ``None`` registers nothing."""
    registered_listener: str | None = "lewis-listener"
    """The same for adapters of listeners."""


class MonitoringConfig(FrozenConfig):
    """Numbers of running stages for Prometheus; by default nobody is told."""

    textfile_dir: Path | None = None
    """Folder of the node exporter's textfile collector; a run keeps one file in it while it is under way."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port of a small server with ``/metrics``, for as long as the run is under way."""
    host: str = "127.0.0.1"
    """Where that server listens."""


class RunConfig(FrozenConfig):
    """Where a run keeps its files, and how its processes run."""

    name: str = "lewis"
    """Shown in Prefect and MLflow."""
    work_dir: Path = Path("runs/default")
    """Folder of artifacts, logs and the embedded tracking database."""
    cache_dir: Path | None = None
    """Folder of embeddings, and of what is known of photos' files, for runs in any work folder; ``None``: each work
    folder has its own."""
    runtime: Runtime = Runtime()
    """Device, workers, threads."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
    force: tuple[StageName, ...] = ()
    """Stages to run again although their result is there, e.g. ``("train-speaker",)``."""
    service_replicas: int = Field(default=1, ge=1)
    """Processes of each model service, each on a GPU of its own while there are free ones."""
    services: dict[str, tuple[str, ...]] = {}
    """Services that are started elsewhere, by role: ``listener = ["http://gpu-1:9000", "http://gpu-2:9000"]``. Several
    are replicas of each other. They must serve the model that the settings name for the role. A file with their bearer
    token may stand behind a ``#``: ``http://gpu-1:9000#/run/secrets/listener/token``."""
    fan_out: Literal["threads", "ray"] = "threads"
    """Where stages run that are mapped over categories: on this machine's threads, or on a Ray cluster (extra ``ray``).
    The result is the same."""
    ray_address: str | None = None
    """Ray cluster, such as ``ray://head:10001``, whose machines see the work folder and the photos under the same
    paths; ``None``: one is started on this machine for as long as it is needed."""
    listener_start_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait until a model service is ready; for one of ``run.services`` that does not answer at all, at most two
    minutes."""
    stage_timeout_s: float | None = Field(default=None, gt=0)
    """Longest time of one heavy stage; ``None``: no limit."""
    stage_timeouts_s: dict[str, Annotated[float, Field(gt=0)]] = {}
    """The same for single stages, by name, e.g. ``{"train-speaker": 86400}``."""
    training_grace_s: float = Field(default=120.0, ge=0)
    """Longest time that training gets, when it is stopped, to give its step up and save the one before it. If that
    takes longer, the next run goes on from the last checkpoint."""
    storage: StorageConfig = StorageConfig()
    """A second home of finished artifacts, e.g. in S3."""
    gpus: GpuConfig = GpuConfig()
    """GPUs of the machine, and how runs share them."""
    monitoring: MonitoringConfig = MonitoringConfig()
    """Numbers for Prometheus."""
    log_format: Literal["text", "json"] = "text"
    """Form of all logs: of child processes, services and the run (``logs/run-<id>.log``, or ``.jsonl``). ``json``: one
    object a line, with the run's id."""

    @field_validator("force", "stage_timeouts_s")
    @classmethod
    def _are_stages(cls, names: NamesT) -> NamesT:
        from lewis_core.pipeline import STAGES

        if unknown := sorted(set(names) - set(STAGES)):
            raise ValueError(f"no stage is called {', '.join(unknown)}; there are {', '.join(STAGES)}")
        return names


class RunSettings(FrozenConfig):
    """What the settings of every flow have in common."""

    run: RunConfig = RunConfig()
    """Files and processes."""


class ProcessDescriptionsConfig(RunSettings):
    """Everything about a run that judges and refines a file of descriptions."""

    processing: ProcessingConfig
    """The file, and what is done with it."""


class PrepareDataConfig(RunSettings):
    """Everything about a run from photos to the data set; what other flows need may be there, so that they share it."""

    source: SourceConfig
    """The photos."""
    catalog: CatalogConfig = CatalogConfig()
    """Reading them."""
    splits: SplitConfig = SplitConfig()
    """Training and held-out concepts."""
    encoder: EncoderConfig = EncoderConfig()
    """CLIP."""
    mining: MiningConfig = MiningConfig()
    """Look-alikes."""
    games: GamesConfig = GamesConfig()
    """Games."""
    dataset: DatasetConfig = DatasetConfig()
    """Training rows."""
    training: TrainSpeakerConfig | None = None
    """GRPO; the data set has the prompts of its model, without one those for instruction-tuned models."""
    listener_training: TrainListenerConfig | None = None
    """GRPO of the listener; needed by the flows ``train-listener`` and ``iterate``."""
    iterate: IterateConfig = IterateConfig()
    """Rounds of speaker and listener."""
    describe: DescribeConfig = DescribeConfig()
    """Descriptions of held-out concepts."""
    evaluation: EvaluationConfig | None = None
    """The evaluations."""
    analyses: AnalysesConfig = AnalysesConfig()
    """What the flow ``analyse`` does beyond the evaluations."""
    report: ReportConfig = ReportConfig()
    """The HTML report."""
    reevaluation: ReevaluationConfig = ReevaluationConfig()
    """What the flow ``reevaluate-checkpoints`` looks for."""


class PipelineConfig(PrepareDataConfig):
    """Everything about a run, from photos to report."""

    training: TrainSpeakerConfig
    """GRPO."""
    evaluation: EvaluationConfig
    """The evaluations."""
