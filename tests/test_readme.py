"""The README says what the committed files say: its tables, and every measured number in its sentences."""

import json
import math
import re
import statistics

import numpy as np
import pytest

import evaluate
import plots
import readme_tables
from conftest import ROOT
from readme_tables import BENCHMARKS, IMPROVED, NETWORKS, RESULTS, RUNS, SOFTMAX_TWICE, metrics_of

README = readme_tables.README.read_text()


def test_tables_are_those_that_the_committed_files_give():
    assert README.count("<!-- table: ") == README.count("<!-- end of table -->") == len(readme_tables.TABLES)
    assert readme_tables.with_tables(README) == README, "python tests/readme_tables.py writes them again"


@pytest.mark.parametrize("name", RUNS)
def test_metrics_can_be_recomputed_from_the_committed_predictions(name):
    with np.load(RESULTS / name / plots.PREDICTIONS) as saved:
        labels, predicted = saved["labels"], saved["probabilities"].argmax(axis=1)
    test = metrics_of(name)["test"]
    assert (labels == predicted).mean() == pytest.approx(test["accuracy"])
    pairs = np.zeros((10, 10), int)
    np.add.at(pairs, (labels, predicted), 1)
    assert pairs.tolist() == test["confusion_matrix"]


def test_comparison_is_that_of_the_committed_metrics():
    rows = plots.read_rows(RESULTS / plots.COMPARISON)
    assert [row["model"] for row in rows] == RUNS
    text = (RESULTS / plots.COMPARISON).with_suffix(".md").read_text()
    for row in rows:
        metrics = metrics_of(row["model"])
        for split in plots.SPLITS:
            assert float(row[f"{split}_accuracy"]) == metrics[split]["accuracy"]
            assert f"{metrics[split]['accuracy']:.2%}" in text
        assert int(row["best_epoch"]) == metrics["best_epoch"]


