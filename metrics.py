"""Metrics, calibration, temperature, confidence intervals, paired differences: pure functions of predictions."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy, nll_loss

CALIBRATION_BINS = 15  # of equal width, as in Guo et al. 2017
IMAGES_SHOWN = 25  # in the picture of the worst mistakes, and in that of random predictions
DECIMALS = 6  # in result files; further ones differ from one processor to the next
Z = 1.959964  # half the width of a 95% interval, in standard errors
METRIC_KEYS = {
    "samples",
    "loss",
    "accuracy",
    "accuracy_interval",
    "balanced_accuracy",
    "expected_calibration_error",
    "calibration_bins",
    "macro",
    "per_class",
    "confusion_matrix",
}
METRIC_COLUMNS = ("precision", "recall", "f1", "specificity")


class Predictions(NamedTuple):
    """A network's predictions for a split: log_probabilities, float32 [N, 10]; labels, int64 [N]; both on the CPU.

    Logarithms, because the loss of a confident mistake couldn't be computed from a probability that rounds to 0.
    """

    log_probabilities: torch.Tensor
    labels: torch.Tensor

    def probabilities(self) -> np.ndarray:
        """float32 [N, 10], rounded so that rounding errors don't decide between two equally probable classes."""
        return self.log_probabilities.exp().numpy().round(DECIMALS)

    def classes(self) -> np.ndarray:
        """The predicted classes, int64 [N]."""
        return self.probabilities().argmax(axis=1)

    def right(self) -> np.ndarray:
        """Whether each predicted class is the true one, bool [N]."""
        return self.classes() == self.labels.numpy()


def mean_loss_and_accuracy(predictions: Predictions):
    """Mean cross-entropy and accuracy over the samples, as two floats."""
    loss = nll_loss(predictions.log_probabilities.double(), predictions.labels).item()
    return loss, float(predictions.right().mean())


