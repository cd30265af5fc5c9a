"""The same stage on threads and on a Ray cluster of this machine; left out where the extra ``ray`` is not installed."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, temporary_settings

from lewis_core.artifacts import PROVENANCE, ArtifactRef
from lewis_core.config.pipeline import PipelineConfig
from lewis_core.errors import CatalogError, ConfigError
from lewis_core.stages import Stage
from tasks.fan_out import open_runner
from tasks.run import pipeline_run
from tests.orchestration.stand_ins import CountConfig

needs_ray = pytest.mark.skipif(importlib.util.find_spec("prefect_ray") is None, reason="the extra ray is not installed")
WRITE = Stage("write", "tests.orchestration.stand_ins:write")
REFUSE = Stage("refuse-one", "tests.orchestration.stand_ins:refuse_one")


def on(config: PipelineConfig, fan_out: str, work_dir: Path, **more: str) -> PipelineConfig:
    run = config.run.model_copy(update={"fan_out": fan_out, "work_dir": work_dir, **more})
    return config.model_copy(update={"run": run})


def contents(refs: list[ArtifactRef]) -> list[dict[str, bytes]]:
    return [
        {path.name: path.read_bytes() for path in sorted(ref.path.iterdir()) if path.name != PROVENANCE} for ref in refs
    ]


@flow
def write_many(config: PipelineConfig, log: str) -> tuple[list[ArtifactRef], dict[str, object]]:
    with pipeline_run(config, "write-many") as run:
        run.data_root = Path(log).parent
        refs = run.map(WRITE, over="name", values=["b", "a", "ü x"], config=CountConfig(log=log))
        return refs, {**run.facts(), "titles": sorted(run.wall_s)}


@pytest.fixture
def quiet_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers use the Prefect server of this process, as under the command line; nothing of Ray is left."""
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    server = SubprocessASGIServer()
    was_running = server.running
    server.start()
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield
    ray.shutdown()
    if not was_running:
        server.stop()


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("quiet_ray")
def test_ray_gives_the_same_bytes_as_threads(config: PipelineConfig, tmp_path: Path) -> None:
    log = tmp_path / "names.log"
    threads, _ = write_many(on(config, "threads", tmp_path / "threads"), str(log))
    log.unlink()
    remote = on(config, "ray", tmp_path / "ray")
    made, facts = write_many(remote, str(log))
    assert contents(made) == contents(threads)
    assert [ref.key for ref in made] == [ref.key for ref in threads]
    assert sorted(log.read_text().split("\n")) == ["", "a", "b", "ü x"]
    assert (facts["computed"], facts["titles"]) == (3, ["write a", "write b", "write ü x"])
    again, facts = write_many(remote, str(log))
    assert again == made
    assert (facts["computed"], facts["cache_hits"]) == (0, 3)

    @flow
    def refuse() -> None:
        with pipeline_run(remote, "refuse") as run:
            run.map(REFUSE, over="name", values=["good", "bad"], config=CountConfig())

    with pytest.raises(CatalogError, match="no photos of bad"):
        refuse()


def test_without_ray_the_error_says_what_to_install(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prefect_ray", None)
    with (
        pytest.raises(ConfigError, match=r'needs the extra "ray": pip install "lewis\[ray\]"'),
        open_runner(config.run),
    ):
        pass
