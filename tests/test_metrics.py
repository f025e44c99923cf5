import json

import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy.stats import binomtest

import data
import evaluate
import models
import runs
from metrics import Predictions, calibrated_metrics, calibration, fit_temperature, split_metrics


def test_metrics_agree_with_scikit_learn_on_the_saved_predictions(finished_run):
    folder, _ = finished_run("cnn2")
    metrics = json.loads((folder / "metrics.json").read_text())
    saved = np.load(folder / "predictions_test.npz")
    labels, probabilities = saved["labels"], saved["probabilities"]
    assert labels.dtype == np.int64 and probabilities.dtype == np.float32 and probabilities.shape == (300, 10)
    assert np.array_equal(labels, data.load_splits("digits", "", ["test"])["test"].labels)
    predicted, test = probabilities.argmax(axis=1), metrics["test"]
    assert test["samples"] == 300
    assert test["confusion_matrix"] == sklearn.metrics.confusion_matrix(labels, predicted).tolist()

    def close(value):
        return pytest.approx(value, abs=1e-6)

    assert test["accuracy"] == close(sklearn.metrics.accuracy_score(labels, predicted))
    assert test["balanced_accuracy"] == close(sklearn.metrics.balanced_accuracy_score(labels, predicted))
    assert test["loss"] == pytest.approx(-np.log(probabilities[range(300), labels]).mean(), rel=1e-4)
    report = sklearn.metrics.classification_report(labels, predicted, output_dict=True, zero_division=0)
    for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert test["macro"][name] == close(report["macro avg"][key])
        for label in range(10):
            assert test["per_class"][str(label)][name] == close(report[str(label)][key])
    for label in range(10):
        # Specificity is the recall of "not this class".
        others = sklearn.metrics.recall_score(labels != label, predicted != label)
        assert test["per_class"][str(label)]["specificity"] == close(others)
        assert test["per_class"][str(label)]["support"] == (labels == label).sum()
    right = int((labels == predicted).sum())
    interval = binomtest(right, 300).proportion_ci(method="wilson")
    assert test["accuracy_interval"] == close([interval.low, interval.high])


def test_calibration_error_matches_the_saved_predictions(finished_run):
    folder, _ = finished_run("cnn2")
    test = json.loads((folder / "metrics.json").read_text())["test"]
    saved = np.load(folder / "predictions_test.npz")
    confidences, right = saved["probabilities"].max(axis=1), saved["probabilities"].argmax(axis=1) == saved["labels"]
    error = 0
    for index in range(15):
        inside = (confidences > index / 15) & (confidences <= (index + 1) / 15)
        error += abs(right[inside].sum() - confidences[inside].sum()) / 300
        assert test["calibration_bins"][index]["samples"] == inside.sum()
    assert test["expected_calibration_error"] == pytest.approx(error, abs=1e-6)
    assert 0 < error < 1


def test_calibration_of_known_predictions():
    assert calibration(np.full(4, 0.75), np.array([1, 1, 1, 0]) == 1)["expected_calibration_error"] == 0
    half_wrong = calibration(np.array([1.0, 1.0, 0.5, 0.5]), np.array([True, False, True, False]))
    assert half_wrong["expected_calibration_error"] == 0.25
    assert [bin["samples"] for bin in half_wrong["calibration_bins"]] == [0] * 7 + [2] + [0] * 6 + [2]


def test_temperature_undoes_scaling_the_logits():
    """Logits are calibrated if labels are drawn from their probabilities; tripled logits are overconfident."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    overconfident = Predictions((3 * logits).log_softmax(dim=1), labels)
    temperature = fit_temperature(overconfident)
    assert temperature == pytest.approx(3, rel=0.05)
    before = split_metrics(overconfident, [str(number) for number in range(10)])
    after = calibrated_metrics(overconfident, temperature)
    assert after["expected_calibration_error"] < 0.02 < 0.2 < before["expected_calibration_error"]
    assert after["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-3)


def test_temperature_is_fitted_on_the_validation_split(finished_run):
    folder, _ = finished_run("cnn2")
    metrics = json.loads((folder / "metrics.json").read_text())
    model, _ = models.load_model(folder / "best.pt")
    predictions = evaluate.infer(model, data.load_splits("digits", "", ["validation"])["validation"])
    assert metrics["temperature"] == pytest.approx(fit_temperature(predictions), rel=1e-3)
    assert metrics["validation"]["after_temperature"]["loss"] <= metrics["validation"]["loss"]
    for split in runs.SPLITS:
        after = metrics[split]["after_temperature"]
        assert sum(line["samples"] for line in after["calibration_bins"]) == metrics[split]["samples"]
