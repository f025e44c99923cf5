"""The check of the texts, on small texts made for these tests: an edit of the real texts can't make a test fail."""

import json

import numpy as np
import pytest

import data
import download
import runs
import train
from experiments import tables
from experiments.common import Variant
from recipe import Recipe

TABLE = "| network | test |\n| --- | ---: |\n| `dense` | 54.63% |\n"
TEXT = f"""# Title

It has 60,000 images of 32x32 pixels (Krizhevsky 2009), and `seed 17` is code.

## What came out?

<!-- table: small -->
{TABLE}<!-- end of table -->

`dense` is right in 54.63% of the images, after epoch 7 of 80.
A shift [costs](#what-came-out) 7.9 points, or 2.3 or 0.6 points.

```bash
# No heading: 99%
```
"""


@pytest.fixture
def check(monkeypatch, call, tmp_path):
    """check(text, ...) -> (exit code, output) of `--check` for a text with known sources."""
    values = [0.0231, np.array([0.079, 0.006]), [7]]
    path = tmp_path / "README.md"
    monkeypatch.setattr(tables, "TEXTS", (path,))
    monkeypatch.setattr(tables, "README", path)
    monkeypatch.setattr(tables, "TABLES", {"small": lambda: TABLE})
    monkeypatch.setattr(tables, "sources", lambda: [("Title", "60,000"), ("What came out?", "80", *values)])
    monkeypatch.setattr(tables, "check_runs", lambda data_dir: [])

    def run(text, *options):
        path.write_text(text, encoding="utf-8")
        return call(tables.main, "--check", *options)[:2]

    return run


def test_a_correct_text_passes_in_any_wording(check):
    assert check(TEXT) == (0, "")
    assert check(TEXT.replace("`dense` is right in 54.63% of the images, after", "54.63% already at")) == (0, "")
    assert check(TEXT.replace("7.9 points, or 2.3 or 0.6 points", "0.6, 2.31 and 8 points, and 8%")) == (0, "")


@pytest.mark.parametrize(
    ("true", "stale", "section"),
    [
        ("right in 54.63", "right in 54.64", "What came out?"),
        ("epoch 7", "epoch 9", "What came out?"),
        ("of 80", "of 81", "What came out?"),
        ("points, or 2.3", "points, or 2.4", "What came out?"),
        ("0.6 points", "0.7 points", "What came out?"),
        ("60,000", "61,000", "Title"),
    ],
)
def test_a_stale_number_is_reported_with_its_context_and_section(check, true, stale, section):
    code, out = check(TEXT.replace(true, stale))
    (number,) = {*tables.NUMBER.findall(stale)} - {*tables.NUMBER.findall(true)}
    assert code == 1 and out.startswith(f"README.md: {section}: {number} in '") and len(out.splitlines()) == 1


def test_a_number_from_another_section_is_stale(check):
    assert check(TEXT.replace("of 32x32", "(54.63%) of 32x32"))[0] == 1


def test_a_changed_or_unknown_table_is_reported_and_rewritten(check, call, tmp_path):
    stale = TEXT.replace("| 54.63% |", "| 54.36% |")
    code, out = check(stale)
    assert code == 1 and "the table small" in out
    assert call(tables.main)[0] == 0 and (tmp_path / "README.md").read_text(encoding="utf-8") == TEXT
    code, out = check(TEXT.replace("table: small", "table: other"))
    assert code == 1 and "the table other" in out


@pytest.mark.parametrize("link", ["missing.md", "#what-came-in", "folder/README.md#title", "folder#b-2"])
def test_a_dead_link_is_reported(check, tmp_path, link):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text("# A `b_c`, d's\n\n## b\n\n## b\n", encoding="utf-8")
    valid = "[1](folder) [2](folder/README.md#a-b_c-ds) [3](folder#b-1) [4](https://example.org/#x) [5](#title)"
    assert check(TEXT + valid) == (0, "")
    code, out = check(f"{TEXT}{valid} [6]({link})")
    assert code == 1 and out == f"README.md: the link {link} is dead\n"


def test_a_long_readme_a_wrong_command_and_sources_without_a_section_are_reported(check):
    assert "lines, more than" in check(TEXT + "\n" * tables.LONGEST_README)[1]
    command = f"\n```bash\npython train.py {tables.ablation.COMMAND}\n```\n".replace(" --epochs", " \\\n    --epochs")
    assert check(TEXT + command) == (0, "")
    code, out = check(TEXT + command.replace("--skip-easy 0.6", "--skip-easy 0.5"))
    assert code == 1 and "the command of vgg_improved" in out
    code, out = check(TEXT.replace("# Title", "# Other title").replace("60,000 ", ""))
    assert code == 1 and out == "sources for 'Title', but no such section\n"


@pytest.mark.parametrize(
    ("number", "value", "same"),
    [
        ("94.17", 0.9417, True),
        ("94.2", 0.9417, True),
        ("94", 0.9417, True),
        ("94.18", 0.9417, False),
        ("0.5", -0.0051, True),
        ("545,098", 545098, True),
        ("4096", [10, 4096], True),
        ("10", "10 20", True),
        ("1", "10 20", False),
        ("2", [], False),
    ],
)
def test_numbers_agree_as_printed(number, value, same):
    assert tables.agrees(number, value) == same


@pytest.fixture
def run_folder(call, few_digits, monkeypatch, tmp_path):
    """A run on a few digits instead of the committed ones, with its test split instead of CIFAR-10's."""
    options = ["--model", "dense", "--dataset", "digits", "--epochs", "1", "--out-dir", "outs"]
    assert call(train.main, *options)[0] == 0
    folder = tmp_path / "outs" / "dense"
    metrics = runs.read_metrics(folder)
    rows = [{"model": "dense", "test_accuracy": metrics["test"]["accuracy"]}]
    runs.write_atomically(tmp_path / "outs" / runs.COMPARISON, runs.csv_bytes(rows))
    (tmp_path / "data" / download.FOLDER).mkdir(parents=True)
    digits = data.load_splits("digits", "")
    monkeypatch.setattr(data, "load_splits", lambda *arguments: digits)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "outs")
    monkeypatch.setattr(tables, "NETWORKS", ("dense",))
    monkeypatch.setattr(tables, "VARIANTS", {"dense": Variant("dense", Recipe(**metrics["settings"]))})
    return folder


def test_files_of_a_run_that_disagree_are_reported(run_folder, monkeypatch, tmp_path, capsys):
    def problems():
        return "\n".join(tables.check_runs(tmp_path / "data"))

    assert problems() == "" and capsys.readouterr().out == ""
    labels, probabilities = runs.read_arrays(run_folder / runs.PREDICTIONS, "labels", "probabilities")
    probabilities[0] += 0.001
    runs.write_arrays(run_folder / runs.PREDICTIONS, labels=labels, probabilities=probabilities)
    assert problems() == "dense: best.pt doesn't give the predictions in predictions_test.npz"
    assert [*tables.check_runs(tmp_path)] == [] and "CIFAR-10 is not in" in capsys.readouterr().out
    runs.write_arrays(run_folder / runs.PREDICTIONS, labels=(labels + 1) % 10, probabilities=probabilities)
    assert "disagree on the test accuracy" in problems()
    metrics = runs.read_metrics(run_folder)
    for change in ({"best_epoch": 99}, {"settings": metrics["settings"] | {"seed": 9}}):
        (run_folder / runs.METRICS).write_text(json.dumps(metrics | change))
        assert "best.pt and metrics.json disagree on the recipe or the epoch" in problems()
    assert "the recipe in metrics.json is not the one in experiments.seeds" in problems()
