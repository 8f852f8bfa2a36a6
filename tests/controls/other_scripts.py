"""The gateway of another version: every script has another text, so another address in the store."""

from config.asgi import application
from tokens.admission import scripts

_assemble = scripts._assemble


def assemble(name, flags, *parts):
    text = _assemble(name, flags, *parts).text + "\n-- another version"
    return scripts.Script(name, text, scripts.hashlib.sha1(text.encode()).hexdigest())


scripts._assemble = assemble

__all__ = ["application"]
