"""The house rules that a reader relies on, read from the source itself."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.alone import LONGEST_FIRST

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("config", "tokens", "usage", "gateway")
MAY_IMPORT = {
    "config": {"config"},
    "tokens": {"tokens"},
    "usage": {"usage", "tokens"},
    "gateway": {"gateway", "usage", "tokens"},
    "sandbox": {"sandbox"},
}
SHARED = {"config.redis", "config.celery", "config.checks", "config.workerhealth", "config.addresses"}
SHARED |= {"config.throttling", "config.signin", "config.encryption", "config.requestids"}
ONE_IMPORTER = {
    "httpx": {"gateway/upstream.py"},
    "django_ratelimit": {"config/throttling.py"},
    # What calls addresses that customers choose stands in one place; the supervisor asks its own server only.
    "http.client": {"usage/alerting/sending.py", "config/supervisor/stack.py"},
}
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py"}
FILE_LINES = 300
FUNCTION_LINES = 40

# The seam that puts the parts together: the ASGI entry and the URLs name what they route to.
ENTRY_POINTS = {"config/asgi.py", "config/urls.py"}


def sources(*folders: str) -> Iterator[tuple[str, ast.Module, str]]:
    """Every module of these folders but migrations: (path, tree, text)."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "migrations" not in path.parts:
                yield read(path)


@cache  # every rule reads them all
def read(path: Path) -> tuple[str, ast.Module, str]:
    text = path.read_text(encoding="utf-8")
    return str(path.relative_to(ROOT)), ast.parse(text), text


def imported(tree: ast.AST, path: str) -> Iterator[tuple[str, ast.stmt]]:
    """The absolute names of modules that a tree imports; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def wrong_directions(path: str, tree: ast.Module) -> list[str]:
    """Imports of our own parts that the part of `path` may not know."""
    part = path.split("/")[0]
    found = []
    for name, node in imported(tree, path):
        other = name.split(".")[0]
        ours = other in {*MAY_IMPORT, "tests", "bench"}
        shared = part != "sandbox" and any(name == module or name.startswith(f"{module}.") for module in SHARED)
        if ours and other not in MAY_IMPORT[part] and not shared and path not in ENTRY_POINTS:
            found.append(f"{path}:{node.lineno} imports {name}")
    return found


def hidden_imports(path: str, tree: ast.Module) -> list[str]:
    """Imports within functions."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        f"{path}:{node.lineno} imports within {function.name}"
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def is_of(name: str, library: str) -> bool:
    """Whether an imported name is of that library."""
    return name == library or name.startswith(f"{library}.")


def second_importers(path: str, tree: ast.Module) -> list[str]:
    """Imports of a library that another module has to itself."""
    return [
        f"{path}:{node.lineno} imports {library}"
        for name, node in imported(tree, path)
        for library, modules in ONE_IMPORTER.items()
        if is_of(name, library) and path not in modules
    ]


def too_long(path: str, tree: ast.Module, text: str) -> list[str]:
    """Modules and functions that don't fit on what a reader can hold."""
    lines = text.count("\n")
    found = [f"{path} has {lines} lines"] if lines > FILE_LINES else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines(node)
            if length > FUNCTION_LINES:
                found.append(f"{path}:{node.lineno} {node.name} has {length} lines")
    return found


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's docstring: explaining well must not count against it."""
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1 if ast.get_docstring(node) else 0


def all_findings(path: str, text: str) -> list[str]:
    """Every rule at once, for the controls."""
    tree = ast.parse(text)
    return [
        *wrong_directions(path, tree),
        *hidden_imports(path, tree),
        *second_importers(path, tree),
        *too_long(path, tree, text),
    ]


def test_imports_go_one_way() -> None:
    findings = [line for path, tree, _ in sources(*MAY_IMPORT) for line in wrong_directions(path, tree)]
    assert findings == []


def test_no_import_hides_in_a_function() -> None:
    findings = [line for path, tree, _ in sources(*PRODUCT, "sandbox", "tests") for line in hidden_imports(path, tree)]
    assert findings == []


def test_one_module_imports_httpx_and_one_django_ratelimit() -> None:
    findings = [line for path, tree, _ in sources(*PRODUCT) for line in second_importers(path, tree)]
    assert findings == []
    for library, modules in ONE_IMPORTER.items():
        for module in modules:
            names = [name for name, _ in imported(ast.parse((ROOT / module).read_text()), module)]
            found = any(is_of(name, library) for name in names)
            assert found, f"{module} no longer imports {library}: name the one that does"


def test_modules_and_functions_stay_short() -> None:
    findings = [line for path, tree, text in sources(*PRODUCT, "sandbox") for line in too_long(path, tree, text)]
    assert findings == []


def test_the_files_that_begin_first_exist() -> None:
    assert [name for name in LONGEST_FIRST if not (ROOT / "tests" / f"{name}.py").exists()] == []


def test_heavy_libraries_wait_for_the_file_that_needs_them() -> None:
    """pyarrow and typst would cost each web and worker process 50 MB: the modules that import them are loaded late."""
    late = {"usage.exporting.parquet", "usage.exporting.statement"}
    for path, tree, _ in sources(*PRODUCT):
        names = {name for name, _ in imported(tree, path)}
        module = path.removesuffix(".py").replace("/", ".")
        assert not (names & late), f"{path} loads them when it starts"
        assert module in late or not any(is_of(name, heavy) for name in names for heavy in ("pyarrow", "typst")), path


def test_no_module_is_named_for_leftovers() -> None:
    names = {path for path, _, _ in sources(*PRODUCT, "sandbox", "tests")}
    assert [name for name in names if Path(name).name in FORBIDDEN_NAMES] == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("tokens/broken.py", "from usage import ledger\n"),
        ("tokens/broken.py", "import gateway.views\n"),
        ("usage/broken.py", "from gateway.models import Model\n"),
        ("usage/broken.py", "from config import supervisor\n"),
        ("gateway/broken.py", "from sandbox import server\n"),
        ("gateway/broken.py", "import tests.stack\n"),
        ("sandbox/broken.py", "from config.redis import store\n"),
        ("config/broken.py", "from gateway import views\n"),
        ("gateway/broken.py", "import httpx\n"),
        ("gateway/broken.py", "from httpx import Request\n"),
        ("usage/broken.py", "from django_ratelimit.core import get_usage\n"),
        ("usage/broken.py", "from http.client import HTTPSConnection\n"),
        ("usage/broken.py", "def run():\n    import json\n    return json\n"),
        ("usage/broken.py", "def run():\n" + "    a = 1\n" * FUNCTION_LINES),
        ("usage/broken.py", "a = 1\n" * (FILE_LINES + 1)),
    ],
)
def test_control_each_rule_catches_what_breaks_it(path: str, text: str) -> None:
    assert len(all_findings(path, text)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("gateway/fine.py", "from tokens import directory\nfrom usage.ledger import record\n"),
        ("usage/fine.py", "from config.redis import store\nfrom config.celery import app\n"),
        ("gateway/upstream.py", "import httpx\n"),
    ],
)
def test_control_what_is_allowed_passes(path: str, text: str) -> None:
    assert all_findings(path, text) == []
