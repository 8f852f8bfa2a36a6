"""Typed reading of settings from the environment.

Every variable may also be given as ``NAME_FILE``, the path of a file that holds the value (Docker and Kubernetes
secrets). Unless ``DATABASE_URL`` or its file names another database, the variables that the supervisor recorded in
``$DATA/run.json`` stand in for the missing ones, so that ``manage.py`` finds the stack that `make run` started.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


class Environment:
    """The variables of one process; a wrong value raises ImproperlyConfigured with a sentence that names it."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.data = Path(variables.get("DATA") or ".data").resolve()
        self._variables = dict(variables)
        recorded = self._recorded()
        given = {"DATABASE_URL", "DATABASE_URL_FILE"} & variables.keys()
        self._deployed = bool(given)
        if all(variables[name] == recorded.get(name) for name in given):
            self._variables = {**recorded, **self._variables}

    def _recorded(self) -> dict[str, str]:
        try:
            recorded = json.loads((self.data / "run.json").read_bytes())["environment"]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not as `make run` writes it"
            raise ImproperlyConfigured(f"{self.data / 'run.json'} can't be read: {why}.") from exc
        return {str(name): str(value) for name, value in recorded.items()}

    def text(self, name: str, default: str | None = None) -> str:
        """The value of `name` or of the file `name_FILE`; without a default a missing one stops the start."""
        value = self._variables.get(name)
        path = self._variables.get(f"{name}_FILE")
        if value is None and path:
            try:
                value = Path(path).read_text(encoding="utf-8").strip()
            except OSError as exc:
                raise ImproperlyConfigured(f"{name}_FILE points at {path}, which can't be read.") from exc
        if value is None or (value == "" and default is None):
            if default is None:
                missing = f"{name} is not set. Set {name} or {name}_FILE"
                if self._deployed:
                    raise ImproperlyConfigured(f"{missing}.")
                raise ImproperlyConfigured(
                    "Put DATA=<folder> in front, the data folder of a running stack: no running stack was found in"
                    f" {self.data}. Or start one there with `make run`. For a stack of another kind: {missing}."
                )
            return default
        return value

    def number(self, name: str, default: float, least: float = 0) -> float:
        """A number of at least `least`."""
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError as exc:
            raise ImproperlyConfigured(f"{name} must be a number, not {value!r}.") from exc
        if not least <= number < float("inf"):
            raise ImproperlyConfigured(f"{name} must be at least {least}, not {value}.")
        return number

    def integer(self, name: str, default: int, least: int = 0) -> int:
        """A whole number of at least `least`."""
        number = self.number(name, default, least)
        if number != int(number):
            raise ImproperlyConfigured(f"{name} must be a whole number, not {number}.")
        return int(number)

    def flag(self, name: str, default: bool = False) -> bool:
        """True for 1, true, yes, on; False for 0, false, no, off and nothing."""
        value = self.text(name, "1" if default else "0").lower()
        if value in {"1", "true", "yes", "on"}:
            return True
        if value in {"0", "false", "no", "off", ""}:
            return False
        raise ImproperlyConfigured(f"{name} must be true or false, not {value!r}.")

    def words(self, name: str, default: str = "") -> list[str]:
        """A comma-separated list, blanks left out."""
        return [word for word in (part.strip() for part in self.text(name, default).split(",")) if word]

    def path(self, name: str, default: Path) -> Path:
        """A folder or file; relative ones are taken from the working directory."""
        return Path(self.text(name, str(default))).resolve()


def process_environment() -> Environment:
    """The environment of this process."""
    return Environment(os.environ)
