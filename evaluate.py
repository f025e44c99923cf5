"""Evaluate saved checkpoints: metrics, tables and pictures; or let one name your own pictures.

Usage:

    python evaluate.py                                      every best.pt under outs/exercise_04, and the comparison
    python evaluate.py outs/exercise_04/cnn2/best.pt        one of them
    python evaluate.py outs/exercise_04/cnn2/best.pt --image cat.jpg
"""

import argparse
import csv
import io
import json
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support
from torch.nn.functional import nll_loss

import data
import models
import plots

DEFAULT_OUT_DIR = {"cifar10": Path("outs/exercise_04"), "digits": Path("outs/digits")}
DEFAULT_DATA_DIR = Path("data")
# Images predicted at a time. With more, a layer's output has over 32 MB, which glibc's malloc maps anew each time: half
# the speed, for page faults.
BATCH_SIZE = 100


def main(argv=None):
    arguments = parse_arguments(argv)
    device = choose_device(arguments.device)
    checkpoints = arguments.checkpoint or sorted(DEFAULT_OUT_DIR["cifar10"].glob(f"*/{plots.BEST}"))
    if not checkpoints:
        raise models.CheckpointError(f"no checkpoint named, and no best.pt under {DEFAULT_OUT_DIR['cifar10']}")
    if arguments.image:
        return 0 if predict_pictures(checkpoints, arguments.image, device) else 2
    # All are read before any is evaluated: a wrong name among them is found at once.
    datasets = {models.load_checkpoint(path)["dataset"] for path in checkpoints}
    if len(datasets) > 1:
        raise models.CheckpointError(
            f"checkpoints of different data sets can't be compared: {', '.join(sorted(datasets))}"
        )
    for path in checkpoints:
        evaluate_checkpoint(path, arguments.data_dir, device)
    if len(checkpoints) > 1:
        compare([results_folder(path) for path in checkpoints])
    return 0


def parse_arguments(argv):
    parser = Parser(
        description="Evaluate checkpoints on the training, validation and test split, or name the content of pictures.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="*",
        help=f"checkpoint files (default: every best.pt under {DEFAULT_OUT_DIR['cifar10']})",
    )
    parser.add_argument("--image", type=Path, nargs="+", metavar="FILE", help="pictures to classify; needs no data set")
    add_common_arguments(parser)
    return parser.parse_args(argv)


def infer(model, split):
    """Predict a whole split, in fp32 whatever the precision of the training, so that every machine agrees.

    Returns log-probabilities float32 [N, 10] and labels int64 [N], both on the CPU. Log-probabilities, because the
    loss of a confident mistake is lost where its probability rounds to 0.
    """
    model.eval()
    with torch.inference_mode():
        parts = [model.logits(images).float().log_softmax(dim=1) for images in split.images.split(BATCH_SIZE)]
    return torch.cat(parts).cpu(), split.labels.cpu()


def mean_loss_and_accuracy(log_probabilities, labels):
    """Cross-entropy and share of right predictions, each the mean over the samples, as two floats."""
    right = log_probabilities.exp().argmax(dim=1) == labels  # exp: as in predictions_test.npz, ties included
    return nll_loss(log_probabilities.double(), labels).item(), right.double().mean().item()


def evaluate_checkpoint(path, data_dir, device):
    """Evaluate one checkpoint on the three splits; write metrics.json, predictions_test.npz and the pictures, print
    the tables. Returns the metrics as they stand in metrics.json; their "seconds" are those of all epochs up to the
    checkpoint's."""
    path = Path(path)
    model, checkpoint = models.load_model(path)
    model.to(device)
    folder = results_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    splits = data.load_splits(checkpoint["dataset"], data_dir, split_seed=checkpoint["split_seed"])
    metrics = {
        "model": checkpoint["model"],
        "dataset": checkpoint["dataset"],
        "parameters": models.count_parameters(model),
        "best_epoch": checkpoint["epoch"],
        "settings": checkpoint["settings"],
        "seeds": {"training": checkpoint["settings"]["seed"], "split": checkpoint["split_seed"]},
        **checkpoint["environment"],
        "seconds": checkpoint["seconds"],
    }
    print(f"\n{path}: {checkpoint['model']}, epoch {checkpoint['epoch']}")
    for name, split in splits.items():
        log_probabilities, labels = infer(model, split.to(device))
        metrics[name] = split_metrics(log_probabilities, labels, checkpoint["classes"])
        print(f"\n{name}\n{format_metrics(metrics[name])}", flush=True)
    # The test split is the last one.
    buffer = io.BytesIO()
    np.savez_compressed(buffer, labels=labels.numpy(), probabilities=log_probabilities.exp().numpy())
    models.write_atomically(folder / plots.PREDICTIONS, buffer.getvalue())
    models.write_atomically(folder / plots.METRICS, (json.dumps(metrics, indent=1) + "\n").encode())
    plots.draw_run(folder)
    print(f"\nTables and pictures are in {folder}")
    return metrics


def results_folder(checkpoint_path):
    """best.pt is what its run folder is about; the results of any other file go to a folder of its own beside it."""
    path = Path(checkpoint_path)
    return path.parent if path.name == plots.BEST else path.with_name(f"{path.stem}_results")


