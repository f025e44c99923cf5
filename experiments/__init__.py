"""Questions that take more than one run, one script each: `python -m experiments.NAME` from the project's folder.

README.md beside this file says which of them made which committed file. Here stands what the scripts share.
"""

import command

import dataclasses
from pathlib import Path

import evaluate
import runs
import train
from recipe import Recipe


def make_parser(description, folder):
    """A parser with the options that all trainings of experiments have."""
    parser = command.Parser(description=description)
    parser.add_argument("--folder", type=Path, default=Path(folder), help="of the results (default: %(default)s)")
    parser.add_argument("--dataset", default="cifar10", help="(default: %(default)s)")
    command.add_common_arguments(parser)
    return parser


def train_or_resume(folder, name, recipe: Recipe, arguments, network=None, observe=None):
    """Train a network in a run folder by train.py's own code, or go on where a stopped run was; returns its history.

    `name` is what the checkpoints call it; `network` its class, where models.MODELS[name] isn't meant. `arguments` are
    those of make_parser; `observe` is train.train's. The test split isn't read. Raises UsageError where the folder
    holds a run of another recipe.
    """
    device = command.choose_device(arguments.device)
    with runs.claim_folder(folder):
        saved = None
        if (folder / runs.LAST).exists():
            settings = dataclasses.asdict(recipe)
            saved = train.load_run(folder, name, arguments.dataset, settings)
            if saved["settings"] != settings:
                raise command.UsageError(
                    f"{folder} holds a run of another recipe: choose another --folder, or remove it"
                )
        if saved and train.has_ended(saved["history"], recipe):
            return saved["history"]
        model, splits = train.prepare(network or name, arguments.dataset, arguments.data_dir, recipe, device)
        environment = command.describe_environment(device, started=saved["environment"] if saved else None)
        about = {"model": name, "dataset": arguments.dataset, "environment": environment}
        return train.train(model, splits, recipe, folder, about, saved, observe)


def evaluate_run(folder, arguments):
    """Evaluate the best epoch of a finished run on all three splits, as train.py does at its end."""
    with runs.claim_folder(folder):
        evaluate.evaluate_checkpoint(folder / runs.BEST, arguments.data_dir, command.choose_device(arguments.device))
