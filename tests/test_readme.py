"""The README says what the committed files say: its tables, and every measured number in its sentences."""

import functools
import json
import math
import re
import statistics

import numpy as np
import pytest
import torch

import data
import evaluate
import models
import runs
from conftest import ROOT
from experiments import tables
from experiments.tables import ABLATION, EXPERIMENTS, IMPROVED, NETWORKS, RESULTS, RUNS, SOFTMAX_TWICE, metrics_of

README = tables.README.read_text(encoding="utf-8")


def test_tables_are_those_that_the_committed_files_give():
    assert README.count("<!-- table: ") == README.count("<!-- end of table -->") == len(tables.TABLES)
    assert tables.with_tables(README) == README, "python -m experiments.tables writes them again"


@pytest.mark.parametrize("name", RUNS)
def test_metrics_can_be_recomputed_from_the_committed_predictions(name):
    with np.load(RESULTS / name / runs.PREDICTIONS) as saved:
        labels, predicted = saved["labels"], saved["probabilities"].argmax(axis=1)
    test = metrics_of(name)["test"]
    assert (labels == predicted).mean() == pytest.approx(test["accuracy"])
    pairs = np.zeros((10, 10), int)
    np.add.at(pairs, (labels, predicted), 1)
    assert pairs.tolist() == test["confusion_matrix"]


def test_comparison_is_that_of_the_committed_metrics():
    rows = runs.read_rows(RESULTS / runs.COMPARISON)
    assert [row["model"] for row in rows] == RUNS
    text = (RESULTS / runs.COMPARISON).with_suffix(".md").read_text()
    for row in rows:
        metrics = metrics_of(row["model"])
        for split in runs.SPLITS:
            assert float(row[f"{split}_accuracy"]) == metrics[split]["accuracy"]
            assert f"{metrics[split]['accuracy']:.2%}" in text
        assert int(row["best_epoch"]) == metrics["best_epoch"]


@functools.cache
def likeness_to_start(name):
    """For each weight matrix of a committed checkpoint, its correlation with what the seed made of it at the start."""
    trained, checkpoint = models.load_model(RESULTS / name / runs.BEST)
    torch.manual_seed(checkpoint["settings"]["seed"])
    pairs = zip(models.build(checkpoint["model"]).parameters(), trained.parameters())
    vectors = [[each.detach().flatten() for each in pair] for pair in pairs if pair[0].ndim > 1]
    return [torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in vectors]


@functools.cache
def answers_to_digits(name):
    """The share of scikit-learn's digits that a committed checkpoint takes for cats, its answers' mean probability."""
    model, checkpoint = models.load_model(RESULTS / name / runs.BEST)
    splits = data.load_splits("digits", None).values()
    probabilities = np.concatenate([evaluate.infer(model, split).probabilities() for split in splits])
    cats = probabilities.argmax(axis=1) == checkpoint["classes"].index("cat")
    return cats.mean(), probabilities.max(axis=1).mean(dtype=np.float64)


