"""A work folder in which the smallest pipeline runs by its command line."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
SETTINGS = "deployments/settings/pocket_smoke.toml"
STEPS = "training.max_steps=12"


@dataclass(frozen=True)
class Workplace:
    """A work folder that several runs share."""

    folder: Path

    def command(self, *overrides: str) -> list[str]:
        """Command line of the smoke pipeline in this folder."""
        options = [f"run.work_dir={self.folder}", *overrides]
        return [
            *(sys.executable, "-m", "flows", "full-pipeline", SETTINGS),
            *(word for option in options for word in ("--set", option)),
        ]

    def run(self, *overrides: str) -> dict[str, Any]:
        """Run the pipeline; returns its last line."""
        done = subprocess.run(self.command(*overrides), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-6000:]
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def processes(self) -> list[psutil.Process]:
        """Everything that runs with this folder on its command line: stages and their guards, model services."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(str(self.folder) in word for word in process.info["cmdline"] or [])
        ]
