"""A run folder: its files' names, whole-or-nothing writing, checkpoints, the lock against a second run."""

import command

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import reprlib
import tempfile
from pathlib import Path

import numpy as np
import torch

from metrics import METRIC_KEYS
from recipe import Recipe

DEFAULT_OUT_DIR = {"cifar10": Path("outs/exercise_04"), "digits": Path("outs/digits")}

# The files of a run folder.
BEST = "best.pt"
LAST = "last.pt"
HISTORY = "history.csv"
METRICS = "metrics.json"
PREDICTIONS = "predictions_test.npz"
LOSS_PLOT = "loss_plot.png"
CONFUSION_MATRIX = "confusion_matrix_{}.png"
METRIC_TABLE = "metrics_{}.png"
CALIBRATION = "calibration.png"
MISTAKES = "mistakes.npz"  # this and the following hold what the picture of the same name shows
RANDOM = "random_predictions.npz"
FILTERS = "filters.npz"
INSIDE = "inside.npz"
SHOWN = (MISTAKES, RANDOM, FILTERS, INSIDE)
COMPARISON = "comparison.csv"
CALIBRATIONS = "calibrations.csv"
RECALL = "recall.csv"
ROBUSTNESS = "robustness.csv"
CORRUPTED = "robustness_examples.npz"

SPLITS = ("train", "validation", "test")

FORMAT_VERSION = 1
FORMER_SETTING = ("cutout", 0)  # that there is no more, where it was off

# What a checkpoint holds, and of which type. last.pt has the second group too: what resuming needs on top.
CHECKPOINT_FIELDS = {
    "format_version": int,
    "model": str,
    "dataset": str,
    "classes": list,
    "epoch": int,
    "settings": dict,
    "split_seed": int,
    "environment": dict,
    "seconds": float,
    "weights": dict,
}
RESUME_FIELDS = {"optimizer": dict, "history": list, "image_losses": torch.Tensor}
HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "seconds",
)


class ResultsError(command.UserError):
    """A file of results that is damaged."""


class CheckpointError(command.UserError):
    """A file that can't be used as a checkpoint."""


def pictures_of_a_run():
    """The names of the pictures that draw_run draws."""
    by_split = [name.format(split) for split in SPLITS for name in (CONFUSION_MATRIX, METRIC_TABLE)]
    return [LOSS_PLOT, *by_split, CALIBRATION, *(Path(name).with_suffix(".png").name for name in SHOWN)]