def claims():
    """Every stretch of the README's prose that has measured numbers in it, made from the files that have them."""
    history = {name: runs.read_history(RESULTS / name) for name in NETWORKS}
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
    yield f"turns at epoch {lowest['dense']}."
    yield f"from epoch {lowest['cnn1']} to the last one"
    assert history["cnn1"]["validation_loss"][-1] > 2 * history["cnn1"]["validation_loss"].min()
    yield f"turns at epoch {lowest['vgg']} and"
    yield f"up to the kept epoch, {best['vgg']}."

    matrix = np.array(metrics["cnn2"]["test"]["confusion_matrix"])
    vehicles, mammals = [0, 1, 8, 9], [3, 4, 5, 7]
    yield f"Only {matrix[np.ix_(vehicles, mammals)].sum() / matrix[vehicles].sum():.1%} of the vehicles are"
    first, second, connected, _ = likeness_to_start("cnn2")
    yield f"at r = {first:.2f}; the second convolution's do at {second:.2f} and the weights of the first fully"
    yield f"connected layer at {connected:.2f}."
    likeness = [likeness_to_start(name)[0] for name in ("vgg", IMPROVED)]
    yield "In `vgg`, r is {:.2f} for the first kernels; in `vgg_improved`, {:.2f}.".format(*likeness)
    for text, name in (
        ("`cnn2` takes {:.0%} of them for cats, with a mean probability of {:.0%}", "cnn2"),
        ("and `vgg` {:.0%}, with one of {:.0%}", "vgg"),
    ):
        yield text.format(*answers_to_digits(name))

    classes = metrics["cnn2"]["test"]["per_class"]
    ranges = {}
    for column in ("precision", "recall", "f1"):
        values = {label: values[column] for label, values in classes.items()}
        assert min(values, key=values.get) == ("bird" if column == "precision" else "cat")
        ranges[column] = f"{100 * min(values.values()):.0f}–{max(values.values()):.0%}"
    yield f"`cnn2` has {metrics['cnn2']['test']['accuracy']:.2%}, and by class"
    yield "a precision of {precision}, a recall of {recall} and an F1 of {f1}: better".format(**ranges)
    saved = {name: 100 * np.ptp(history[name]["validation_accuracy"][[best[name] - 1, -1]]) for name in NETWORKS}
    assert min(saved, key=saved.get) == "vgg" and max(saved, key=saved.get) == "cnn2"
    yield f"from {saved['vgg']:.1f} points of validation accuracy (`vgg`) to {saved['cnn2']:.1f} (`cnn2`)"
    steps = 100 * np.diff([metrics_of(name)["test"]["accuracy"] for name in RUNS])
    yield f"from {steps.min():.0f} to {steps.max():.0f} points"
    accuracy = {name: {split: metrics[name][split]["accuracy"] for split in runs.SPLITS} for name in NETWORKS}
    yield f"{100 * (accuracy['cnn2']['test'] - accuracy['dense']['test']):.0f} points more of the test images"
    below = max(100 * (values["validation"] - values["test"]) for values in accuracy.values())
    yield f"more than {math.ceil(10 * below) / 10:.1f} points below the validation accuracy"

    pair = [metrics_of(name) for name in (IMPROVED, "vgg")]
    gaps = [100 * (run["train"]["accuracy"] - run["validation"]["accuracy"]) for run in pair]
    yield "{:.1f} points above that on validation images instead of {:.1f}".format(*gaps)
    long = [
        100 * runs.read_history(folder)["validation_accuracy"]
        for folder in (ABLATION / "longer", ABLATION / "longer_cutout", RESULTS / IMPROVED)
    ]
    yield "In 50 epochs, cutout brings {:.1f} points and label smoothing {:.1f}".format(
        *np.diff([max(run) for run in long])
    )
    gains = np.diff([run[-10:].mean() for run in long])
    yield "({:.1f} and {:.1f} by the mean of the last ten epochs)".format(*gains)
    short = [100 * runs.read_history(ABLATION / row)["validation_accuracy"].max() for row in ("weight_decay", "short")]
    assert abs(np.diff(short)) < 0.1
    tests = [run["test"] for run in pair]
    yield "{:.2%} test accuracy instead of {:.2%}".format(*(test["accuracy"] for test in tests))
    errors = [test["expected_calibration_error"] for test in tests]
    yield "calibration error of {:.2%} instead of {:.2%}".format(*errors)

    losses = [metrics[name]["test"]["loss"] for name in ("vgg", "cnn2")]
    yield "({:.2f} against {:.2f})".format(*losses)
    times = metrics["vgg"]["multiply_adds"] / metrics["cnn2"]["multiply_adds"]
    yield f"at {times:.0f} times the multiply-adds of `cnn2`"

    robust = {
        (row["model"], row["transformation"], row["amount"]): float(row["test_accuracy"])
        for row in runs.read_rows(RESULTS / runs.ROBUSTNESS)
    }
    shifted, turned = (
        {name: robust[name, kind, amount] / robust[name, kind, "0"] for name in RUNS}
        for kind, amount in (("shift", "8"), ("rotation", "30"))
    )
    yield "`dense` keeps {dense:.0%} of its accuracy, `cnn1` {cnn1:.0%}, `cnn2` {cnn2:.0%} and `vgg` {vgg:.0%}".format(
        **shifted
    )
    others = [turned[name] for name in NETWORKS if name != "dense"]
    yield f"`dense` keeps {turned['dense']:.0%} of its accuracy and the convolutional networks"
    yield f"of the same recipe only {min(others):.0%} to {max(others):.0%}"
    yield f"it keeps {shifted[IMPROVED]:.0%} of its accuracy instead of {shifted['vgg']:.0%}"
    yield f"it keeps {turned[IMPROVED]:.0%} instead of {turned['vgg']:.0%}"
    shown = [np.load(RESULTS / name / runs.MISTAKES)["probabilities"].max(axis=1) for name in (IMPROVED, "vgg")]
    assert shown[0].max() < 0.995 <= shown[1].min()
    yield "a probability that rounds to 100%"

    twice = json.loads((SOFTMAX_TWICE / runs.METRICS).read_text())
    right = [evaluate.right_predictions(folder) for folder in (RESULTS / "cnn2", SOFTMAX_TWICE)]
    only_logits, only_twice, p = evaluate.mcnemar(*right)
    lost = 100 * (metrics["cnn2"]["test"]["accuracy"] - twice["test"]["accuracy"])
    yield f"{lost:.1f} points of test accuracy"
    accuracies = [twice[split]["accuracy"] for split in ("test", "train")]
    yield "with the mistake `cnn2` has {:.2%}, and {:.2%} on the training images".format(*accuracies)
    yield f"{only_logits} images are right without the mistake only, {only_twice} with it only"
    yield f"(McNemar's test, below: p = {p:.0e})"
    yield f"{twice['best_epoch']} epochs instead of {best['cnn2']}"
    losses = [each["test"]["loss"] for each in (twice, metrics["cnn2"])]
    yield "the real cross-entropy on the test images is {:.2f} instead of {:.2f}".format(*losses)

    rows = runs.read_rows(EXPERIMENTS / "precision.csv")
    accuracies = {
        precision: [float(row["validation_accuracy"]) for row in rows if row["precision"] == precision]
        for precision in ("bf16", "fp32")
    }
    assert all(len(values) == 3 for values in accuracies.values())
    means, deviations = (
        [function(values) for values in accuracies.values()] for function in (statistics.mean, statistics.stdev)
    )
    apart = 100 * np.ptp([*accuracies["bf16"], *accuracies["fp32"]])
    yield f"of six runs with three seeds are at most {math.ceil(10 * apart) / 10:.1f} points apart"
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
    "in 20 epochs",
    "accuracy of about 60%",
    "a precision of 55–70%, a recall of 45–70% and an F1 of 50–70%",
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
    prose = plain(re.sub(r"```.*?```", "", tables.MARKED.sub("", README), flags=re.DOTALL))
    for known in sorted([*claims(), *DEFINED], key=len, reverse=True):
        prose = prose.replace(known, "")
    unknown = re.findall(r".{0,40}(?:\d ?%|\d+\.\d+ |\d points|epochs? \d|\d epochs|\d minutes).{0,20}", prose)
    assert not unknown


def test_every_linked_file_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert links
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), link
