"""The documentation tells of everything that there is, and of nothing that there isn't."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import get_commands
from prometheus_client.parser import text_string_to_metric_families

from config import checks
from gateway import metrics, requestlog

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PAGES = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if "decisions" not in path.parts]

# Read by the supervisor, by Environment itself and by the metrics, not through `env` in the settings.
ELSEWHERE = {"DATA", "DEMO", "PORT", "WEB_WORKERS", "PROMETHEUS_MULTIPROC_DIR"}
READERS = {"text", "number", "integer", "flag", "words", "path", "_networks"}


def rows(page: str) -> dict[str, list[str]]:
    """The tables' rows by the code in their first column: the other columns. A name that stands twice fails."""
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        match = re.match(r"\| `([^`]+)` \|(.*)\|$", line)
        if match:
            assert match[1] not in found, f"{match[1]} is documented twice"
            found[match[1]] = [cell.strip() for cell in match[2].split(" | ")]
    return found


def settings_read() -> dict[str, ast.expr | None]:
    """Every variable that the settings read, with its default."""
    found: dict[str, ast.expr | None] = {}
    sources = [ROOT / "config" / name for name in ("settings.py", "security.py")]
    for node in [node for path in sources for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]:
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            reader = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0].value
            if reader in READERS and isinstance(name, str) and name.isupper():
                found.setdefault(name, node.args[1] if len(node.args) > 1 else None)
    return found


def test_every_setting_has_its_row_and_every_row_its_setting() -> None:
    names = settings_read().keys()
    assert len(names) > 30, "the reader of settings.py has lost its way"
    assert rows(SETTINGS).keys() == names | ELSEWHERE


def test_plain_defaults_are_documented_as_they_are() -> None:
    documented = rows(SETTINGS)
    for name, default in settings_read().items():
        value = default.value if isinstance(default, ast.Constant) else None
        if isinstance(value, int | float | str) and value != "":
            assert documented[name][0] == f"`{value}`", name


def test_settings_that_have_no_default_are_listed_as_required() -> None:
    required = rows(SETTINGS.partition("## Required")[2].partition("\n## ")[0])
    assert required.keys() == {
        *("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "TOKEN_PEPPERS", "ENCRYPTION_KEYS", "PUBLIC_URL")
    }


def test_every_metric_has_its_row_and_every_row_its_metric() -> None:
    families = list(text_string_to_metric_families(metrics.render()[0].decode()))
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert names >= metrics.STORE_GAUGES.keys(), "the store must be up to tell"
    assert {name for name in rows(OPERATIONS) if name.startswith("gateway_")} == names


def test_labels_are_documented() -> None:
    documented = rows(OPERATIONS)
    book = metrics.book()
    for family in (book.requests, book.upstream):
        labels = ", ".join(f"`{label}`" for label in family._labelnames)
        assert documented[f"{family._name}_total"][0] == labels


def test_every_check_has_its_row_and_every_row_its_check() -> None:
    source = Path(checks.__file__).read_text(encoding="utf-8")
    ids = set(re.findall(r'id="(gateway\.[EW]\d{3})"', source))
    ids |= {f"gateway.E{103 + number}" for number in range(len(checks.DURABILITY))}
    assert {name for name in rows(OPERATIONS) if re.match(r"gateway\.[EW]", name)} == ids


def test_every_member_of_the_request_line_is_documented() -> None:
    table = OPERATIONS.partition("## Logs")[2].partition("\n## ")[0]
    documented = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert documented == requestlog.Fields.__annotations__.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = get_commands()
    for name in re.findall(r"manage\.py ([a-z_]+)", text):
        assert name in commands, f"manage.py {name}"
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target


def test_pictures_are_shown_with_words_and_small() -> None:
    shown: dict[str, str] = {}
    for page in PAGES:
        for words, name in re.findall(r"!\[([^\]]*)\]\([^)]*images/([^)]+)\)", page.read_text(encoding="utf-8")):
            shown[name] = words
    pictures = {path.name: path.stat().st_size for path in (ROOT / "docs" / "images").iterdir()}
    taken = re.findall(
        r'Picture\("([a-z-]+)"', (ROOT / "tests" / "screenshots" / "pages.py").read_text(encoding="utf-8")
    )
    assert shown.keys() == pictures.keys() == {f"{name}.png" for name in taken}
    assert all(shown.values()), "whoever can't see them is told what they show"
    assert max(pictures.values()) < 150_000 and sum(pictures.values()) < 1_500_000


def test_the_secrets_of_the_page_are_taken_by_the_settings(tmp_path: Path) -> None:
    script = re.search(r"```bash\n(install -d .*?)```", OPERATIONS, re.DOTALL)
    assert script
    subprocess.run(["bash", "-euc", script[1]], cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    secrets = tmp_path / "secrets"
    files = {f"{name.upper()}_FILE": str(secrets / name) for name in ("secret_key", "token_peppers", "encryption_keys")}
    environment = {name: value for name, value in os.environ.items() if f"{name}_FILE" not in files}
    environment |= {**files, "DATABASE_URL_FILE": str(secrets / "database_url"), "PUBLIC_URL": "https://g.example"}
    del environment["DATABASE_URL"]
    finished = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "check", "--deploy"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("System check identified no issues")
    assert (secrets / "postgres_password").read_text().strip() in (secrets / "database_url").read_text()
    assert secrets.stat().st_mode & 0o777 == 0o700


def test_control_a_row_that_is_missing_is_noticed() -> None:
    with_one_less = re.sub(r"\| `SHARDS` .*\n", "", SETTINGS)
    assert rows(with_one_less).keys() != settings_read().keys() | ELSEWHERE
    with pytest.raises(AssertionError, match="documented twice"):
        rows(SETTINGS + "\n| `SHARDS` | `16` | Again. |")
