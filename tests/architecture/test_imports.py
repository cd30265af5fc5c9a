"""Who may import whom, and what light code must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "lewis_core": {"prefect", "mlflow", "tasks", "flows", "deployments"},
    "tasks": {"flows", "deployments"},
    "flows": {"deployments", "mlflow"},
    "deployments": set(),
}
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "open_clip", "matplotlib", "prefect", "mlflow")
LIGHT = (
    "lewis_core.errors",
    "lewis_core.records",
    "lewis_core.config.pipeline",
    "lewis_core.artifacts",
    "lewis_core.stages",
    "lewis_core.pipeline",
    "lewis_core.reporting",
    "lewis_core.prompts",
    "lewis_core.descriptions.parse",
    "lewis_core.listener.schemas",
    "lewis_core.listener.client",
    "lewis_core.evaluation.game",
    "lewis_core.evaluation.identification",
    "lewis_core.evaluation.recognition",
    "lewis_core.evaluation.vqa",
    "lewis_core.evaluation.descriptions",
    "lewis_core.evaluation.compare",
    "lewis_core.evaluation.metrics",
    "lewis_core.evaluation.analyses.bags",
    "lewis_core.evaluation.analyses.examples",
    "lewis_core.evaluation.analyses.hallucination",
    "lewis_core.evaluation.analyses.uncertainty",
    "lewis_core.evaluation.analyses.visual",
    "lewis_core.descriptions.formats",
    "flows.settings",
    "flows.__main__",
    "tasks.launch",
    "tasks.processes",
    "tasks.services",
)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_packages(source: Path) -> set[str]:
    """Top-level names of all imports, lazy ones included."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_imports_point_inwards(layer: str) -> None:
    offenders = {
        str(source.relative_to(ROOT)): sorted(found)
        for source in sources(layer)
        if (found := imported_packages(source) & FORBIDDEN[layer])
    }
    assert offenders == {}


def test_only_the_guard_s_neighbours_start_processes() -> None:
    """A process that is not guarded outlives a killed flow, unless it ends with the socket that it listens to."""
    users = {
        str(source.relative_to(ROOT))
        for package in FORBIDDEN
        for source in sources(package)
        if "subprocess" in imported_packages(source)
    }
    assert users == {"tasks/guard.py", "tasks/processes.py", "lewis_core/data/readers.py"}


def test_light_code_loads_nothing_heavy() -> None:
    code = f"""
import importlib, sys
for name in {LIGHT!r}:
    importlib.import_module(name)
    if found := sorted(set({HEAVY!r}) & set(sys.modules)):
        sys.exit(f"{{name}} loads {{', '.join(found)}}")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_processes_that_open_photos_start_fast() -> None:
    code = (
        "import lewis_core.data.workers, lewis_core.data.contact_sheet, sys\n"
        "sys.exit(', '.join({'numpy', 'pydantic'} & set(sys.modules)) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"each process loads {result.stderr}"


def test_the_guard_needs_the_standard_library_only() -> None:
    assert imported_packages(ROOT / "tasks/guard.py") <= set(sys.stdlib_module_names)


def test_no_process_dependent_hash() -> None:
    """Python's hash() of text differs in every process; seeds and keys come from sha256."""
    offenders = [
        f"{source.relative_to(ROOT)}:{node.lineno}"
        for package in FORBIDDEN
        for source in sources(package)
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hash"
    ]
    assert offenders == []
