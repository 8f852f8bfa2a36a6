"""The directive in a prompt: `[sandbox delay=2s status=503 ...]` asks the sandbox to behave badly on purpose."""

import re
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

UsageFault = Literal["missing", "zero", "absurd", "parts"]
Drop = Literal["unread", "after_draw", "midway"]
Body = Literal["garbage", "huge", "drip"]
Choice = TypeVar("Choice")

LONGEST_DELAY = 600.0  # seconds

_DIRECTIVE = re.compile(r"\[sandbox\b([^\]]*)\]")
_DELAY = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(ms|s)", re.ASCII)
_COUNT = re.compile(r"\d{1,15}", re.ASCII)


class DirectiveError(ValueError):
    """The directive is not understood; the message says which word, and what it may be."""


@dataclass(frozen=True)
class Directive:
    """What a prompt asked for. Everything left out means: behave."""

    words: str | None = None  # as written, for the record
    delay: float = 0.0  # seconds before drawing
    status: int | None = None
    usage: UsageFault | None = None
    tokens: int | None = None
    drop: Drop | None = None
    body: Body | None = None


def parse(prompt: str) -> Directive:
    """The first directive in `prompt`; one that asks for nothing when there is none.

    A misspelt directive is an error rather than a picture: a test that hoped for a fault must not pass without it.
    Raises DirectiveError.
    """
    found = _DIRECTIVE.search(prompt)
    if found is None:
        return Directive()
    words = found.group(1).split()
    pairs = dict(_pair(word) for word in words)
    if len(pairs) < len(words):
        raise DirectiveError("A sandbox directive names each thing once.")
    unknown = pairs.keys() - {"delay", "status", "usage", "tokens", "drop", "body"}
    if unknown:
        raise DirectiveError(f"Unknown in a sandbox directive: {', '.join(sorted(unknown))}.")
    if "drop" in pairs and "body" in pairs:
        raise DirectiveError("A sandbox directive has either drop or body: one connection can fail in one way.")
    return Directive(
        words=" ".join(words) or None,
        delay=_delay(pairs.get("delay")),
        status=_status(pairs.get("status")),
        usage=_choice("usage", pairs.get("usage"), get_args(UsageFault)),
        tokens=_tokens(pairs.get("tokens")),
        drop=_choice("drop", pairs.get("drop"), get_args(Drop)),
        body=_choice("body", pairs.get("body"), get_args(Body)),
    )


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def _delay(value: str | None) -> float:
    if value is None:
        return 0.0
    found = _DELAY.fullmatch(value)
    seconds = float(found.group(1)) / (1000 if found.group(2) == "ms" else 1) if found else -1.0
    if not 0 <= seconds <= LONGEST_DELAY:
        raise DirectiveError("delay is a time like 300ms or 2s, at most 600s.")
    return seconds


def _status(value: str | None) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(r"[45]\d\d", value, re.ASCII):
        raise DirectiveError("status is an HTTP error status, 400 to 599.")
    return int(value)


def _tokens(value: str | None) -> int | None:
    if value is None:
        return None
    if not _COUNT.fullmatch(value):
        raise DirectiveError("tokens is a whole number, 0 or more.")
    return int(value)


def _choice(name: str, value: str | None, allowed: tuple[Choice, ...]) -> Choice | None:
    if value is None:
        return None
    for choice in allowed:
        if choice == value:
            return choice
    raise DirectiveError(f"{name} is one of: {', '.join(map(str, allowed))}.")
