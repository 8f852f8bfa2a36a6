"""`run.json`: what runs on a data folder, for `manage.py` and for the start that follows a kill -9."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from config.supervisor.errors import StartError
from config.supervisor.identity import Identity, identify
from config.supervisor.secretfiles import write_private

NAME = "run.json"


@dataclass
class RunFile:
    """The file's contents. Each change is on disk, whole, before the method that made it returns.

    `environment` is what the children got and what `manage.py` reads; `folders` are the temporary folders of the
    sockets; `stopping` tells another start that waiting is worth it.
    """

    data: Path
    supervisor: Identity
    environment: dict[str, str] = field(default_factory=dict)
    children: dict[str, Identity] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    postgres_data: str = ""
    stopping: bool = False

    @property
    def path(self) -> Path:
        """Where the file stands."""
        return self.data / NAME

    def record(self, name: str, identity: Identity) -> None:
        """Note a child; `processes.start` calls this before the child's program runs."""
        self.children[name] = identity
        self.write()

    def write(self) -> None:
        """Write the file, mode 0600.

        Raises:
            StartError: the folder can't be written (any more).
        """
        content: dict[str, Any] = asdict(self)
        del content["data"]
        content |= content.pop("supervisor")
        try:
            write_private(self.path, json.dumps(content, indent=1) + "\n")
        except OSError as exc:
            raise StartError(f"{self.path} can't be written: {exc.strerror}.") from exc

    def remove(self) -> None:
        """Remove the file: nothing runs here any more."""
        self.path.unlink(missing_ok=True)


def read(data: Path) -> RunFile | None:
    """What an earlier start left, None when it left nothing or nothing that can be read."""
    try:
        content = json.loads((data / NAME).read_bytes())
        return RunFile(
            data=data,
            supervisor=Identity(content["pid"], content["started"]),
            environment=content["environment"],
            children={name: Identity(**child) for name, child in content["children"].items()},
            folders=content["folders"],
            postgres_data=content["postgres_data"],
            stopping=content["stopping"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def new(data: Path, pid: int) -> RunFile:
    """A file that isn't written yet, for the supervisor of that pid."""
    return RunFile(data=data, supervisor=identify(pid) or Identity(pid, ""))
