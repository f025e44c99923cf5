"""The run folder: file names, atomic writes, checkpoints, and resuming a run."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import reprlib
import tempfile
import time
import uuid
import zipfile
from pathlib import Path

import numpy as np
import torch

import command
import data
from metrics import METRIC_KEYS
from recipe import Recipe

DEFAULT_OUT_DIR = {"cifar10": Path("outs/exercise_04"), "digits": Path("outs/digits")}

# Files in a run folder.
BEST = "best.pt"
LAST = "last.pt"
HISTORY = "history.csv"
METRICS = "metrics.json"
PREDICTIONS = "predictions_test.npz"
LOSS_PLOT = "loss_plot.png"
CONFUSION_MATRIX = "confusion_matrix_{}.png"
METRIC_TABLE = "metrics_{}.png"
CALIBRATION = "calibration.png"
MISTAKES = "mistakes.npz"  # this and the next three hold what the picture of the same name shows
RANDOM = "random_predictions.npz"
FILTERS = "filters.npz"
INSIDE = "inside.npz"
SHOWN = (MISTAKES, RANDOM, FILTERS, INSIDE)
# Files in the folder that contains the run folders.
COMPARISON = "comparison.csv"
CALIBRATIONS = "calibrations.csv"
RECALL = "recall.csv"
ROBUSTNESS = "robustness.csv"
CORRUPTED = "robustness_examples.npz"

SPLITS = ("train", "validation", "test")
HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "seconds",
)
FORMAT_VERSION = 1  # of checkpoints
FORMER_SETTING = ("cutout", 0)  # a removed option: older checkpoints that didn't use it still load


class ResultsError(command.UserError):
    """A results file that is damaged."""


class CheckpointError(command.UserError):
    """A file that can't be used as a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run: what its checkpoints hold besides weights and epochs. `id` is unique."""

    folder: Path
    model: str
    dataset: str
    recipe: Recipe
    environment: dict  # from command.describe_environment
    id: str  # new_id(), or that of the run that is resumed


def new_id():
    return uuid.uuid4().hex


@dataclasses.dataclass
class Checkpoint:
    """The content of best.pt and last.pt. Only last.pt has the last three fields, which resuming needs."""

    model: str
    dataset: str
    classes: list
    epoch: int
    recipe: Recipe  # "settings" in the file, as a dict
    split_seed: int
    environment: dict
    seconds: float  # training time up to this epoch
    weights: dict
    run_id: str = ""  # missing in older checkpoints
    optimizer: dict | None = None
    history: list | None = None  # the rows of history.csv
    image_losses: torch.Tensor | None = None  # float32 [N]: see train.train_epoch

    def without_state(self):
        """A copy for best.pt, without the fields that only resuming needs."""
        return dataclasses.replace(self, optimizer=None, history=None, image_losses=None)


# The run folder.


def pictures_of_a_run():
    """The file names of the pictures that plots.draw_run draws."""
    by_split = [name.format(split) for split in SPLITS for name in (CONFUSION_MATRIX, METRIC_TABLE)]
    return [LOSS_PLOT, *by_split, CALIBRATION, *(Path(name).with_suffix(".png").name for name in SHOWN)]


def make_folder(folder):
    """Create a folder if necessary; raises UsageError if it can't be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise command.UsageError(f"the folder {folder} can't be written to: {error.strerror}") from error


@contextlib.contextmanager
def claim_folder(folder):
    """Create the run folder and lock it against other runs; raises UsageError or InUseError before any work is done."""
    make_folder(folder)
    with command.locked(folder):
        for name in (*pictures_of_a_run(), BEST, LAST, HISTORY, METRICS, PREDICTIONS, *SHOWN):
            temporary_path(folder / name).unlink(missing_ok=True)  # left by a run that was killed while writing
        yield


def remove_former_run(folder):
    """Remove the files of the run that this one replaces, except for those that are about to be overwritten."""
    for name in (*pictures_of_a_run(), PREDICTIONS, *SHOWN, LAST):
        (folder / name).unlink(missing_ok=True)


# Writing and reading results.


def write_atomically(path, content):
    """Write bytes so that `path` holds either its old content or all of the new one, even if the program is killed.

    Raises OSError (full disk, no permission); the old content is kept then, and no temporary file is left.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # instead of the temporary file, or None
        temporary.unlink(missing_ok=True)
        raise


def replace(temporary, path):
    """os.replace, retried for some seconds: on Windows it fails while another program, such as a virus scanner, has
    the file open."""
    for _ in range(20):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            time.sleep(0.2)
    return os.replace(temporary, path)


def temporary_path(path):
    return Path(path).with_name(f".{Path(path).name}.tmp")


