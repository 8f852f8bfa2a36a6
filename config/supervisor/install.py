"""Create `.venv` and install the pinned packages of one requirements file into it; a second time costs nothing.

Run by path with the system's own Python, before anything is installed: it imports the standard library alone,
and older Pythons must be able to read it far enough to be told that they are too old.
"""

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
OLDEST = (3, 11)
LARGEST = "dev"  # its file pins every package of the others at the same version


def main(name):  # type: (str) -> None
    """Install `requirements/<name>.txt`, if that very file isn't installed yet; exit with a sentence if that fails."""
    if is_installed(name) or is_installed(LARGEST):
        return
    refuse_unfit_python()
    lock = os.open(str(ROOT), os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # two first starts side by side would write into each other's files
    if is_installed(name) or is_installed(LARGEST):
        return
    if not works(["-m", "pip", "--version"]):
        print("Creating .venv.", flush=True)
        run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], "The virtual environment can't be created.")
    print("Installing requirements/" + name + ".txt into .venv; the first time takes a minute or two.", flush=True)
    install = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes"]
    run([*install, "-r", str(requirements(name))], "The packages can't be installed; the reason stands above.")
    stamp(name).write_text(wanted(name))


def requirements(name):  # type: (str) -> Path
    """The file of pinned packages."""
    return ROOT / "requirements" / (name + ".txt")


def stamp(name):  # type: (str) -> Path
    """The file that tells which requirements were installed."""
    return ENVIRONMENT / ("installed-" + name)


def wanted(name):  # type: (str) -> str
    """What the stamp holds when the requirements as they are now were installed."""
    return hashlib.sha256(requirements(name).read_bytes()).hexdigest()


def is_installed(name):  # type: (str) -> bool
    """Whether the stamp is that of these very requirements, and the environment's Python still runs."""
    return stamp(name).exists() and stamp(name).read_text() == wanted(name) and works(["-c", ""])


def works(arguments):  # type: (list[str]) -> bool
    """Whether the environment's Python ends well with these arguments."""
    try:
        return subprocess.run([str(PYTHON), *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def run(command, sentence):  # type: (list[str], str) -> None
    """Run a command with its output shown; exit with the sentence if it fails."""
    # PIP_USER=1, set by some systems, would install outside of the environment, which pip refuses.
    if subprocess.run(command, env={**os.environ, "PIP_USER": "0"}, check=False).returncode != 0:
        sys.exit(sentence)


def refuse_unfit_python():  # type: () -> None
    """Exit with a sentence unless this Python is new enough and can make virtual environments."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < OLDEST:
        sys.exit("Python 3.11 or newer is needed, and " + sys.executable + " is " + found + ": name one with PYTHON=.")
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        sys.exit(sys.executable + " can't make virtual environments: install its venv package (apt: python3-venv).")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit("Stopped while installing; the next time goes on from here.")
