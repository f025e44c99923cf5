"""The tests pass whatever a user has done in the project."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT


def run(copy, *words):
    done = subprocess.run([sys.executable, *words], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_tests_pass_after_training_adding_comparing_and_deleting(tmp_path):
    """Follow README's 'Make it yours' literally, in a copy without .git; then put own results among the committed ones,
    and delete some of these."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "data", ".venv", "venv", "__pycache__", "digits"))
    section = (copy / "README.md").read_text(encoding="utf-8").partition("## Make it yours")[2].partition("\n## ")[0]
    (network,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (commands,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    with open(copy / "models.py", "a") as models:
        models.write(f"\n\n{network}")
    run(copy, "train.py", "--model", "cnn2", "--dataset", "digits", "--epochs", "10")
    *commands, test = commands.splitlines()
    for line in commands:
        run(copy, *line.split()[1:])
    assert "cnn3" in (copy / "outs/digits/comparison.md").read_text()
    for name in ("loss_plot", "confusion_matrix_test", "mistakes", "inside"):
        assert (copy / "outs/digits/cnn3" / f"{name}.png").exists()
    here = ("--dataset", "digits", "--epochs", "1", "--out-dir", "outs/exercise_04")
    run(copy, "train.py", "--model", "cnn2", *here)
    run(copy, "train.py", "--model", "cnn3", *here, "--run-name", "mine")
    run(copy, "evaluate.py", "outs/exercise_04/cnn2", "outs/exercise_04/mine", "--out-dir", "outs/exercise_04/ours")
    shutil.rmtree(copy / "outs/seeds")
    shutil.rmtree(copy / "outs/exercise_04/vgg")
    # Without those that draw, or that are about processes and servers: they take long, and know no network or result.
    elsewhere = [f"--ignore=tests/test_{subject}.py" for subject in ("command", "download", "kill")]
    quick = ["-q", "-p", "no:cacheprovider", "-m", "not slow and not pictures", *elsewhere]
    out = run(copy, *test.split()[1:], *quick)
    assert " passed" in out.splitlines()[-1] and not os.path.exists(copy / ".git")