def csv_bytes(rows):
    """Format a list of dicts with the same keys as CSV, with floats in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_arrays(path, **arrays):
    """Write named NumPy arrays to a compressed .npz file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def read_rows(path, *columns, numbers=()):
    """Read a CSV file into a list of dicts from column to text, or to float for the columns in `numbers`. Raises
    ResultsError if the file is damaged, has no rows, or lacks one of the columns."""
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
            return metrics | {"settings": dataclasses.asdict(recipe_of(metrics["settings"]))}
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise ResultsError(f"{path} is damaged")


def read_arrays(path, *names):
    """The named arrays of an .npz file, as a list."""
    try:
        with np.load(io.BytesIO(command.read_bytes(path))) as saved:
            return [saved[name] for name in names]
    except Exception as error:  # NumPy, zipfile and zlib can raise anything for a damaged file
        if isinstance(error, OSError):
            raise
        raise ResultsError(f"{path} is damaged") from error


def read_blocks(path):
    """The arrays block_1, block_2, ... of an .npz file, as a list."""
    (count,) = read_arrays(path, "blocks")
    return read_arrays(path, *(f"block_{number}" for number in range(1, int(count) + 1)))


def recipe_of(settings):
    """The Recipe from the settings saved in a file; raises TypeError or ValueError if they are invalid.

    Older files lack newer settings, which get their defaults.
    """
    return Recipe(**{name: value for name, value in settings.items() if (name, value) != FORMER_SETTING})


# Checkpoints.


def save_checkpoint(path, checkpoint: Checkpoint):
    """Write a checkpoint with torch.save, as a dict of plain tensors, numbers, strings, lists and dicts."""
    content = {name: value for name, value in vars(checkpoint).items() if value is not None}
    content["settings"] = dataclasses.asdict(content.pop("recipe"))
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path) -> Checkpoint:
    """Read what save_checkpoint wrote, with tensors on the CPU; runs no code from the file.

    Raises OSError if the file can't be read, CheckpointError if it is damaged, not a checkpoint, or of another version.
    """
    content = command.read_bytes(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()  # torch.load checks no checksums
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and the unpickler can raise anything, also for what weights_only rejects
        if command.is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path} is damaged, or is not a checkpoint of this project") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged")
    if not isinstance(saved, dict) or "format_version" not in saved:
        raise CheckpointError(f"{path} is not a checkpoint of this project")
    version = saved.pop("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        version = reprlib.repr(version)
        raise CheckpointError(f"{path} has checkpoint format version {version}; this program reads {FORMAT_VERSION}")
    check_fields(path, saved)
    try:
        recipe = recipe_of(saved.pop("settings"))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has invalid settings: {error}") from error
    return Checkpoint(recipe=recipe, **saved)


def check_fields(path, saved):
    """Raise CheckpointError unless a checkpoint's dict has the expected entries, all with valid values."""
    expected = set(POSSIBLE) if STATE & saved.keys() else set(POSSIBLE) - STATE
    if wrong := sorted(map(str, (expected ^ saved.keys()) - {"run_id"})):
        raise CheckpointError(f"{path} has missing or unknown entries: {', '.join(wrong)}")
    if wrong := [name for name, value in saved.items() if not POSSIBLE[name](value)]:
        raise CheckpointError(f"{path} has invalid values: {', '.join(wrong)}")
    epochs = [row["epoch"] for row in saved.get("history", ())]
    if "history" in saved and (len(epochs) != saved["epoch"] or epochs != [*range(1, len(epochs) + 1)]):
        raise CheckpointError(f"{path} has a history that doesn't match its epoch")


def is_whole_number(value, low, high):
    return type(value) is int and low <= value < high


def is_number(value):
    return isinstance(value, (int, float)) and abs(value) < 1e300  # neither nan nor an int too large for a float


def is_text(value):
    return isinstance(value, str) and value.isprintable() and len(value) <= 200


def is_environment(value):
    plain = isinstance(value, dict) and all(
        part is None or is_number(part) or is_text(part) for item in value.items() for part in item
    )
    return plain and value.get("precision") in ("fp32", "bf16")


def is_row(row):
    """Whether a value is a row of the history, for one epoch."""
    return isinstance(row, dict) and row.keys() == set(HISTORY_COLUMNS) and all(map(is_number, row.values()))


def is_plain_tensor(value):
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


# Checks for the entries of a checkpoint. models.py checks whether the weights fit the network, optimizers.py whether
# the optimiser's state fits, data.py whether the data set exists.
POSSIBLE = {
    "model": is_text,
    "dataset": is_text,
    "classes": lambda value: isinstance(value, list) and len(value) == 10 and all(map(is_text, value)),
    "epoch": lambda value: is_whole_number(value, 1, 2**63),
    "settings": lambda value: isinstance(value, dict),
    "split_seed": lambda value: is_whole_number(value, 0, 2**32),
    "environment": is_environment,
    "seconds": is_number,
    "weights": lambda value: isinstance(value, dict) and all(map(is_plain_tensor, value.values())),
    "run_id": is_text,
    "optimizer": lambda value: isinstance(value, dict),
    "history": lambda value: isinstance(value, list) and all(map(is_row, value)),
    "image_losses": is_plain_tensor,
}
STATE = {"optimizer", "history", "image_losses"}


# Progress and resuming.


def best_epoch(history):
    """The epoch with the highest validation accuracy; in a tie, the one with the lowest validation loss."""
    return max(history, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))["epoch"]