def claims():
    """Every stretch of the README's prose that has measured numbers in it, made from the files that have them."""
    history = {name: plots.read_history(RESULTS / name) for name in NETWORKS}
    metrics = {name: metrics_of(name) for name in NETWORKS}
    lowest = {name: int(history[name]["validation_loss"].argmin()) + 1 for name in NETWORKS}
    best = {name: metrics[name]["best_epoch"] for name in NETWORKS}
    minutes = {name: history[name]["seconds"].sum() / 60 for name in NETWORKS}
    assert 7 <= minutes["cnn2"] <= 9
    yield "about eight minutes"
    yield f"{metrics['cnn2']['parameters']:,} of them in `cnn2`"
    yield f"validation loss is lowest at epoch {lowest['cnn2']};"
    yield f"its peak at epoch {best['cnn2']} and"
    yield f"the other {80 - best['cnn2']} epochs"
    yield f"by epoch {best['cnn2']}."
    yield f"turns at epoch {lowest['dense']}."
    yield f"from epoch {lowest['cnn1']} to the last one"
    assert history["cnn1"]["validation_loss"][-1] > 2 * history["cnn1"]["validation_loss"].min()
    yield f"turns at epoch {lowest['vgg']} and"
    yield f"up to the kept epoch, {best['vgg']}."

    matrix = np.array(metrics["cnn2"]["test"]["confusion_matrix"])
    vehicles, mammals = [0, 1, 8, 9], [3, 4, 5, 7]
    yield f"Only {matrix[np.ix_(vehicles, mammals)].sum() / matrix[vehicles].sum():.1%} of the vehicles are"
    kernels = [np.load(RESULTS / name / plots.FILTERS)["weights"].ravel() for name in ("cnn1", "cnn2")]
    yield f"r = {np.corrcoef(kernels)[0, 1]:.2f}"
    accuracy = {name: {split: metrics[name][split]["accuracy"] for split in plots.SPLITS} for name in NETWORKS}
    yield f"{100 * (accuracy['cnn2']['test'] - accuracy['dense']['test']):.0f} points more of the test images"
    below = max(100 * (values["validation"] - values["test"]) for values in accuracy.values())
    yield f"more than {math.ceil(10 * below) / 10:.1f} points below the validation accuracy"

    tests = [metrics_of(name)["test"] for name in (IMPROVED, "vgg")]
    yield "{:.2%} test accuracy instead of {:.2%}".format(*(test["accuracy"] for test in tests))
    errors = [test["expected_calibration_error"] for test in tests]
    yield "calibration error of {:.2%} instead of {:.2%}".format(*errors)

    losses = [metrics[name]["test"]["loss"] for name in ("vgg", "cnn2")]
    yield "({:.2f} against {:.2f})".format(*losses)
    yield f"at {metrics['vgg']['multiply_adds'] / metrics['cnn2']['multiply_adds']:.0f} times the multiply-adds of `cnn2`"

    robust = {
        (row["model"], row["transformation"], row["amount"]): float(row["test_accuracy"])
        for row in plots.read_rows(RESULTS / plots.ROBUSTNESS)
    }
    kept = {name: robust[name, "shift", "8"] / robust[name, "shift", "0"] for name in NETWORKS}
    yield "`dense` keeps {:.0%} of its accuracy, `cnn1` {:.0%}, `cnn2` {:.0%} and `vgg` {:.0%}".format(*kept.values())
    kept = {name: robust[name, "rotation", "30"] / robust[name, "rotation", "0"] for name in NETWORKS}
    others = [value for name, value in kept.items() if name != "dense"]
    yield f"`dense` keeps {kept['dense']:.0%} of its accuracy and the others only {min(others):.0%} to {max(others):.0%}"

    kept = {
        kind: [robust[name, kind, amount] / robust[name, kind, "0"] for name in (IMPROVED, "vgg")]
        for kind, amount in (("shift", "8"), ("rotation", "30"))
    }
    yield "it keeps {:.0%} of its accuracy instead of {:.0%}".format(*kept["shift"])
    yield "it keeps {:.0%} instead of {:.0%}".format(*kept["rotation"])
    shown = [np.load(RESULTS / name / plots.MISTAKES)["probabilities"].max(axis=1) for name in (IMPROVED, "vgg")]
    assert shown[0].max() < 0.995 <= shown[1].min()
    yield "a probability that rounds to 100%"

    twice = json.loads((SOFTMAX_TWICE / plots.METRICS).read_text())
    right = [evaluate.right_predictions(folder) for folder in (RESULTS / "cnn2", SOFTMAX_TWICE)]
    only_logits, only_twice, p = evaluate.mcnemar(*right)
    lost = 100 * (metrics["cnn2"]["test"]["accuracy"] - twice["test"]["accuracy"])
    yield f"{lost:.1f} points of test accuracy"
    yield f"{only_logits} images are right without the mistake only, {only_twice} with it only"
    yield f"(McNemar's test, below: p = {p:.0e})"
    yield f"{twice['best_epoch']} epochs instead of {best['cnn2']}"
    losses = [each["test"]["loss"] for each in (twice, metrics["cnn2"])]
    yield "the real cross-entropy on the test images is {:.2f} instead of {:.2f}".format(*losses)

    rows = plots.read_rows(BENCHMARKS / "precision.csv")
    accuracies = {
        precision: [float(row["validation_accuracy"]) for row in rows if row["precision"] == precision]
        for precision in ("bf16", "fp32")
    }
    assert all(len(values) == 3 for values in accuracies.values())
    means, deviations = (
        [function(values) for values in accuracies.values()] for function in (statistics.mean, statistics.stdev)
    )
    yield f"{means[0]:.2%} on average in bf16 and {means[1]:.2%} in fp32"
    yield "standard deviations of {:.2f} and {:.2f} points".format(*(100 * value for value in deviations))


# Numbers that were chosen or defined, not measured.
DEFINED = [
    "95% interval",
    "gives 80%",
    "a loss of 1.46",
    "for 80 epochs",
    ": 80 epochs",
    "80 epochs done",
    "2.30 where all ten",
    "over 20 epochs",
    "Python 3.10",
    "arXiv:1409.1556",
    "arXiv:1711.05101",
    "arXiv:1608.03983",
    "arXiv:1708.04552",
    "arXiv:1512.00567",
]


def plain(text):
    return " ".join(text.split())


def test_numbers_in_the_sentences_are_those_of_the_committed_files():
    prose = plain(README)
    missing = [claim for claim in claims() if claim not in prose]
    assert not missing


def test_no_other_measured_number_stands_in_the_sentences():
    prose = plain(re.sub(r"```.*?```", "", readme_tables.MARKED.sub("", README), flags=re.DOTALL))
    for known in sorted([*claims(), *DEFINED], key=len, reverse=True):
        prose = prose.replace(known, "")
    unknown = re.findall(r".{0,40}(?:\d ?%|\d+\.\d+ |\d points|epochs? \d|\d epochs|\d minutes).{0,20}", prose)
    assert not unknown


def test_every_linked_file_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert links
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), link
