"""The gateway as it must not be: what a process remembers of a token admits, the records aren't asked again."""

from config.asgi import application
from tokens.admission import scripts
from tokens.admission.principal import Principal

CHECKS = (
    "token[1] ~= 'active' or ",
    "token[2] ~= ARGV[7] or ",
    "or (accepted_until > 0 and now >= accepted_until * 1000000)",
)
_assemble = scripts._assemble


def assemble(name, flags, *parts):
    text = _assemble(name, flags, *parts).text
    if name == "admit":
        for check in CHECKS:
            assert check in text
            text = text.replace(check, "")
    return scripts.Script(name, text, scripts.hashlib.sha1(text.encode()).hexdigest())


scripts._assemble = assemble
Principal.accepted = lambda principal, now: True

__all__ = ["application"]
