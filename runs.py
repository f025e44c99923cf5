"""A run folder: its files' names, whole-or-nothing writing, checkpoints, and how a run goes on after a stop."""

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
# The files of the folder that holds the runs.
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
FORMER_SETTING = ("cutout", 0)  # an option that is gone: older checkpoints that didn't use it still load


class ResultsError(command.UserError):
    """A file of results that is damaged."""


class CheckpointError(command.UserError):
    """A file that can't be used as a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A training: what its checkpoints say besides weights and epochs. `id` tells it from all others."""

    folder: Path
    model: str
    dataset: str
    recipe: Recipe
    environment: dict  # of command.describe_environment
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)


@dataclasses.dataclass
class Checkpoint:
    """What best.pt and last.pt hold; the last three fields only last.pt, which alone can be resumed from."""

    model: str
    dataset: str
    classes: list
    epoch: int
    recipe: Recipe  # "settings" in the file, as a dict
    split_seed: int
    environment: dict
    seconds: float  # of training, up to this epoch
    weights: dict
    run_id: str = ""  # older checkpoints have none
    optimizer: dict | None = None
    history: list | None = None  # the rows of history.csv
    image_losses: torch.Tensor | None = None  # float32 [N]: see train.train_epoch

    def without_state(self):
        """The same for best.pt: nothing that only a resumed training needs."""
        return dataclasses.replace(self, optimizer=None, history=None, image_losses=None)


# The folder.


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
    """Make the run folder and hold it against a second run; raises UsageError or InUseError before any work is done."""
    make_folder(folder)
    with command.locked(folder):
        for name in (*pictures_of_a_run(), BEST, LAST, HISTORY, METRICS, PREDICTIONS, *SHOWN):
            temporary_path(folder / name).unlink(missing_ok=True)  # of a run that was killed while it wrote
        yield


def remove_former_run(folder):
    """Remove what belongs to the run that this one replaces, except for the files that are about to be replaced."""
    for name in (*pictures_of_a_run(), PREDICTIONS, *SHOWN, LAST):
        (folder / name).unlink(missing_ok=True)


# Writing and reading results.


def write_atomically(path, content):
    """Write bytes so that `path` holds either its former content or all of the new one, whenever the program dies.

    Raises OSError (full disk, no permission); the former content then stays, and no temporary file is left.
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
            error.filename = str(path)  # not the temporary file's, or none
        temporary.unlink(missing_ok=True)
        raise


def replace(temporary, path):
    """os.replace, tried for some seconds: on Windows it fails while another program, a virus scanner for example, has
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
            return metrics | {"settings": dataclasses.asdict(recipe_of(metrics["settings"]))}
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


def recipe_of(settings):
    """The Recipe whose fields a file holds; raises TypeError or ValueError where they are none of its.

    Older files lack the newer fields, which get their defaults.
    """
    return Recipe(**{name: value for name, value in settings.items() if (name, value) != FORMER_SETTING})


# Checkpoints.


def save_checkpoint(path, checkpoint: Checkpoint):
    """Write a checkpoint as a dict of plain tensors, numbers, strings, lists and dicts, by torch.save."""
    content = {name: value for name, value in vars(checkpoint).items() if value is not None}
    content["settings"] = dataclasses.asdict(content.pop("recipe"))
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path) -> Checkpoint:
    """What save_checkpoint wrote, its tensors on the CPU; runs no code from the file.

    Raises OSError where the file can't be read, CheckpointError where it is damaged, foreign or of another version.
    """
    content = command.read_bytes(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()  # torch.load checks no checksums
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and the unpickler raise anything, also for objects that weights_only refuses
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
        raise CheckpointError(f"{path} has impossible settings: {error}") from error
    return Checkpoint(recipe=recipe, **saved)


def check_fields(path, saved):
    """Raise CheckpointError unless a checkpoint's dict has the expected entries, each with a possible value."""
    expected = set(POSSIBLE) if STATE & saved.keys() else set(POSSIBLE) - STATE
    if wrong := sorted(map(str, (expected ^ saved.keys()) - {"run_id"})):
        raise CheckpointError(f"{path} has missing or unknown entries: {', '.join(wrong)}")
    if wrong := [name for name, value in saved.items() if not POSSIBLE[name](value)]:
        raise CheckpointError(f"{path} has impossible values: {', '.join(wrong)}")
    if "history" in saved and [row["epoch"] for row in saved["history"]] != [*range(1, saved["epoch"] + 1)]:
        raise CheckpointError(f"{path} has a history of other epochs")


def is_whole_number(value, low, high):
    return type(value) is int and low <= value < high


def is_number(value):
    return isinstance(value, (int, float)) and abs(value) < 1e300  # neither nan nor a whole number that no float holds


def is_text(value):
    return isinstance(value, str) and value.isprintable() and len(value) <= 200


def is_environment(value):
    plain = isinstance(value, dict) and all(
        part is None or is_number(part) or is_text(part) for item in value.items() for part in item
    )
    return plain and value.get("precision") in ("fp32", "bf16")


def is_row(row):
    """Whether a value is an epoch's row of the history."""
    return isinstance(row, dict) and row.keys() == set(HISTORY_COLUMNS) and all(map(is_number, row.values()))


def is_plain_tensor(value):
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


# What the entries of a checkpoint can be. Whether weights and optimiser state fit, the network and the optimiser know;
# whether there is such a data set, data.py.
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


# How far a run is, and how it goes on.


def best_epoch(history):
    """The epoch of the highest validation accuracy, of equal ones that of the lowest validation loss."""
    return max(history, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))["epoch"]