def rounded(value):
    """Round floats, also inside dicts and lists, to the decimals on which machines agree."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, DECIMALS) if isinstance(value, float) else value


def worst_mistakes(probabilities, labels):
    """Indices of the misclassified samples whose predicted class has the highest probability, worst first, ties in the
    order of the split: int64 [at most IMAGES_SHOWN]."""
    confidences = np.where(probabilities.argmax(axis=1) == labels, -1, probabilities.max(axis=1))
    order = np.argsort(-confidences, kind="stable")[:IMAGES_SHOWN]
    return order[confidences[order] >= 0]


def split_metrics(predictions: Predictions, classes):
    """All metrics of one split as a plain dict."""
    # Imported here because it takes long: a mistyped option should be reported at once.
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

    loss, accuracy = mean_loss_and_accuracy(predictions)
    labels, predicted = predictions.labels.numpy(), predictions.classes()
    matrix = confusion_matrix(labels, predicted, labels=range(len(classes)))
    per_class = precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0)
    total = len(labels)
    # Specificity of a class: the share of the other classes' samples that aren't predicted as this class.
    negatives = total - matrix.sum(axis=1)
    false_positives = matrix.sum(axis=0) - np.diag(matrix)
    columns = {
        "precision": per_class[0],
        "recall": per_class[1],
        "f1": per_class[2],
        "specificity": 1 - false_positives / negatives,
    }
    return {
        "samples": total,
        "loss": loss,
        "accuracy": accuracy,
        "accuracy_interval": wilson_interval(int(predictions.right().sum()), total),
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
        **calibration(predictions.probabilities().max(axis=1), predictions.right()),
        "macro": {name: float(values.mean()) for name, values in columns.items()},
        "per_class": {
            label: {name: float(values[index]) for name, values in columns.items()}
            | {"support": int(per_class[3][index])}
            for index, label in enumerate(classes)
        },
        "confusion_matrix": matrix.tolist(),
    }


def wilson_interval(count, total):
    """The 95% confidence interval of a proportion, count / total, as [low, high] (Wilson 1927)."""
    from scipy.stats import binomtest

    return [*binomtest(count, total).proportion_ci(method="wilson")]


def calibration(confidences, right):
    """Expected calibration error and its bins, from the probabilities of the predicted classes, float [N], and whether
    these are right, bool [N].

    The confidences are sorted into bins of equal width; the error is the gap between mean confidence and accuracy in a
    bin, averaged over the samples (Guo et al. 2017, arXiv:1706.04599, equation 3).
    """
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bin_of = np.digitize(confidences, edges[1:-1], right=True)  # (low, high], as in the paper
    bins = []
    for index in range(CALIBRATION_BINS):
        inside = bin_of == index
        count = int(inside.sum())
        bins.append(
            {
                "low": float(edges[index]),
                "high": float(edges[index + 1]),
                "samples": count,
                "confidence": float(confidences[inside].mean(dtype=np.float64)) if count else None,
                "accuracy": float(right[inside].mean()) if count else None,
            }
        )
    gaps = [bin["samples"] * abs(bin["accuracy"] - bin["confidence"]) for bin in bins if bin["samples"]]
    return {"expected_calibration_error": sum(gaps) / len(right), "calibration_bins": bins}


def fit_temperature(predictions: Predictions) -> float:
    """The temperature, from 0.05 to 20, that minimises the loss on these predictions when all logits are divided by it
    (Guo et al. 2017, arXiv:1706.04599, section 4.2). The predicted classes stay the same."""
    logarithm = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logarithm], max_iter=100, line_search_fn="strong_wolfe")
    logits = predictions.log_probabilities.double()

    def loss():
        optimizer.zero_grad()
        value = cross_entropy(logits / logarithm.exp(), predictions.labels)
        value.backward()
        return value

    optimizer.step(loss)
    return min(max(logarithm.exp().item(), 0.05), 20.0)


def calibrated_metrics(predictions: Predictions, temperature):
    """Loss and calibration of a split's predictions after dividing their logits by the temperature."""
    log_probabilities = (predictions.log_probabilities.double() / temperature).log_softmax(dim=1)
    confidences = log_probabilities.exp().max(dim=1).values.numpy().round(DECIMALS)
    loss = nll_loss(log_probabilities, predictions.labels).item()
    return {"loss": loss, **calibration(confidences, predictions.right())}


def paired_difference(this, that):
    """Compare two classifiers on the same samples, given whether each is right on them: two bool arrays [N].

    Returns how often only `this` is right, how often only `that`, the difference of their accuracies, and the ends of
    its 95% interval (Agresti 2013, Categorical data analysis, equation 11.2).
    """
    only_this, only_that, total = int((this & ~that).sum()), int((that & ~this).sum()), len(this)
    difference = (only_this - only_that) / total
    margin = Z * math.sqrt((only_this + only_that) / total - difference**2) / math.sqrt(total)
    return only_this, only_that, difference, difference - margin, difference + margin


def metric_rows(metrics):
    """The metric table of one split as rows of strings: a header, a row for each class, the macro average."""
    rows = [["class", "precision", "recall", "F1", "specificity", "images"]]
    for label, values in [*metrics["per_class"].items(), ("macro average", metrics["macro"])]:
        support = values.get("support", metrics["samples"])
        rows.append([label, *(f"{values[column]:.2%}" for column in METRIC_COLUMNS), f"{support:,}"])
    return rows


def metric_summary(metrics):
    """The overall metrics of one split as a line of text."""
    low, high = metrics["accuracy_interval"]
    return (
        f"accuracy {metrics['accuracy']:.2%} (95% interval {low:.2%} to {high:.2%}), "
        f"balanced accuracy {metrics['balanced_accuracy']:.2%}, loss {metrics['loss']:.4f}"
    )


def format_table(rows):
    """Rows of strings -> aligned lines of text, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )
