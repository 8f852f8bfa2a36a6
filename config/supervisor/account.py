"""The unprivileged account that PostgreSQL runs under when the supervisor is root, as which it refuses to run."""

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from config.supervisor.errors import StartError

CANDIDATES = ("nobody", "daemon")


class PopenArguments(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that make the child run under an account."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Account:
    """A user of this machine, by numbers: a data folder may come from a machine with other names."""

    user: int
    group: int

    def can_enter(self, folder: Path) -> bool:
        """Whether the account can make this folder its working folder, tried rather than computed from modes."""
        return self.can_run(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)])

    def can_run(self, command: list[str]) -> bool:
        """Whether the command, run under the account, ends well. Its output is thrown away.

        Raises:
            StartError: root may not change to the account here (some containers forbid it).
        """
        try:
            done = subprocess.run(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                **popen_arguments(self),
            )
        except FileNotFoundError:
            return False
        except PermissionError as exc:
            if exc.filename is not None:  # the program itself can't be executed
                return False
            raise StartError(
                "PostgreSQL does not run as root, and this system does not let root change to another user: "
                "start as an ordinary user."
            ) from exc
        return done.returncode == 0


def popen_arguments(account: Account | None) -> PopenArguments:
    """Arguments for `subprocess.Popen` that make a child run under the account; none for None, who we are.

    No supplementary group of root's is kept.
    """
    return {} if account is None else {"user": account.user, "group": account.group, "extra_groups": []}


def for_new_data() -> Account | None:
    """The account for a database that doesn't exist yet: None (stay who we are) unless we are root.

    Raises:
        StartError: root, and none of the usual unprivileged accounts exists.
    """
    if os.geteuid() != 0:
        return None
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise StartError(f"PostgreSQL does not run as root, and none of the users {', '.join(CANDIDATES)} exists here.")


def for_existing_data(folder: Path) -> Account | None:
    """The account that owns a database's folder; None when that is who we are.

    Raises:
        StartError: the folder belongs to somebody whom we can't become.
    """
    owner = folder.stat()
    if owner.st_uid == os.geteuid() != 0:
        return None
    if os.geteuid() == 0 and owner.st_uid == 0:
        raise StartError(f"{folder} belongs to root, as which PostgreSQL refuses to run: give it to {CANDIDATES[0]}.")
    if os.geteuid() == 0:
        return Account(owner.st_uid, owner.st_gid)
    raise StartError(f"{folder} belongs to {user_name(owner.st_uid)}: start as that user, or choose another DATA=.")


def user_name(user: int) -> str:
    """A user's name for people, or `user 1234` where the number has no name."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
