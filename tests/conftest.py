"""What the tests share. Nothing here or in a test needs a network; real training is done on scikit-learn's digits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import command
import data

ROOT = Path(__file__).resolve().parent.parent

# A background job of a script ignores Ctrl-C, and so would every command that a test starts and then interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def start(*arguments, folder):
    """Start `python SCRIPT OPTION...` in a folder, its output in pipes."""
    command = [sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever a test does wrong, nothing is asked of the real mirrors."""
    monkeypatch.setattr(data, "MIRRORS", ["http://127.0.0.1:9/"])


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """call(main, option, ...) -> (exit code, stdout, stderr) of a command, run in this process in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            code = command.run_command(lambda: main(list(map(str, arguments))))
        except SystemExit as exit:  # argparse's way
            code = exit.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """finished_run(model) -> (run folder, output) of `train.py --model MODEL --dataset digits --epochs 10`, run once."""
    runs = {}

    def run(model):
        if model not in runs:
            folder = tmp_path_factory.mktemp(model)
            process = start("train.py", "--model", model, "--dataset", "digits", "--epochs", 10, folder=folder)
            out, err = process.communicate()
            assert process.returncode == 0, err
            assert err == ""
            runs[model] = folder / "outs" / "digits" / model, out
        return runs[model]

    return run


@pytest.fixture(scope="session")
def cifar10_dir():
    """A folder with cifar-10-batches-py/: $CIFAR10_DIR, else data/."""
    folder = Path(os.environ.get("CIFAR10_DIR", ROOT / "data")).resolve()
    if not (folder / "cifar-10-batches-py").is_dir():
        pytest.skip("CIFAR-10 is not here: neither in $CIFAR10_DIR nor in data/")
    return folder
