"""Every planted bug of tests/controls/ fits the code and names tests that exist; two, others every day, are planted."""

import datetime as dt
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import planted
from tests.planted import DoesNotApply, Planted, all_planted, apply, copy_tree, judge, plant

A_DAY = 2
PATCH = """Promise: G1
Says: nothing
Caught by: tests/test_x.py::test_y

--- a/x.py
+++ b/x.py
@@ -1,2 +1,2 @@
 one
-two
+three
"""


def test_every_patch_fits_the_code() -> None:
    everything = all_planted()
    assert len(everything) >= 16
    for bug in everything:
        apply(bug, planted.ROOT, check=True)
    promises = {bug.promise for bug in everything}
    assert promises == {f"G{number}" for number in range(1, 13)}, "a promise without a planted bug"


def test_every_test_that_is_named_exists() -> None:
    node_ids = {node_id for bug in all_planted() for node_id in bug.caught_by}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-n", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*command, *node_ids], cwd=planted.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def of_today() -> list[Planted]:
    """`A_DAY` bugs, so that each comes up in its turn."""
    everything = all_planted()
    first = dt.datetime.now(dt.UTC).toordinal() * A_DAY
    return [everything[(first + number) % len(everything)] for number in range(A_DAY)]


@pytest.mark.timeout(600)
def test_the_bugs_of_today_are_caught(tmp_path: Path) -> None:
    bugs = of_today()
    trees = [tmp_path / bug.name for bug in bugs]
    for tree in trees:
        copy_tree(tree)
    with ThreadPoolExecutor(A_DAY) as pool:
        outcomes = list(pool.map(plant, bugs, trees))
    assert {outcome.planted.name: outcome.verdict for outcome in outcomes} == {bug.name: "caught" for bug in bugs}


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ({"a": ["failure: AssertionError: assert 1 == 2"]}, "caught"),
        ({"a": ["passed", "failure: Failed: DID NOT RAISE <class 'X'>"]}, "caught"),
        ({"a": ["failure: ValueError: not enough values to unpack (expected 1, got 0)"]}, "caught"),
        ({"a": ["failure: assert not 1"], "b": ["passed"]}, "b passed"),
        ({"a": ["failure: ImportError: no x"]}, "a broke: failure: ImportError: no x"),
        ({"a": ["error: AssertionError: the fixture"]}, "a broke: error: AssertionError: the fixture"),
        ({"a": ["skipped: no chromium"]}, "a broke: skipped: no chromium"),
        ({"a": []}, "a did not run"),
    ],
)
def test_only_a_failed_assertion_catches(results: dict[str, list[str]], verdict: str) -> None:
    assert judge(results) == verdict


def test_a_patch_that_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "FOLDER", tmp_path)
    (tmp_path / "bad.patch").write_text(PATCH)
    (bug,) = all_planted()
    assert (bug.name, bug.caught_by, bug.files) == ("bad", ("tests/test_x.py::test_y",), ["x.py"])
    (tmp_path / "x.py").write_text("one\ntwo\n")
    apply(bug, tmp_path)
    assert (tmp_path / "x.py").read_text() == "one\nthree\n"
    with pytest.raises(DoesNotApply, match="bad doesn't fit the tree any more"):
        apply(bug, tmp_path)
