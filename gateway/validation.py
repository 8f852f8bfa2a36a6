"""Step 2: the body becomes a GenerationRequest, or an error that names what is wrong with it."""

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from gateway.errors import InvalidRequest, UnsupportedMediaType

SIZES = ("256x256", "512x512", "1024x1024")
DEFAULT_SIZE = "1024x1024"
PROMPT_LIMIT = 32_000  # characters
MOST_IMAGES = 4
FIELDS = frozenset({"prompt", "size", "n"})
IGNORED_FIELDS = frozenset({"model", "quality", "style", "response_format", "user", "background", "output_format"})


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What the client asks for. `ignored` are the fields that were accepted and have no effect."""

    prompt: str
    size: str
    n: int
    ignored: tuple[str, ...]


def require_json(content_type: str) -> None:
    """Raise UnsupportedMediaType unless the content type is ``application/json``, in any spelling or charset UTF-8."""
    kind, _, parameters = content_type.partition(";")
    pairs = [part.partition("=") for part in parameters.lower().split(";")]
    charsets = {value.strip(' "') for name, _, value in pairs if name.strip() == "charset"}
    if kind.strip().lower() != "application/json" or charsets - {"utf-8", "utf8"}:
        raise UnsupportedMediaType


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidRequest(f"The field {_shown(twice)} appears more than once.")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"{name} is not JSON.")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _shown(name: str) -> str:
    """A client's field name, safe to repeat in an answer."""
    return json.dumps(name[:60])


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a JSON object strictly: UTF-8, no duplicate keys, no NaN. Raises InvalidRequest."""
    try:
        value = _decoder.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except ValueError:  # not JSON, or a number with thousands of digits
        raise InvalidRequest("The body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def _prompt(fields: dict[str, Any]) -> str:
    prompt = fields.get("prompt")
    if prompt is None:
        raise InvalidRequest("The field prompt is required.")
    if not isinstance(prompt, str):
        raise InvalidRequest("The field prompt must be a string.")
    if not prompt.strip():
        raise InvalidRequest("The field prompt must not be blank.")
    if len(prompt) > PROMPT_LIMIT:
        raise InvalidRequest(f"The field prompt has {len(prompt)} characters; at most {PROMPT_LIMIT} are allowed.")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest("The field prompt has half of a surrogate pair.") from None
    return prompt


def _size(fields: dict[str, Any]) -> str:
    size = fields.get("size", DEFAULT_SIZE)
    if not isinstance(size, str) or size not in SIZES:
        raise InvalidRequest(f"The field size must be one of {', '.join(SIZES)}.")
    return size


def _n(fields: dict[str, Any]) -> int:
    n = fields.get("n", 1)
    if type(n) is not int or not 1 <= n <= MOST_IMAGES:
        raise InvalidRequest(f"The field n must be an integer from 1 to {MOST_IMAGES}.")
    return n


def validate(body: bytes) -> GenerationRequest:
    """The request in `body`. Raises InvalidRequest naming the first thing that is wrong."""
    fields = decode_object(body)
    ignored = []
    for name, value in fields.items():
        if name in FIELDS:
            continue
        if name not in IGNORED_FIELDS:
            raise InvalidRequest(f"The field {_shown(name)} is not known here.")
        if isinstance(value, dict | list):
            raise InvalidRequest(f"The field {name} must not be an object or a list.")
        ignored.append(name)
    return GenerationRequest(_prompt(fields), _size(fields), _n(fields), tuple(ignored))
