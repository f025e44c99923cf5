"""Shared fixtures and helpers. No test needs internet access; training is real, on scikit-learn's digits."""

import contextlib
import csv
import functools
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import command
import data
import download
import plots
import runs
import train

ROOT = Path(__file__).resolve().parent.parent

# Background jobs of a shell script ignore Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Cached, since resizing the digits for some hundred short runs would take half a minute.
data.split_digits = functools.cache(data.split_digits)


@contextlib.contextmanager
def start(*arguments, folder):
    """Run `python SCRIPT OPTION...` in a folder, with its output in pipes, for the duration of the `with` block."""
    words = [sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])]
    with subprocess.Popen(words, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Save placeholders instead of drawing, which would take most of the time, unless a test is marked `pictures`."""
    if not request.node.get_closest_marker("pictures"):
        leave_out_pictures(monkeypatch)


def leave_out_pictures(monkeypatch):
    def draw_run(folder):
        for name in runs.pictures_of_a_run():
            source = Path(name).with_suffix(".npz")
            if source.name not in runs.SHOWN or (folder / source).exists():
                save(None, folder / name)

    def save(figure, path):
        runs.write_atomically(path, b"no picture")

    monkeypatch.setattr(plots, "draw_run", draw_run)
    monkeypatch.setattr(plots, "draw_loss", lambda folder: save(None, folder / runs.LOSS_PLOT))
    monkeypatch.setattr(plots, "save", save)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Never contact the real mirrors, even if a test goes wrong."""
    monkeypatch.setattr(download, "MIRRORS", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("no_proxy", "*")  # no proxy for 127.0.0.1


@pytest.fixture
def few_digits(monkeypatch):
    """A fifth of the digits in each split, for slow tests that need no accuracy."""

    def split_digits(split_seed):
        splits = whole(split_seed)
        return {name: data.Split(*(part[: len(part) // 5] for part in split)) for name, split in splits.items()}

    whole = data.split_digits
    monkeypatch.setattr(data, "split_digits", split_digits)


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """call(main, option, ...) -> (exit code, stdout, stderr) of a command run in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            code = command.run_command(lambda: main(list(map(str, arguments))))
        except SystemExit as exit:  # how argparse exits
            code = exit.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """finished_run(model) -> (run folder, output) of a short training run on the digits, which is done only once.

    cnn2 is trained with the README's command, as a user would, with pictures; the others are trained in this process.
    """
    finished = {}

    def run(model):
        if model not in finished:
            folder = tmp_path_factory.mktemp(model)
            train_it = train_as_a_user if model == "cnn2" else train_here
            finished[model] = folder / "outs" / "digits" / model, train_it(model, folder)
        return finished[model]

    return run


def train_as_a_user(model, folder):
    with start("train.py", "--model", model, "--dataset", "digits", "--epochs", 10, folder=folder) as process:
        out, err = process.communicate()
    assert process.returncode == 0 and err == "", err
    return out


def train_here(model, folder):
    options = ["--epochs", "1", "--learning-rate", "1e-3"] if model == "vgg" else ["--epochs", "10"]
    out_dir = folder / "outs" / "digits"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        leave_out_pictures(patch)
        train.main(["--model", model, "--dataset", "digits", *options, "--out-dir", str(out_dir)])
    return output.getvalue()


@pytest.fixture(scope="session")
def cifar10_dir():
    """The folder that contains cifar-10-batches-py/: $CIFAR10_DIR, or else data/."""
    folder = Path(os.environ.get("CIFAR10_DIR", ROOT / "data")).resolve()
    if not (folder / "cifar-10-batches-py").is_dir():
        pytest.skip("CIFAR-10 is neither in $CIFAR10_DIR nor in data/")
    return folder


# Helpers for tests of runs.

DIGITS = ["--dataset", "digits"]


FILES = {
    ".lock",
    "best.pt",
    "last.pt",
    "history.csv",
    "metrics.json",
    "predictions_test.npz",
    "loss_plot.png",
    "calibration.png",
    "mistakes.npz",
    "mistakes.png",
    "random_predictions.npz",
    "random_predictions.png",
    *(f"{kind}_{split}.png" for kind in ("confusion_matrix", "metrics") for split in ("train", "validation", "test")),
}


FILTERS = {"filters.npz", "filters.png", "inside.npz", "inside.png"}  # only of networks with convolutions


def history_without_seconds(folder):
    with open(folder / "history.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_weights(*paths):
    first, *others = (runs.load_checkpoint(path).weights for path in paths)
    for other in others:
        assert first.keys() == other.keys()
        for name in first:
            assert torch.equal(first[name], other[name]), name


def interrupt_call(monkeypatch, owner, name, number):
    """Make the `number`-th call of a function, counted from 1, raise KeyboardInterrupt instead."""
    function, left = getattr(owner, name), [number]

    def interrupted(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


def quick(call, *options, model="cnn1", epochs=2, code=0):
    result = call(train.main, "--model", model, *DIGITS, "--epochs", epochs, *options)
    assert result[0] == code, result
    return result


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


@pytest.fixture(scope="session")
def two_epochs(tmp_path_factory):
    """The run folder of two uninterrupted epochs, trained like those of `quick`."""
    folder = tmp_path_factory.mktemp("two_epochs")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        train.main(["--model", "cnn1", *DIGITS, "--epochs", "2", "--out-dir", str(folder)])
    return folder / "cnn1"
