"""What a picture costs in tokens: plausible, bounded, and impossible to guess."""

import secrets

from sandbox.directives import Directive

# The most output tokens that one picture of a size costs.
IMAGE_TOKENS = {"256x256": 1200, "512x512": 2400, "1024x1024": 4800, "1536x1024": 7200, "1024x1536": 7200}

_ABSURD = 10**12


def bound(size: str, n: int, prompt: str) -> int:
    """The most tokens that a call can cost: a gateway may reserve this and never be overtaken.

    `size` is a key of IMAGE_TOKENS. A prompt counts one token per byte of UTF-8 at most.
    """
    return n * IMAGE_TOKENS[size] + len(prompt.encode())


def spent(size: str, n: int, prompt: str, directive: Directive) -> int:
    """The tokens that a call really costs: between 40 % and 95 % of its bound.

    Drawn from the system's secret randomness, afresh for each call: a test that agrees with the sandbox must
    have carried the figure, it can't have worked it out.
    """
    if directive.tokens is not None:
        return directive.tokens
    most = bound(size, n, prompt)
    low, high = -(-most * 40 // 100), most * 95 // 100
    return low + secrets.randbelow(high - low + 1)


def report(total: int, prompt: str, directive: Directive) -> dict[str, object] | None:
    """The `usage` object of the answer, in OpenAI's shape; None where the directive has it left out."""
    if directive.usage == "missing":
        return None
    if directive.usage == "zero":
        total = 0
    elif directive.usage == "absurd":
        total = _ABSURD
    text = min(total, max(1, len(prompt.encode()) // 4))
    output = total - text
    if directive.usage == "parts":
        text = output = 0  # some real providers report a total whose parts are nothing
    return {
        "input_tokens": text,
        "output_tokens": output,
        "total_tokens": total,
        "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
    }
