"""README and the pages about the API, the architecture and administration say what is true.

The operator's pages have their tests in test_docs.py.
"""

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.core.management.base import CommandError, CommandParser
from django.urls import Resolver404, get_resolver

from gateway import errors, headers, validation
from tokens.admission import keys
from tokens.admission.admission import Standing
from tokens.admission.principal import LimitRecord, ScopedLimit

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
README, API, ARCHITECTURE = (TEXTS[name] for name in ("README.md", "docs/api.md", "docs/architecture.md"))
OURS = {"tokens", "usage", "gateway"}
EVERYTHING = "\n".join(TEXTS.values())


def section(page: str, title: str) -> str:
    """A page's text below a heading, up to the next heading of any level."""
    return re.split(r"\n#+ ", page.partition(f"# {title}\n")[2])[0]


def first_cells(text: str) -> set[str]:
    """The code in the first column of the tables in a text."""
    return set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))


# Errors


def error_types() -> set[tuple[int, str]]:
    """Every status and type that the tree in gateway/errors.py draws, and the one for what nobody foresaw."""
    found = {(errors.ApiError.status, errors.ApiError.type)}
    for status, types in re.findall(r"── \w+\s+(\d{3}) (.*)", errors.__doc__ or ""):
        names = re.match(r"[a-z_]+(?:, [a-z_]+)*", types)
        assert names
        found |= {(int(status), name) for name in names[0].split(", ")}
    return found


def documented_errors(page: str) -> list[tuple[int, str]]:
    """Status and type of each row of the table of errors."""
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", section(page, "Errors"), re.MULTILINE)
    return [(int(status), name) for status, name in rows]


def test_every_error_type_has_its_row_and_every_row_its_type() -> None:
    documented = documented_errors(API)
    assert len(documented) == len(set(documented))
    assert set(documented) == error_types()


def test_the_tree_in_the_module_is_complete() -> None:
    drawn = set(re.findall(r"── (\w+)", errors.__doc__ or ""))
    assert drawn == {cls.__name__ for cls in errors.ApiError.__subclasses__()}
    for cls in errors.ApiError.__subclasses__():
        if "type" in vars(cls):
            assert (cls.status, cls.type) in error_types(), cls


def test_control_an_error_without_a_row_is_noticed() -> None:
    without = re.sub(r"^\| 409 .*\n", "", API, flags=re.MULTILINE)
    assert set(documented_errors(without)) != error_types()


# The call


def curl(page: str) -> list[str]:
    """The words of the page's curl command."""
    match = re.search(r"^curl (?:.*\\\n)+.*", page, re.MULTILINE)
    assert match
    return shlex.split(match[0].replace("\\\n", " "))


@pytest.mark.parametrize("name", ["README.md", "docs/api.md"])
def test_the_examples_of_the_call_are_valid(name: str) -> None:
    words = curl(TEXTS[name])
    assert get_resolver("gateway.urls").resolve(words[1].removeprefix("https://gateway.example"))
    asked = validation.validate(words[words.index("-d") + 1].encode())
    assert (asked.size, asked.n, asked.ignored) == ("512x512", 2, ())
    script = re.search(r"body: JSON\.stringify\((\{.*?\})\)", TEXTS[name])
    assert script
    fields = re.sub(r"(\w+):", r'"\1":', script[1])
    assert validation.validate(fields.encode()).size == "512x512"


def test_example_answers_have_the_shape_of_answers() -> None:
    for page in (README, API):
        answers = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
        assert [list(answer) for answer in answers if "data" in answer] == [
            ["created", "data", "output_format", "usage"]
        ]
        for answer in answers:
            if "error" in answer:
                example = errors.InvalidToken().content(answer["error"]["request_id"])
                assert answer == example


def test_the_rate_limit_headers_are_what_the_gateway_sends() -> None:
    def standing(metric: str, period: str, amount: int, remaining: int, reset: int) -> Standing:
        return Standing(ScopedLimit("tenant", LimitRecord(1, metric, period, amount, 0, 0)), remaining, reset)

    sent = headers.rate_limit_headers(
        [
            standing("requests", "minute", 300, 299, 1),
            standing("concurrent", "", 16, 16, 0),
            standing("images", "day", 1000, 998, 56_320),
            standing("tokens", "month", 5_000_000, 4_995_818, 747_520),
        ]
    )
    for name, value in sent.items():
        assert f"\n{name}: {value}\n" in API
    draft = re.search(r"draft-ietf-httpapi-ratelimit-headers-\d+", headers.__doc__ or "")
    assert draft and draft[0] in API


def test_every_field_and_header_is_documented() -> None:
    for name in (*validation.FIELDS, *validation.IGNORED_FIELDS):
        assert f"`{name}`" in section(API, "Generate images"), name
    browsers = section(API, "Browsers")
    for name in headers.EXPOSED.split(", "):
        assert f"`{name}`" in browsers or (name.startswith("X-RateLimit-") and "`X-RateLimit-…`" in browsers), name
    for name in headers.ALLOWED_REQUEST_HEADERS.split(", "):
        assert f"`{name}`" in browsers.lower(), name


