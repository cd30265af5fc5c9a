"""Nothing from outside is run: no pickles, no remote code, no shells; nothing listens beyond this machine."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for package in ("lewis_core", "tasks", "flows", "deployments", "infra")
    for path in (ROOT / package).rglob("*.py")
)
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Dotted names of all calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """Constant value of a keyword, or ``None``."""
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def problems(source: str) -> list[str]:
    """What a module does that could run what comes from outside."""
    found, tree = [], ast.parse(source)
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
        found += [f"imports {name}" for name in modules if name.split(".")[0] in FORBIDDEN_MODULES]
    for name, call in calls(tree):
        if name in ("eval", "exec", "os.system", "os.popen", "yaml.load", "torch.hub.load"):
            found.append(f"calls {name}")
        if name == "torch.load" and keyword(call, "weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if keyword(call, "trust_remote_code") is True or keyword(call, "shell") is True:
            found.append(f"{name} with remote code or a shell")
        if name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") is True:
            found.append("numpy.load with pickles")
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_from_outside_is_run(source: Path) -> None:
    assert problems(source.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "bad",
    ["import pickle", "from joblib import load", "eval(x)", "torch.load(p)", "f(trust_remote_code=True)",
     "subprocess.run(x, shell=True)", "np.load(p, allow_pickle=True)", "yaml.load(x)"],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(bad: str) -> None:
    assert problems(bad)


def test_libraries_read_checkpoints_without_running_them() -> None:
    """Trainer state (optimiser, scheduler, random numbers) is torch's format: it must be read as weights only."""
    safe_by_file = {
        "transformers/trainer.py": ("True",),
        "open_clip/factory.py": ("weights_only", ""),  # without it for a torch that does not know it
    }
    assert torch.serialization._default_to_weights_only(None)  # what torch does without it
    for name, safe in safe_by_file.items():
        package, _, file = name.partition("/")
        folder = importlib.util.find_spec(package).submodule_search_locations[0]  # type: ignore[union-attr, index]
        tree = ast.parse((Path(folder) / file).read_text(encoding="utf-8"))
        loads = [call for found, call in calls(tree) if found == "torch.load"]
        assert loads
        for call in loads:
            given = next((ast.unparse(k.value) for k in call.keywords if k.arg == "weights_only"), "")
            assert given in safe, ast.unparse(call)


def test_a_pickle_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """What would run when it is unpickled does not run."""
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "it-ran",))  # type: ignore[return-value]

    for save in (
        lambda path: torch.save({"state": Bomb()}, path),
        lambda path: path.write_bytes(pickle.dumps(Bomb(), 2)),
    ):
        save(tmp_path / "optimizer.pt")
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert not (tmp_path / "it-ran").exists()


def test_nothing_listens_beyond_this_machine_by_default() -> None:
    """No address that others can reach stands in the code or in the local stack; containers have their own network."""
    local = [*SOURCES, *(ROOT / "infra").glob("*.sh"), *(ROOT / "deployments").rglob("*.toml"), ROOT / "README.md"]
    for path in local:
        text = path.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text, f"{path.relative_to(ROOT)} names 0.0.0.0"
        for line in text.splitlines():
            if "server start" in line and "prefect" in line.lower() and "--host" in line:
                assert "127.0.0.1" in line or "localhost" in line
