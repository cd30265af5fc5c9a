"""Run the smoke pipeline once, and write down what each stage was asked, so that each can be run again alone.

python -m infra.robustness.warm FOLDER
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lewis_core.stages import stage_key

SETTINGS = "deployments/settings/pocket_smoke.toml"


def record_stages(folder: Path) -> None:
    """Make every stage that is asked for leave its specification in a folder."""
    from tasks import stage as stages
    from tasks.launch import LaunchSpec

    folder.mkdir(parents=True, exist_ok=True)
    perform = stages.perform_stage

    def perform_and_record(stage: Any, arguments: Mapping[str, object], call: Any) -> Any:
        found = perform(stage, arguments, call)
        values: dict[str, object] = {"runtime": call.run.config.run.runtime}
        if call.run.data_root is not None:
            values["data_root"] = call.run.data_root
        if call.service is not None:
            values["service_url"] = "http://127.0.0.1:1"
        key = stage_key(stage, arguments)
        spec = LaunchSpec(
            stage=stage.name,
            function=stage.function,
            asks=stage.asks,
            key=key,
            store=call.run.store.root,
            arguments=stages.to_json(arguments),
            runtime=stages.to_json(values),
        )
        (folder / f"{stage.name}-{key}.json").write_text(spec.model_dump_json(indent=1), encoding="utf-8")
        return found

    stages.perform_stage = perform_and_record


def main(folder: Path) -> int:
    """Run the pipeline into a folder."""
    from flows.__main__ import main as run

    record_stages(folder / "specs")
    return run(["full-pipeline", SETTINGS, "--set", f"run.work_dir={folder}"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
