"""What a reader may rely on everywhere: docstrings, types, short functions, no machine's paths."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("lewis_core", "tasks", "flows", "deployments")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES, MEDIAN_FUNCTION_LINES = 400, 60, 12
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Public functions of a module, and public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for item in node.body:
                if isinstance(item, Function) and not item.name.startswith("_"):
                    yield f"{node.name}.{item.name}", item


def body_lines(function: Function) -> int:
    """Lines of a function without its docstring."""
    docstring = ast.get_docstring(function, clean=False)
    length = (function.end_lineno or function.lineno) - function.lineno + 1
    return length - (docstring.count("\n") + 1 if docstring else 0)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_documented_typed_and_short(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
    assert text.count("\n") <= MAX_FILE_LINES
    for name, function in public_functions(tree):
        assert ast.get_docstring(function), f"{name} has no docstring"
    for function in functions(tree):
        assert function.returns is not None or function.name == "__init__", f"{function.name} has no return type"
        assert body_lines(function) <= MAX_FUNCTION_LINES, f"{function.name} is too long"


def test_the_usual_function_is_short() -> None:
    lengths = [body_lines(f) for source in SOURCES for f in functions(ast.parse(source.read_text(encoding="utf-8")))]
    assert median(lengths) <= MEDIAN_FUNCTION_LINES


def test_nothing_names_a_machine_s_folders() -> None:
    """Paths of the machine a file was written on do not exist on the reader's."""
    wrong = re.compile(r"(?<![\w.])/(work|root|home)/")
    files = [path for folder in (*PACKAGES, "infra") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = [path for path in files if path.suffix in {".py", ".toml", ".yaml", ".sh", ".md", ".txt", ".j2"}]
    assert [str(path.relative_to(ROOT)) for path in texts if wrong.search(path.read_text(encoding="utf-8"))] == []
