"""From a body to a GenerationRequest: what is accepted, what is refused, and that the lists below would tell."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequest, UnsupportedMediaType
from gateway.validation import (
    IGNORED_FIELDS,
    MOST_IMAGES,
    PROMPT_LIMIT,
    SIZES,
    GenerationRequest,
    require_json,
    validate,
)

DEEP = 40_000  # some 240 KB as objects
HUGE = 10**4000

ACCEPTED: list[tuple[bytes, GenerationRequest]] = [
    (b'{"prompt":"a"}', GenerationRequest("a", "1024x1024", 1, ())),
    (b' \r\n\t{"prompt" : " a " }\n', GenerationRequest(" a ", "1024x1024", 1, ())),
    (b'{"prompt":"a","size":"256x256","n":4}', GenerationRequest("a", "256x256", 4, ())),
    (b'{"prompt":"a","size":"512x512","n":1}', GenerationRequest("a", "512x512", 1, ())),
    (b'{"n":2,"prompt":"\\u00e9\\ud83d\\ude00"}', GenerationRequest("é😀", "1024x1024", 2, ())),
    (b'{"pr\\u006fmpt":"a"}', GenerationRequest("a", "1024x1024", 1, ())),
    (b'{"prompt":"a\\u0000b"}', GenerationRequest("a\0b", "1024x1024", 1, ())),
    (b'{"prompt":"a","model":"x","user":null}', GenerationRequest("a", "1024x1024", 1, ("model", "user"))),
    (json.dumps({"prompt": "é" * PROMPT_LIMIT}).encode(), GenerationRequest("é" * PROMPT_LIMIT, "1024x1024", 1, ())),
    (
        json.dumps({"prompt": "a", **dict.fromkeys(sorted(IGNORED_FIELDS), "x")}).encode(),
        GenerationRequest("a", "1024x1024", 1, tuple(sorted(IGNORED_FIELDS))),
    ),
]

# A body, and what the message must name.
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not valid JSON"),
    "blank": (b" \n", "not valid JSON"),
    "form": (b"prompt=a&n=1", "not valid JSON"),
    "half": (b'{"prompt":"a"', "not valid JSON"),
    "two": (b'{"prompt":"a"}{}', "not valid JSON"),
    "comma": (b'{"prompt":"a",}', "not valid JSON"),
    "comment": (b'{"prompt":"a"/**/}', "not valid JSON"),
    "single quotes": (b"{'prompt':'a'}", "not valid JSON"),
    "control character": (b'{"prompt":"a\x01"}', "not valid JSON"),
    "byte order mark": (b'\xef\xbb\xbf{"prompt":"a"}', "not valid JSON"),
    "list": (b'[{"prompt":"a"}]', "must be a JSON object"),
    "text": (b'"prompt"', "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "number": (b"1", "must be a JSON object"),
    "latin-1": (b'{"prompt":"\xe9"}', "UTF-8"),
    "overlong": (b'{"prompt":"\xc0\xaf"}', "UTF-8"),
    "surrogate bytes": (b'{"prompt":"\xed\xa0\x80"}', "UTF-8"),
    "utf-16": ('{"prompt":"a"}'.encode("utf-16"), "UTF-8"),
    "utf-16 without a mark": ('{"prompt":"a"}'.encode("utf-16-le"), "not valid JSON"),
    "deep list": (b'{"prompt":' + b"[" * DEEP + b"]" * DEEP + b"}", "nested too deeply"),
    "deep object": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested too deeply"),
    "deep and open": (b"[" * DEEP, "nested too deeply"),
    "duplicate": (b'{"prompt":"a","prompt":"b"}', '"prompt" appears more than once'),
    "duplicate, equal": (b'{"prompt":"a","n":1,"n":1}', '"n" appears more than once'),
    "duplicate, escaped": (b'{"prompt":"a","pr\\u006fmpt":"b"}', '"prompt" appears more than once'),
    "duplicate below": (b'{"prompt":"a","user":{"b":1,"b":2}}', '"b" appears more than once'),
    "duplicate in a list": (b'{"prompt":"a","user":[{"b":1,"b":2}]}', '"b" appears more than once'),
    "NaN": (b'{"prompt":"a","user":NaN}', "NaN"),
    "Infinity": (b'{"prompt":"a","user":Infinity}', "Infinity"),
    "-Infinity": (b'{"prompt":"a","n":-Infinity}', "Infinity"),
    "no prompt": (b"{}", "prompt is required"),
    "only others": (b'{"n":1,"size":"256x256"}', "prompt is required"),
    "prompt null": (b'{"prompt":null}', "prompt"),
    "prompt number": (b'{"prompt":1}', "prompt must be a string"),
    "prompt list": (b'{"prompt":["a"]}', "prompt must be a string"),
    "prompt object": (b'{"prompt":{"url":"a"}}', "prompt must be a string"),
    "prompt empty": (b'{"prompt":""}', "prompt must not be blank"),
    "prompt blank": (b'{"prompt":" \\n\\t\\u00a0\\u2003"}', "prompt must not be blank"),
    "prompt too long": (json.dumps({"prompt": "a" * (PROMPT_LIMIT + 1)}).encode(), "prompt has 32001 characters"),
    "high surrogate": (b'{"prompt":"a\\ud800"}', "surrogate"),
    "low surrogate": (b'{"prompt":"\\udc00a"}', "surrogate"),
    "surrogates swapped": (b'{"prompt":"\\ude00\\ud83d"}', "surrogate"),
    "size of another case": (b'{"prompt":"a","size":"256X256"}', "size must be one of"),
    "size with blanks": (b'{"prompt":"a","size":" 256x256"}', "size must be one of"),
    "size of other digits": ('{"prompt":"a","size":"２５６x256"}'.encode(), "size must be one of"),
    "size not offered": (b'{"prompt":"a","size":"1536x1024"}', "size must be one of"),
    "size auto": (b'{"prompt":"a","size":"auto"}', "size must be one of"),
    "size empty": (b'{"prompt":"a","size":""}', "size must be one of"),
    "size null": (b'{"prompt":"a","size":null}', "size must be one of"),
    "size number": (b'{"prompt":"a","size":256}', "size must be one of"),
    "size list": (b'{"prompt":"a","size":["256x256"]}', "size must be one of"),
    "n true": (b'{"prompt":"a","n":true}', "n must be an integer"),
    "n false": (b'{"prompt":"a","n":false}', "n must be an integer"),
    "n text": (b'{"prompt":"a","n":"2"}', "n must be an integer"),
    "n fraction": (b'{"prompt":"a","n":1.5}', "n must be an integer"),
    "n 1.0": (b'{"prompt":"a","n":1.0}', "n must be an integer"),
    "n 1e0": (b'{"prompt":"a","n":1e0}', "n must be an integer"),
    "n 0": (b'{"prompt":"a","n":0}', "n must be an integer"),
    "n -0": (b'{"prompt":"a","n":-0}', "n must be an integer"),
    "n -1": (b'{"prompt":"a","n":-1}', "n must be an integer"),
    "n 5": (b'{"prompt":"a","n":5}', "n must be an integer"),
    "n 01": (b'{"prompt":"a","n":01}', "not valid JSON"),
    "n null": (b'{"prompt":"a","n":null}', "n must be an integer"),
    "n list": (b'{"prompt":"a","n":[1]}', "n must be an integer"),
    "n 64 bits": (b'{"prompt":"a","n":18446744073709551617}', "n must be an integer"),
    "n huge": (b'{"prompt":"a","n":%d}' % HUGE, "n must be an integer"),
    "n of 5000 digits": (b'{"prompt":"a","n":1' + b"0" * 5000 + b"}", "not valid JSON"),
    "n overflowing": (b'{"prompt":"a","n":1e999}', "n must be an integer"),
    "a URL": (b'{"prompt":"a","base_url":"http://evil"}', '"base_url" is not known'),
    "a key": (b'{"prompt":"a","api_key":"k"}', '"api_key" is not known'),
    "a URL below": (b'{"prompt":"a","user":{"base_url":"http://evil"}}', "user must not be an object"),
    "a key in a list": (b'{"prompt":"a","style":[{"api_key":"k"}]}', "style must not be an object or a list"),
    "a name of another case": (b'{"prompt":"a","N":2}', '"N" is not known'),
    "a name with a blank": (b'{"prompt":"a","n ":2}', '"n " is not known'),
    "an empty name": (b'{"prompt":"a","":2}', '"" is not known'),
    "a surrogate as a name": (b'{"prompt":"a","\\ud800":2}', r'"\ud800" is not known'),
    "markup as a name": (b'{"prompt":"a","<b>\\n":2}', r'"<b>\n" is not known'),
    "__proto__": (b'{"prompt":"a","__proto__":{"n":2}}', '"__proto__" is not known'),
}


@pytest.mark.parametrize(("body", "expected"), ACCEPTED)
def test_it_accepts(body: bytes, expected: GenerationRequest) -> None:
    assert validate(body) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_and_names_what_is_wrong(name: str) -> None:
    body, naming = REFUSED[name]
    with pytest.raises(InvalidRequest) as caught:
        validate(body)
    assert naming in caught.value.message
    assert len(caught.value.message) < 400


def lenient(body: bytes) -> GenerationRequest:
    """What one writes first: the same rules over json.loads."""
    fields = json.loads(body)
    prompt, size, n = fields["prompt"], fields.get("size") or "1024x1024", fields.get("n") or 1
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > PROMPT_LIMIT:
        raise ValueError("prompt")
    if size not in SIZES or not 1 <= int(n) <= MOST_IMAGES:
        raise ValueError("size or n")
    return GenerationRequest(prompt, size, int(n), tuple(name for name in fields if name in IGNORED_FIELDS))


def accepts(validator: Callable[[bytes], GenerationRequest], body: bytes) -> bool:
    try:
        validator(body)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, InvalidRequest):
        return False
    return True


def test_control_a_lenient_validator_fails_the_list() -> None:
    assert all(accepts(lenient, body) for body, _ in ACCEPTED)
    passed = {name for name, (body, _) in REFUSED.items() if accepts(lenient, body)}
    assert passed >= {
        *("byte order mark", "utf-16", "duplicate", "duplicate, escaped", "duplicate below", "NaN", "Infinity"),
        *("high surrogate", "n true", "n text", "n fraction", "n 1e0", "n 0", "n null", "size null"),
        *("a URL", "a key", "a URL below", "a name of another case", "__proto__"),
    }
    assert not [name for name, (body, _) in REFUSED.items() if accepts(validate, body)]


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(SIZES)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
names = st.sampled_from(["prompt", "size", "n", *sorted(IGNORED_FIELDS)]) | st.text(max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(names, values, max_size=6) | st.fixed_dictionaries({"prompt": st.text()}, optional={"n": leaves})
)
def test_whatever_is_accepted_keeps_the_rules(fields: dict[str, Any]) -> None:
    body = json.dumps(fields).encode()
    try:
        asked = validate(body)
    except InvalidRequest as exc:
        assert exc.message
        return
    assert asked.prompt == fields["prompt"]
    assert asked.prompt.strip()
    assert asked.size == fields.get("size", "1024x1024")
    assert asked.size in SIZES
    assert type(asked.n) is int
    assert asked.n == fields.get("n", 1)
    assert set(fields) <= {"prompt", "size", "n"} | IGNORED_FIELDS
    assert set(asked.ignored) == set(fields) & IGNORED_FIELDS


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\ntruefalsn0123.eE+-u ', max_size=60).map(str.encode))
def test_no_bytes_make_it_stumble(body: bytes) -> None:
    try:
        validate(body)
    except InvalidRequest:
        pass


@pytest.mark.timeout(5)
@pytest.mark.parametrize("last", ["a0", "b"])
def test_many_fields_cost_no_more_than_they_weigh(last: str) -> None:
    names = ",".join(f'"a{number}":1' for number in range(24_000))
    with pytest.raises(InvalidRequest):
        validate(f'{{{names},"{last}":1,"{last}":1}}'.encode())


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        " application/json ",
        "application/json;",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json ; Charset = utf8",
        "application/json; charset=utf-8;",
        "application/json; charset=utf-8; boundary=x",
        "application/json; version=1",
    ],
)
def test_json_in_any_spelling(content_type: str) -> None:
    require_json(content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        *("", ";", "json", "text/json", "text/plain", "application/json, application/json", "application/jsonp"),
        *("application/x-www-form-urlencoded", "multipart/form-data; boundary=application/json", "*/*"),
        *("application/problem+json", "application/json charset=utf-8", "application/json; charset=latin-1"),
        *("application/json; charset=utf-16", "application/json; charset=utf-8; charset=utf-16"),
    ],
)
def test_other_content_types(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        require_json(content_type)