def has_ended(history, recipe: Recipe):
    if not history:
        return False
    reached = recipe.target_loss is not None and history[-1]["validation_loss"] <= recipe.target_loss
    return reached or history[-1]["epoch"] >= recipe.epochs


def is_unfinished(folder):
    """Whether the folder holds a run that didn't come to its end, metrics included."""
    if not (folder / LAST).exists():
        return False
    try:
        saved = load_checkpoint(folder / LAST)
    except CheckpointError:
        return True
    return not (has_ended(saved.history, saved.recipe) and (folder / METRICS).exists())


def save_epoch(run: Run, weights, optimizer, history, image_losses):
    """Bring a run folder up to date after an epoch, in an order that leaves it resumable whenever the program dies.

    `weights` and `optimizer` are state_dicts, `history` are the rows so far.
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
    (run.folder / METRICS).unlink(missing_ok=True)  # from here on the run in the folder isn't finished
    # last.pt first: from it the other two can be made again, if the program dies before they are written.
    save_checkpoint(run.folder / LAST, checkpoint)
    write_atomically(run.folder / HISTORY, csv_bytes(history))
    if best_epoch(history) == len(history):
        save_checkpoint(run.folder / BEST, checkpoint.without_state())


def load_resumable(folder, model, dataset, given) -> Checkpoint:
    """last.pt, to go on from, if it is of that network and data set and its recipe can take the `given` values, a dict
    of fields of Recipe. It is saved with them, and best.pt and history.csv are brought to where it is.

    Raises UsageError, CheckpointError or OSError.
    """
    last = folder / LAST
    saved = load_checkpoint(last)
    if saved.history is None:
        raise CheckpointError(f"{last} can't be resumed from: it holds no optimiser state")
    for field, expected in (("model", model), ("dataset", dataset)):
        if getattr(saved, field) != expected:
            raise command.UsageError(f"{last} is of --{field} {getattr(saved, field)}, not {expected}")
    # What decides when the run ends may change, unless the learning rate depends on it; what an epoch does may not.
    may_change = {"target_loss"} if saved.recipe.schedule == "linear" else {"target_loss", "epochs"}
    for field, value in given.items():
        before = getattr(saved.recipe, field)
        if value != before and field not in may_change:
            raise command.UsageError(f"{last} is of a run with {field} {before}, not {value}: leave that option out")
    if given.get("epochs", saved.epoch) < saved.epoch:
        raise command.UsageError(f"{folder} has been trained for {saved.epoch} epochs: --epochs can't be less")
    saved = dataclasses.replace(saved, recipe=dataclasses.replace(saved.recipe, **given))
    restore(folder, saved)
    return saved


def restore(folder, saved: Checkpoint):
    """Bring a run folder to what last.pt is to hold: a kill can have left best.pt and history.csv an epoch behind.
    Raises UsageError where best.pt is of another run; CheckpointError or OSError where it can't be read."""
    kept = best_epoch(saved.history)
    if kept == saved.epoch:
        save_checkpoint(folder / BEST, saved.without_state())
    else:
        best = load_checkpoint(folder / BEST)
        if (best.run_id, best.epoch) != (saved.run_id, kept):
            raise command.UsageError(f"{folder / BEST} is not of the run in {folder / LAST}: use --overwrite")
    write_atomically(folder / HISTORY, csv_bytes(saved.history))
    save_checkpoint(folder / LAST, saved)


def is_resumable(run: Run):
    """Whether last.pt is whole, and of this run: not of a former one that it was about to replace."""
    try:
        return load_checkpoint(run.folder / LAST).run_id == run.id
    except (CheckpointError, OSError):
        return False
