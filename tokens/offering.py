"""The names of the models that a tenant or a token may be given; tokens itself knows of no catalog."""

from collections.abc import Callable, Iterable

from tokens.errors import Refused

_sources: list[Callable[[], Iterable[str]]] = []


def models_from(names: Callable[[], Iterable[str]]) -> None:
    """Say where the names come from."""
    _sources[:] = [names]


def offered() -> list[str]:
    """The names that can be chosen now."""
    return [name for source in _sources for name in source()]


def require_offered(model: str) -> str:
    """The name as it is, when it is offered or empty: any other would give each call 503. Raises Refused."""
    names = offered() if model else []
    if model and model not in names:
        raise Refused(f"There is no model {model!r}. There are: {', '.join(names) or 'none yet'}.")
    return model
