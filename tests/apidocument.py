"""docs/openapi.json as tests use it: what it says of an answer, and whether a real answer is what it says."""

import json
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]

PATH = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
GENERATE = "/wp-json/my-proxy/v1/generate-image"
IMAGE = "/images/{day}/{file}"
# What HTTP and browsers ask for, which no contract repeats.
PLAIN = {"content-type", "content-length", "date", "connection", "server", "vary"}
CORS = "access-control-"


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """The object itself where `node` is a reference to it."""
    while "$ref" in node:
        found: Any = DOCUMENT
        for name in node["$ref"].removeprefix("#/").split("/"):
            found = found[name.replace("~1", "/")]
        node = found
    return node


def schema_problems(schema: dict[str, Any], value: Any) -> list[str]:
    """What keeps `value` from being an instance of a schema of the document."""
    whole = {**schema, "components": DOCUMENT["components"]}
    validator = Draft202012Validator(whole, format_checker=FormatChecker())
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def header_problems(documented: dict[str, Any], headers: httpx.Headers) -> list[str]:
    """Headers that are missing, wrong, or not documented."""
    known = {name.lower(): resolved(header) for name, header in documented.items()}
    found = [f"{name} is missing" for name, header in known.items() if header.get("required") and name not in headers]
    for name, text in headers.items():
        if name in known:
            schema = known[name]["schema"]
            value = int(text) if schema.get("type") == "integer" and text.isdigit() else text
            found += [f"{name}: {problem}" for problem in schema_problems(schema, value)]
        elif name not in PLAIN and not name.startswith(CORS):
            found.append(f"{name} is not documented")
    return found


def problems(answer: httpx.Response, path: str = GENERATE, method: str = "post") -> list[str]:
    """Where an answer differs from what the document says of this operation; empty when it conforms."""
    responses = DOCUMENT["paths"][path][method]["responses"]
    if str(answer.status_code) not in responses:
        return [f"{answer.status_code} is not documented"]
    response = resolved(responses[str(answer.status_code)])
    found = header_problems(response.get("headers", {}), answer.headers)
    kind = answer.headers.get("content-type", "").partition(";")[0]
    content = response.get("content", {})
    if kind not in content:
        return [*found, f"{kind or 'no content type'} is not documented"]
    if kind == "application/json" and method != "head":
        found += schema_problems(content[kind]["schema"], json.loads(answer.content))
    return found
