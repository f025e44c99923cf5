"""What does each change to the exercise's recipe bring the vgg network?

Usage:

    python -m experiments.ablation [ROW...]

Every row adds its options to those of the rows before and is trained anew, into outs/ablation/ROW/; a row that was
stopped goes on where it was. Judged on the validation split; the test split is never read. `longer_cutout` with label
smoothing is outs/exercise_04/vgg_improved/, which train.py made.
"""

import command

import sys

import train
from experiments import make_parser, train_or_resume
from recipe import Recipe, given_settings

EPOCHS = 20
ROWS = {  # and the options that each adds to those of the rows before
    "augment": "--augment",
    "schedule": "--schedule cosine --learning-rate 1e-3",
    "weight_decay": "--weight-decay 0.1",
    "longer": "--epochs 50",
    "longer_cutout": "--cutout 8",
    "short": "--label-smoothing 0.1 --epochs 20",  # all of them, but for as short a time as the first rows
}


def main(argv=None):
    parser = make_parser("Train the rows of the ablation table.", "outs/ablation")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"(default: all of {' '.join(ROWS)})")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.rows) - ROWS.keys():
        raise command.UsageError(f"no such row: {', '.join(unknown)}")
    for row in arguments.rows or ROWS:
        history = train_or_resume(arguments.folder / row, "vgg", recipe_of(row), arguments)
        print(f"{row}: validation accuracy {max(line['validation_accuracy'] for line in history):.2%}")


def recipe_of(row):
    options = ["--model", "vgg", "--epochs", str(EPOCHS)]
    for name, added in ROWS.items():
        options += added.split()
        if name == row:
            break
    return Recipe(**given_settings(train.parse_arguments(options)))


if __name__ == "__main__":
    sys.exit(command.run_command(main))