def make_folder(folder):
    """Make a folder that is going to be written to; raises UsageError where it can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise command.UsageError(f"the folder {folder} can't be written: {error.strerror}") from error


@contextlib.contextmanager
def claim_folder(folder):
    """Make the run folder and hold it against a second run; raises UsageError before any work is done."""
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(command.locked(folder))
        except BlockingIOError:
            message = f"another run is writing to {folder}: wait for its end, or choose another folder"
            raise command.UsageError(message) from None
        if held:
            remove_leftovers(folder)
        yield


def remove_leftovers(folder):
    """Remove what a process left that was killed while it wrote a file of a run."""
    names = (*pictures_of_a_run(), BEST, LAST, HISTORY, METRICS, PREDICTIONS, *SHOWN)
    for leftover in folder.glob(".*.tmp"):
        name, _, process = leftover.name[1:-4].rpartition(".")
        if name in names and process.isdigit():
            with contextlib.suppress(OSError):
                leftover.unlink()


def remove_former_run(folder):
    """Remove what belongs to the run that this one replaces, but for the files that are about to be replaced."""
    for name in (*pictures_of_a_run(), PREDICTIONS, *SHOWN, LAST):
        (folder / name).unlink(missing_ok=True)


def write_atomically(path, content):
    """Write bytes so that `path` holds either its former content or all of the new one, whenever the program dies.

    Raises OSError (full disk, no permission); the former content then stays, and no temporary file is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with command.naming(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def csv_bytes(rows):
    """A list of dicts with the same keys as CSV; floats in full, so that nothing is lost."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_arrays(path, **arrays):
    """NumPy arrays by name as a compressed .npz file, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def read_rows(path, *columns, numbers=()):
    """A CSV file that has those columns as a list of at least one dict from column to text, to float for `numbers`.
    Raises ResultsError."""
    try:
        rows = list(csv.DictReader(io.StringIO(command.read_bytes(path).decode(), newline="")))
        if rows and all(None not in row and None not in row.values() and row.keys() >= {*columns} for row in rows):
            return [row | {name: float(row[name]) for name in numbers} for row in rows]
    except (ValueError, KeyError, csv.Error):
        pass
    raise ResultsError(f"{path} is damaged")


def read_history(folder):
    """history.csv as a dict from column to a float array [epochs]."""
    rows = read_rows(Path(folder) / HISTORY, numbers=HISTORY_COLUMNS)
    return {column: np.array([row[column] for row in rows]) for column in HISTORY_COLUMNS}


def read_metrics(folder):
    """metrics.json as a dict."""
    path = Path(folder) / METRICS
    try:
        metrics = json.loads(command.read_bytes(path))
        whole = metrics.keys() >= {"model", "best_epoch", "settings"}
        if whole and all(metrics[split].keys() >= METRIC_KEYS for split in SPLITS):
            return metrics | {"settings": current_settings(metrics["settings"])}
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise ResultsError(f"{path} is damaged")


def read_arrays(path, *names):
    """The arrays of those names in an .npz file, as a list."""
    try:
        with np.load(io.BytesIO(command.read_bytes(path))) as saved:
            return [saved[name] for name in names]
    except Exception as error:  # NumPy, zipfile and zlib raise anything for a damaged file
        if isinstance(error, OSError):
            raise
        raise ResultsError(f"{path} is damaged") from error


def read_blocks(path):
    """The arrays block_1, block_2, ... of an .npz file, as a list."""
    (count,) = read_arrays(path, "blocks")
    return read_arrays(path, *(f"block_{number}" for number in range(1, int(count) + 1)))


def save_checkpoint(path, checkpoint):
    """Write a dict of plain tensors, numbers, strings, lists and dicts; see CHECKPOINT_FIELDS.

    The file is torch.save's zip archive with the SHA-256 of all that precedes it as the archive's comment: torch.load
    reads it as usual, though it checks no checksum of its own, and load_checkpoint notices any damage.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    # A zip archive ends with the length of its comment, two bytes, here 0: make room for the 64 digits.
    content = buffer.getvalue()[:-2] + (64).to_bytes(2, "little")
    write_atomically(path, content + hashlib.sha256(content).hexdigest().encode())


def load_checkpoint(path):
    """The dict that save_checkpoint wrote, its tensors on the CPU; runs no code from the file.

    Raises OSError where the file can't be read, CheckpointError where it is damaged, foreign or of another version.
    """
    content = command.read_bytes(path)
    if hashlib.sha256(content[:-64]).hexdigest().encode() != content[-64:]:
        raise CheckpointError(f"{path} is damaged, or is not a checkpoint of this project")
    try:
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises anything, also for objects that weights_only refuses
        if command.is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path} is not a checkpoint of this project") from error
    if not isinstance(checkpoint, dict) or "format_version" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of this project")
    version = checkpoint["format_version"]
    if type(version) is not int or version != FORMAT_VERSION:
        version = reprlib.repr(version)
        raise CheckpointError(f"{path} has checkpoint format version {version}; this program reads {FORMAT_VERSION}")
    fields = CHECKPOINT_FIELDS | (RESUME_FIELDS if RESUME_FIELDS.keys() & checkpoint.keys() else {})
    if wrong := sorted(map(str, fields.keys() ^ checkpoint.keys())):
        raise CheckpointError(f"{path} has missing or unknown entries: {', '.join(wrong)}")
    if wrong := [name for name, kind in fields.items() if not isinstance(checkpoint[name], kind)]:
        raise CheckpointError(f"{path} has entries of the wrong type: {', '.join(wrong)}")
    if wrong := [name for name in fields if name in VALID and not VALID[name](checkpoint[name])]:
        raise CheckpointError(f"{path} has impossible values: {', '.join(wrong)}")
    epochs = [row["epoch"] for row in checkpoint.get("history", ())]
    if "history" in fields and (len(epochs) != checkpoint["epoch"] or epochs != [*range(1, len(epochs) + 1)]):
        raise CheckpointError(f"{path} has a history of other epochs")
    try:
        settings = current_settings(checkpoint["settings"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has impossible settings: {error}") from error
    return checkpoint | {"settings": settings}


def current_settings(settings):
    """All settings of a recipe as a dict, from those of an older file, which gets the defaults of what it hasn't got.

    Raises TypeError or ValueError where they are none.
    """
    known = {name: value for name, value in settings.items() if (name, value) != FORMER_SETTING}
    return dataclasses.asdict(Recipe(**known))


def is_number(value):
    return isinstance(value, (int, float)) and abs(value) < 1e300  # neither nan nor a whole number that no float holds


def is_plain(value):
    """Whether a value is a finite number, a printable text of bearable length, or None."""
    return value is None or is_number(value) or (isinstance(value, str) and value.isprintable() and len(value) <= 200)


def is_row(row):
    """Whether a value is an epoch's row of the history."""
    return isinstance(row, dict) and row.keys() == set(HISTORY_COLUMNS) and all(map(is_number, row.values()))


def is_finite(weight):
    plain = isinstance(weight, torch.Tensor) and weight.layout == torch.strided
    return plain and weight.dtype in (torch.float32, torch.int64) and np.isfinite(weight.numpy()).all()


# What the entries of a checkpoint have to be besides their type. Whether the weights fit, the network knows, and
# whether there is such a data set, data.py.
VALID = {
    "model": is_plain,
    "dataset": is_plain,
    "classes": lambda classes: len(classes) == 10 and all(isinstance(name, str) and is_plain(name) for name in classes),
    "epoch": lambda epoch: epoch > 0,
    "split_seed": lambda seed: 0 <= seed < 2**32,
    "environment": lambda environment: (
        all(is_plain(part) for item in environment.items() for part in item)
        and environment.get("precision") in ("fp32", "bf16")
    ),
    "seconds": is_number,
    "weights": lambda weights: all(map(is_finite, weights.values())),
    "history": lambda history: all(map(is_row, history)),
    "image_losses": is_finite,
}