def has_ended(history, recipe: Recipe):
    if not history:
        return False
    reached = recipe.target_loss is not None and history[-1]["validation_loss"] <= recipe.target_loss
    return reached or history[-1]["epoch"] >= recipe.epochs


def is_unfinished(folder):
    """Whether the folder holds a run that hasn't finished, including its metrics."""
    if not (folder / LAST).exists():
        return False
    try:
        saved = load_checkpoint(folder / LAST)
    except CheckpointError:
        return True
    return not (has_ended(saved.history, saved.recipe) and (folder / METRICS).exists())


def save_epoch(run: Run, weights, optimizer, history, image_losses):
    """Update a run folder after an epoch, in an order that keeps it resumable if the program is killed at any point.

    `weights` and `optimizer` are state_dicts; `history` is the list of rows so far.
    """
    checkpoint = Checkpoint(
        model=run.model,
        dataset=run.dataset,
        classes=data.CLASSES[run.dataset],
        epoch=len(history),
        recipe=run.recipe,
        split_seed=data.SPLIT_SEED,
        environment=run.environment,
        seconds=float(sum(row["seconds"] for row in history)),
        weights=weights,
        run_id=run.id,
        optimizer=optimizer,
        history=history,
        image_losses=image_losses.cpu(),
    )
    if len(history) == 1:
        remove_former_run(run.folder)
    (run.folder / METRICS).unlink(missing_ok=True)  # from here on, the run counts as unfinished
    # last.pt first: the other two can be restored from it if the program is killed before they are written.
    save_checkpoint(run.folder / LAST, checkpoint)
    write_atomically(run.folder / HISTORY, csv_bytes(history))
    if best_epoch(history) == len(history):
        save_checkpoint(run.folder / BEST, checkpoint.without_state())


def load_resumable(folder, model, dataset, given) -> Checkpoint:
    """Load last.pt to resume from, if network and data set match and the `given` settings, a dict of Recipe fields, are
    allowed to change. last.pt is saved with them, and best.pt and history.csv are brought up to date with it.

    Raises UsageError, CheckpointError or OSError.
    """
    last = folder / LAST
    saved = load_checkpoint(last)
    if saved.history is None:
        raise CheckpointError(f"{last} can't be resumed from: it holds no optimiser state")
    for field, expected in (("model", model), ("dataset", dataset)):
        if getattr(saved, field) != expected:
            raise command.UsageError(f"{last} was trained with --{field} {getattr(saved, field)}, not {expected}")
    # Settings that decide when the run ends may change, unless the learning rate depends on them. All others may not.
    may_change = {"target_loss"} if saved.recipe.schedule == "linear" else {"target_loss", "epochs"}
    for field, value in given.items():
        before = getattr(saved.recipe, field)
        if value != before and field not in may_change:
            before, value = (setting if setting != "" else "off" for setting in (before, value))
            raise command.UsageError(f"{last} was trained with {field} {before}, not {value}: leave that option out")
    if given.get("epochs", saved.epoch) < saved.epoch:
        raise command.UsageError(f"{folder} has been trained for {saved.epoch} epochs: --epochs can't be less")
    saved = dataclasses.replace(saved, recipe=dataclasses.replace(saved.recipe, **given))
    restore(folder, saved)
    return saved


def restore(folder, saved: Checkpoint):
    """Write `saved` to last.pt and bring best.pt and history.csv up to date, which a kill can leave an epoch behind.
    Raises UsageError if best.pt belongs to another run, CheckpointError or OSError if it can't be read."""
    kept = best_epoch(saved.history)
    if kept == saved.epoch:
        save_checkpoint(folder / BEST, saved.without_state())
    else:
        best = load_checkpoint(folder / BEST)
        if (best.run_id, best.epoch) != (saved.run_id, kept):
            raise command.UsageError(f"{folder / BEST} doesn't belong to the run in {folder / LAST}: use --overwrite")
    write_atomically(folder / HISTORY, csv_bytes(saved.history))
    save_checkpoint(folder / LAST, saved)


def is_resumable(run: Run):
    """Whether last.pt is intact and belongs to this run, not to an earlier one that it was about to replace."""
    try:
        return load_checkpoint(run.folder / LAST).run_id == run.id
    except (CheckpointError, OSError):
        return False