def split_metrics(log_probabilities, labels, classes):
    """All metrics of one split as a plain dict, from what `infer` returned."""
    loss, accuracy = mean_loss_and_accuracy(log_probabilities, labels)
    predicted, labels = log_probabilities.exp().argmax(dim=1).numpy(), labels.numpy()
    matrix = confusion_matrix(labels, predicted, labels=range(len(classes)))
    per_class = precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0)
    total = len(labels)
    # Specificity of a class: of the samples that belong to other classes, the share not taken for it.
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
        "accuracy_interval": wilson_interval(accuracy, total),
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
        "macro": {name: float(values.mean()) for name, values in columns.items()},
        "per_class": {
            label: {name: float(values[index]) for name, values in columns.items()}
            | {"support": int(per_class[3][index])}
            for index, label in enumerate(classes)
        },
        "confusion_matrix": matrix.tolist(),
    }


def wilson_interval(share, total, z=1.959964):
    """95 % score interval of a proportion (Wilson 1927, JASA 22:209), as [low, high]."""
    scale = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / scale
    margin = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / scale
    return [centre - margin, centre + margin]


def format_table(rows):
    """Rows of strings -> aligned lines, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def format_metrics(metrics):
    low, high = metrics["accuracy_interval"]
    summary = (
        f"accuracy {metrics['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"balanced accuracy {metrics['balanced_accuracy']:.2%}, loss {metrics['loss']:.4f}, {metrics['samples']:,} images"
    )
    return format_table(plots.metric_rows(metrics)) + "\n" + summary


def compare(folders):
    """Write comparison.csv, .md and .png over the metrics.json of several runs into the folder that holds the first."""
    rows = []
    folders = [Path(folder).resolve() for folder in folders]
    for folder in folders:
        metrics = json.loads((folder / plots.METRICS).read_text())
        test = metrics["test"]
        rows.append(
            {
                "model": folder.name,
                "parameters": metrics["parameters"],
                "best_epoch": metrics["best_epoch"],
                "seconds_per_epoch": metrics["seconds"] / metrics["best_epoch"],
                "train_accuracy": metrics["train"]["accuracy"],
                "validation_accuracy": metrics["validation"]["accuracy"],
                "test_accuracy": test["accuracy"],
                "interval_low": test["accuracy_interval"][0],
                "interval_high": test["accuracy_interval"][1],
                **{f"test_{name}": test["macro"][name] for name in ("precision", "recall", "f1")},
            }
        )
    rows.sort(key=lambda row: row["test_accuracy"])
    header = [column.replace("_", " ") for column in rows[0]]
    cells = [[format_cell(column, value) for column, value in row.items()] for row in rows]
    markdown = [header, ["---"] + ["---:"] * (len(header) - 1), *cells]
    out_dir = folders[0].parent
    models.write_atomically(out_dir / plots.COMPARISON, csv_bytes(rows))
    models.write_atomically(
        (out_dir / plots.COMPARISON).with_suffix(".md"),
        "".join(f"| {' | '.join(line)} |\n" for line in markdown).encode(),
    )
    plots.draw_comparison(out_dir)
    print(f"\n{format_table([header, *cells])}\n\nThe comparison is in {out_dir}")


def format_cell(column, value):
    """Seconds with one decimal, other floats in percent, counts with thousands separators, text as it is."""
    if isinstance(value, float):
        return f"{value:.1f}" if column.startswith("seconds") else f"{value:.2%}"
    return value if isinstance(value, str) else f"{value:,}"


def csv_bytes(rows):
    """A list of dicts with the same keys as CSV; floats in full, so that nothing is lost."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def predict_pictures(checkpoints, pictures, device, top=5):
    """Print the likeliest classes of each picture. A picture that can't be read gets one line on stderr; True where
    there was none."""
    images = {}
    for picture in pictures:
        try:
            images[picture] = data.read_picture(picture).to(device)
        except data.DataError as error:
            print_error(error)
    for path in checkpoints:
        model, checkpoint = models.load_model(path)
        model.to(device)
        for picture, image in images.items():
            with torch.inference_mode():
                probabilities, classes = model(image)[0].topk(top)
            print(f"\n{picture} ({checkpoint['model']})")
            for probability, label in zip(probabilities.tolist(), classes.tolist()):
                print(f"  {checkpoint['classes'][label]:<12}{probability:7.2%}")
    return len(images) == len(pictures)


# How both commands behave: their options, one line for a mistake, exit codes.


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line, without the usage in front of it."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help shows the options)\n")


def add_common_arguments(group):
    group.add_argument(
        "--data-dir",
        type=Path,
        default=DEFAULT_DATA_DIR,
        help="folder of CIFAR-10, extracted or as archive; fetched into it where there is none (default: %(default)s)",
    )
    group.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, mps, ... (default: %(default)s)"
    )


def choose_device(name):
    """A torch.device that can be used here, set to compute the same each time; raises UsageError for one that can't.

    A CPU computes the same by itself, with the same number of threads.
    """
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS wants it for that
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean fp32
    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"--device {name} can't be used here: {reason}") from error
    return device


class UsageError(Exception):
    """Options that can't be used, or not together; the message says what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is to end a program as tidily as Ctrl-C does."""


def raise_terminated(signal_number, frame):
    raise Terminated


def print_error(error):
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)


def run_command(main):
    """Call main() and return the exit code: 2 for a mistake of the user's, in one line; 130 and 143 for signals."""
    signal.signal(signal.SIGTERM, raise_terminated)
    try:
        return main()
    except (UsageError, data.DataError, models.CheckpointError, plots.PlotError) as error:
        print_error(error)
    except OSError as error:
        print_error(f"{error.filename}: {error.strerror}" if error.filename else error)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        print_error("out of memory: a smaller --batch-size, or a smaller model, needs less")
    except KeyboardInterrupt as interrupt:
        return 143 if isinstance(interrupt, Terminated) else 130
    return 2


if __name__ == "__main__":
    sys.exit(run_command(main))
