"""Planted bugs: each patch of tests/controls/ breaks one promise, and the tests that it names must fail for it.

``python -m tests.planted [NAME...]`` (``make controls``) applies each patch to a copy of the tree, runs its tests there
and prints who was caught. Unpatched, the same tests must pass on the same copy, otherwise their failing says nothing.
See tests/controls/README.md.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "controls"
AT_A_TIME = 2
SECONDS = 300  # for the tests of one patch
MADE = (".git", ".venv", ".data", "__pycache__", "*.pyc", ".*_cache", ".hypothesis", "results")
HEADER = re.compile(r"^(Promise|Says|Caught by): (.+)$", re.MULTILINE)
# A test that breaks for another reason, such as an import that fails or a server that doesn't start, catches nothing.
# `(row,) = rows` asserts how many there are.
BY_ASSERTION = re.compile(r"AssertionError|assert\b|Failed: DID NOT RAISE|ValueError: .* values to unpack")


@dataclass(frozen=True)
class Planted:
    """A patch: the promise it breaks, what is wrong then, and the node ids of the tests that catch it."""

    name: str
    promise: str
    says: str
    caught_by: tuple[str, ...]

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.patch"

    @property
    def files(self) -> list[str]:
        """The files that it changes."""
        return re.findall(r"^\+\+\+ b/(.+)$", self.path.read_text(), re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What came of a patch: "caught", or why not."""

    planted: Planted
    verdict: str
    seconds: float


class DoesNotApply(Exception):
    """A patch that doesn't fit the tree any more."""


def all_planted() -> list[Planted]:
    """Every patch, by name. Raises ValueError for one without its header lines."""
    return [_read(path) for path in sorted(FOLDER.glob("*.patch"))]


def _read(path: Path) -> Planted:
    found = HEADER.findall(path.read_text().partition("\n--- ")[0])
    promise, says = (dict(found).get(name, "") for name in ("Promise", "Says"))
    caught_by = tuple(value for name, value in found if name == "Caught by")
    if not (promise and says and caught_by):
        raise ValueError(f"{path.name} must begin with lines Promise:, Says: and Caught by:")
    return Planted(path.stem, promise, says, caught_by)


def apply(planted: Planted, tree: Path, *, check: bool = False) -> None:
    """Apply a patch to `tree`, or only see whether it fits. Raises DoesNotApply."""
    command = ["git", "apply", *(["--check"] if check else []), str(planted.path)]
    # A repository around the tree would have git take the patch's paths for its own and pass over them in silence.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise DoesNotApply(f"{planted.name} doesn't fit the tree any more: {done.stderr.strip()}")


def copy_files(names: Iterable[str], tree: Path) -> None:
    """Copy files of the tree, by their paths in it."""
    for name in names:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)


def copy_tree(tree: Path) -> None:
    """Copy the tree as it stands now, but for what was made from it."""
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*MADE), dirs_exist_ok=True)


def run_tests(node_ids: Sequence[str], tree: Path, seconds: float = SECONDS) -> dict[str, list[str]]:
    """Run tests in `tree`; by node id, the result of each of its cases: "passed", or what pytest says is wrong."""
    report = tree / ".planted.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--tb=short"]
    with (tree / ".planted.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--junitxml={report}", *node_ids],
            cwd=tree,
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()  # the servers and processes of its tests end with it
            process.wait()
    results: dict[str, list[str]] = {node_id: [] for node_id in node_ids}
    for case in ET.parse(report).iter("testcase") if report.exists() else ():
        node_id = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for asked in {node_id, node_id.partition("[")[0]} & results.keys():
            results[asked].append(_result(case))
    return results


def _result(case: ET.Element) -> str:
    for kind in ("failure", "error", "skipped"):
        for found in case.iter(kind):
            return f"{kind}: {(found.get('message') or '').strip()}"
    return "passed"


def judge(results: dict[str, list[str]]) -> str:
    """Caught when each named test failed by assertion; otherwise what happened instead."""
    for node_id, cases in results.items():
        failed = [case for case in cases if case != "passed"]
        if not cases:
            return f"{node_id} did not run"
        if not failed:
            return f"{node_id} passed"
        if not any(case.startswith("failure: ") and BY_ASSERTION.match(case[9:]) for case in failed):
            return f"{node_id} broke: {failed[0].splitlines()[0][:200]}"
    return "caught"


def plant(planted: Planted, tree: Path) -> Outcome:
    """Break `tree` by a patch, run the tests that must notice, and mend it again."""
    begun = time.monotonic()
    try:
        apply(planted, tree)
        verdict = judge(run_tests(planted.caught_by, tree))
    except DoesNotApply as exc:
        verdict = str(exc)
    finally:
        copy_files(planted.files, tree)
    return Outcome(planted, verdict, time.monotonic() - begun)


def _plant_in_turn(trees: "SimpleQueue[Path]", planted: Planted) -> Outcome:
    tree = trees.get()
    try:
        outcome = plant(planted, tree)
    finally:
        trees.put(tree)
    say(f"{outcome.verdict:<8} {planted.promise:<3} {planted.name:<32} {outcome.seconds:5.1f} s  {planted.says}")
    return outcome


def unpatched(chosen: Sequence[Planted], tree: Path) -> list[str]:
    """What the named tests say without any patch; nothing, if all is well."""
    node_ids = list(dict.fromkeys(node_id for planted in chosen for node_id in planted.caught_by))
    results = run_tests(node_ids, tree, SECONDS * 4)
    return [f"{node_id}: {cases or 'did not run'}" for node_id, cases in results.items() if set(cases) != {"passed"}]


def say(line: str) -> None:
    """One line of the report, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(names: Sequence[str]) -> int:
    """Plant the bugs of these names, or all of them; 1 when one isn't caught or a test fails without it."""
    chosen = [planted for planted in all_planted() if not names or planted.name in names]
    if len(chosen) < len(names):
        say(f"There are: {', '.join(planted.name for planted in all_planted())}")
        return 1
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(AT_A_TIME):
            copy_tree(Path(folder) / str(number))
            trees.put(Path(folder) / str(number))
        wrong = unpatched(chosen, Path(folder) / "0")
        for line in wrong:
            say(f"fails without any planted bug: {line}")
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            outcomes = list(pool.map(partial(_plant_in_turn, trees), chosen))
    caught = sum(outcome.verdict == "caught" for outcome in outcomes)
    say(f"planted {len(outcomes)}, caught {caught}")
    return 1 if wrong or caught < len(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
