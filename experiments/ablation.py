"""What does each part of the improved recipe and its network bring?

Usage:

    python -m experiments.ablation [ROW...] [--seeds N] [--epochs N]

Each row leaves out one part and keeps the others; `all` keeps all. A third of the recipe's epochs is enough to rank
them. Every row is trained with the seeds 0 to N - 1, into outs/ablation/ROW/SEED/; a run that was stopped goes on where
it was. Then outs/ablation/ablation.csv is made of all runs that are there. Judged on the validation split; the test
split is never read.
"""

import command

import dataclasses
import sys

from torch import nn

import data
import models
import runs
import train
from experiments import make_parser, train_or_resume
from recipe import LIMITS, Recipe, given_settings

# The command that makes outs/exercise_04/vgg_improved.
COMMAND = (
    "--model vgg_fast --run-name vgg_improved --epochs 25 --batch-size 512 --optimizer sgd --learning-rate 0.6 "
    "--bias-rate 64 --weight-decay 1.3e-3 --label-smoothing 0.2 --augment --schedule cosine"
)


class Unwhitened(models.FastVGG):
    """FastVGG whose first layer starts at random and is trained like the others."""

    def __init__(self):
        super().__init__()
        self.layers[0].weight.requires_grad_(True)

    def adapt(self, images):
        models.Network.adapt(self, images)


class Undirected(models.FastVGG):
    """FastVGG whose convolutions start at random, as PyTorch's do."""

    def __init__(self):
        super().__init__()
        for layer in list(self.layers)[1:]:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()


ROWS = {  # the network, its class where that isn't the network's own, and what its recipe has instead
    "all": ("vgg_fast", None, {}),
    "network": ("vgg", None, {}),
    "whitening": ("vgg_fast", Unwhitened, {}),
    "identities": ("vgg_fast", Undirected, {}),
    "bias_rate": ("vgg_fast", None, {"bias_rate": 1.0}),
    "augment": ("vgg_fast", None, {"augment": False}),
    "label_smoothing": ("vgg_fast", None, {"label_smoothing": 0.0}),
    "schedule": ("vgg_fast", None, {"schedule": "constant", "learning_rate": 0.1}),
    "optimizer": ("vgg_fast", None, {"optimizer": "adamw", "learning_rate": 5e-3, "weight_decay": 0.1}),
}


def main(argv=None):
    parser = make_parser("Train the improved recipe without one of its parts.", "outs/ablation")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"(default: all of {' '.join(ROWS)})")
    parser.add_argument("--seeds", type=command.number(int, 1, 100), default=3, help="how many (default: %(default)s)")
    parser.add_argument("--epochs", type=command.number(*LIMITS["epochs"]), default=8, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.rows) - ROWS.keys():
        raise command.UsageError(f"no such row: {', '.join(unknown)}")
    for seed in range(arguments.seeds):
        for row in arguments.rows or ROWS:
            name, network, changes = ROWS[row]
            folder = arguments.folder / row / str(seed)
            recipe = dataclasses.replace(improved_recipe(), epochs=arguments.epochs, seed=seed, **changes)
            if not is_trained(folder, arguments.epochs):
                train_or_resume(folder, name, recipe, arguments, network)
    rows = summary(arguments.folder)
    runs.write_atomically(arguments.folder / "ablation.csv", runs.csv_bytes(rows))


def improved_recipe():
    return Recipe(**given_settings(train.parse_arguments(COMMAND.split())))


def is_trained(folder, epochs):
    """Whether the folder holds a whole run, of which a clone has history.csv only."""
    return (folder / runs.HISTORY).exists() and len(runs.read_history(folder)["epoch"]) == epochs


def summary(folder):
    """A row for each row and seed that is there, as dicts."""
    rows, images = [], data.TOTAL - data.VALIDATION - data.TEST
    for row, (name, network, _) in ROWS.items():
        operations = 6 * models.multiply_adds(models.build(network or name))  # an image's, forward and backward
        for path in sorted(folder.glob(f"{row}/*/{runs.HISTORY}"), key=lambda path: int(path.parent.name)):
            history = runs.read_history(path.parent)
            epochs = len(history["epoch"])
            rows.append(
                {
                    "row": row,
                    "seed": int(path.parent.name),
                    "epochs": epochs,
                    "validation_accuracy": history["validation_accuracy"].max(),
                    "pflop": round(operations * images * epochs / 1e15, 3),
                    "minutes": round(history["seconds"].sum() / 60, 1),
                }
            )
    return rows


if __name__ == "__main__":
    sys.exit(command.run_command(main))