def test_every_path_is_documented_and_every_documented_path_is_there() -> None:
    resolver = get_resolver("gateway.urls")
    documented = set()
    for path in re.findall(r"`(?:GET|POST) (/[^` ]*)`", API):
        filled = path.replace("<day>", "2026-11-22").replace("<file>", "a.png")
        try:
            documented.add(resolver.resolve(filled).url_name)
        except Resolver404:
            pytest.fail(f"{path} is documented and not there")
    assert documented == {getattr(pattern, "name", None) for pattern in resolver.url_patterns}


# Commands


def command_lines(page: str) -> Iterator[list[str]]:
    """The ``manage.py`` lines of our commands in a page's blocks, in words."""
    for block in re.findall(r"```\w*\n(.*?)```", page, re.DOTALL):
        for line in block.replace("\\\n", " ").replace(" | ", "\n").splitlines():
            match = re.match(r"manage\.py (.*)", line)
            words = shlex.split(re.sub(r"\s[<>].*", "", match[1]), comments=True) if match else []
            if words and get_commands().get(words[0]) in OURS:
                yield words


def parser_of(command: str) -> CommandParser:
    """The parser of one of our commands."""
    return load_command_class(str(get_commands()[command]), command).create_parser("manage.py", command)


def parse(words: list[str]) -> Any:
    """Read a command line as manage.py does, without running it."""
    return parser_of(words[0]).parse_args(words[1:])


@pytest.mark.parametrize("name", ["README.md", "docs/admin.md", "docs/providers.md", "docs/operations.md"])
def test_command_lines_are_understood(name: str) -> None:
    lines = list(command_lines(TEXTS[name]))
    assert lines
    for words in lines:
        try:
            parse(words)
        except (CommandError, SystemExit) as exc:
            pytest.fail(f"manage.py {shlex.join(words)}: {exc}")


def test_every_command_of_ours_and_every_verb_is_documented() -> None:
    for command, app in get_commands().items():
        if app not in OURS:
            continue
        assert f"manage.py {command}" in EVERYTHING, command
        for action in parser_of(command)._actions:
            for verb in getattr(action, "choices", None) or () if action.dest == "verb" else ():
                assert f"manage.py {command} {verb}" in EVERYTHING, f"{command} {verb}"


def test_control_a_wrong_command_line_is_noticed() -> None:
    with pytest.raises((CommandError, SystemExit)):
        parse(["token", "issue", "--tenant", "acme"])


def test_what_the_readme_says_to_make_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        asked = set(re.findall(r"^make (\w+)|`make (\w+)", TEXTS[name], re.MULTILINE))
        assert {first or second for first, second in asked} <= targets, name
    assert {"run", "test"} <= targets


def test_the_folders_of_the_readme_are_there() -> None:
    folders = re.findall(r"^(\w+)/ ", section(README, "Where things are"), re.MULTILINE)
    assert set(folders) >= {"tokens", "gateway", "usage", "config", "sandbox", "tests"}
    assert all((ROOT / folder).is_dir() for folder in folders)


# Links


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", TEXTS[name]):
        page = (ROOT / name).parent / target if target else ROOT / name
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_every_decision_is_in_the_list() -> None:
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", TEXTS["docs/decisions/README.md"])
    assert listed == sorted(path.name for path in (ROOT / "docs" / "decisions").glob("0*.md"))
    assert [int(name[:4]) for name in listed] == list(range(1, len(listed) + 1))
    for name in listed:
        text = TEXTS[f"docs/decisions/{name}"]
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Decision", "Consequence"], name


# Architecture


def key_names() -> set[str]:
    """Every key of the admission store, its parts in angle brackets."""
    made = {value for name, value in vars(keys).items() if name.isupper()} - {keys.NOBODY, keys.GROUP}  # are no keys
    for name, function in vars(keys).items():
        if isinstance(function, FunctionType) and function.__module__ == keys.__name__ and name != "shard_of":
            names = inspect.signature(function).parameters
            parts: list[Any] = ["" if part == "shard" else f"<{part.replace('_', ' ')}>" for part in names]
            made.add(function(*parts))
    return made


def test_every_key_of_the_store_has_its_row() -> None:
    assert len(key_names()) > 12
    assert first_cells(section(ARCHITECTURE, "Keys in the store")) == key_names()


def test_every_script_has_its_row() -> None:
    scripts = {path.stem for path in (ROOT / "tokens" / "admission" / "lua").glob("*.lua")}
    assert first_cells(section(ARCHITECTURE, "Scripts")) == scripts


def test_every_module_that_is_named_is_there() -> None:
    for name, text in TEXTS.items():
        for path in re.findall(r"`((?:tokens|gateway|usage|config|tests|sandbox)/[\w/.]*)`", text):
            assert (ROOT / path).exists(), f"{path} in {name}"
