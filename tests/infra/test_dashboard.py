"""The Grafana dashboard asks for numbers that the services really have."""

import re
import time
from collections.abc import Iterator

import promql_parser
import pytest
import yaml
from fastapi.testclient import TestClient

from lewis_core.config.pipeline import MonitoringConfig
from lewis_core.listener.schemas import CacheStatistics
from lewis_core.listener.service import create_app
from lewis_core.testing import FakeModel
from tasks.prometheus import RunGauges
from tests.infra.manifests import INFRA, dashboard

OF_PROMETHEUS = {"up"}
HISTOGRAM = ("_bucket", "_sum", "_count")


def queries() -> Iterator[tuple[str, str]]:
    """Title of a panel and one of its queries, with Grafana's variables replaced."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "1m")
            yield panel["title"], re.sub(r"\$(instance|run)\b", ".*", expression)


def metrics_in(expression: promql_parser.Expr) -> set[str]:
    """Names of all series that a query reads."""
    return set(re.findall(r"\b(?:lewis_\w+|up)\b(?=\{|\[|$|\))", expression.prettify()))


class Keeps(FakeModel):
    """A model that keeps vision features, keys and values."""

    def vision_cache(self) -> CacheStatistics:
        """Its state."""
        return CacheStatistics(entries=1, num_bytes=8, max_bytes=16, hits=1, misses=1)

    prompt_cache = vision_cache


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Type of every metric that the service and a run show, by name."""
    gauges = RunGauges(
        MonitoringConfig(textfile_dir=tmp_path_factory.mktemp("metrics")), "pocket", "id", "full-pipeline"
    )
    gauges.metrics("train-speaker", "", {"reward": 0.5}, 1)
    gauges.progress("train-speaker", "", 1, 2, "steps")
    gauges.finished("embed-images", "", 1.0)
    file = next(tmp_path_factory.getbasetemp().glob("metrics*/*.prom"))
    of_runs = file.read_text(encoding="utf-8")
    gauges.close()
    with TestClient(create_app(Keeps, model_name="fake")) as client:
        deadline = time.monotonic() + 120
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        text = client.get("/metrics").text
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text + of_runs, flags=re.MULTILINE))


def base_name(metric: str, served: dict[str, str]) -> str:
    """A histogram's parts belong to the histogram."""
    base = next((metric.removesuffix(end) for end in HISTOGRAM if metric.endswith(end)), metric)
    return base if served.get(base) == "histogram" else metric


def test_every_query_can_be_parsed_and_reads_numbers_that_exist(served: dict[str, str]) -> None:
    seen = set()
    for title, query in queries():
        expression = promql_parser.parse(query)
        found = metrics_in(expression)
        assert found, f"{title}: {query}"
        for metric in found - OF_PROMETHEUS:
            assert base_name(metric, served) in served, f"{title}: nobody serves {metric}"
        seen |= found
    assert {base_name(metric, served) for metric in seen - OF_PROMETHEUS} == set(served), "show every metric somewhere"


def test_counters_are_read_as_rates_and_gauges_as_they_are(served: dict[str, str]) -> None:
    for title, query in queries():
        for metric in metrics_in(promql_parser.parse(query)) - OF_PROMETHEUS:
            is_rate = re.search(rf"rate\({metric}\b", query) is not None
            kind = served[base_name(metric, served)]
            assert is_rate == (kind in {"counter", "histogram"}), f"{title}: {query}"


def test_a_wrong_query_is_seen() -> None:
    with pytest.raises(ValueError, match=r"\w"):
        promql_parser.parse("sum(rate(lewis_requests_total[1m])")


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"], panel["title"]


def test_the_data_source_is_the_stacks_prometheus() -> None:
    [source] = yaml.safe_load((INFRA / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    compose = (INFRA / "compose/compose.yaml").read_text(encoding="utf-8")
    assert source["url"] == "http://prometheus:9090"
    assert "\n  prometheus:\n" in compose
    [variable] = [one for one in dashboard()["templating"]["list"] if one["type"] == "datasource"]
    assert variable["current"]["value"] == source["uid"]
