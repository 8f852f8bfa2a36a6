"""The Lua scripts: their sources, and calling them by content from synchronous and asynchronous code.

A script is addressed by the SHA-1 of its text, so old and new processes can run different versions side by side.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import redis

_FOLDER = Path(__file__).parent / "lua"


@dataclass(frozen=True, slots=True)
class Script:
    """One script: `text` as the server runs it, `sha` its address."""

    name: str
    text: str
    sha: str

    def run(self, client: redis.Redis, keys: list[str], arguments: list[Any]) -> Any:
        """Run it through redis-py: EVALSHA, and EVAL where the server doesn't know it yet."""
        try:
            return client.evalsha(self.sha, len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:
            return client.eval(self.text, len(keys), *keys, *arguments)


def _assemble(name: str, flags: str, *parts: str) -> Script:
    body = "\n".join((_FOLDER / part).read_text(encoding="utf-8") for part in parts)
    text = f"#!lua{flags}\n{body}"
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def admit() -> Script:
    """Decides a call; refused by the server itself when its memory is full."""
    return _assemble("admit", "", "limits.lua", "admit.lua")


@cache
def finish() -> Script:
    """Ends a call; allowed when memory is full, since what was spent must be recorded."""
    return _assemble("finish", " flags=allow-oom", "limits.lua", "finish.lua")


@cache
def standing() -> Script:
    """Reads what is left of limits."""
    return _assemble("standing", " flags=no-writes", "limits.lua", "standing.lua")


@cache
def tally() -> Script:
    """Adds up a web process's telemetry; refused when memory is full."""
    return _assemble("tally", "", "tally.lua")


@cache
def remember() -> Script:
    """Keeps why calls weren't admitted; refused when memory is full."""
    return _assemble("remember", "", "remember.lua")
