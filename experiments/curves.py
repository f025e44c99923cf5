"""How do the learning curves of all networks compare?

Usage:

    python -m experiments.curves

Collects the validation loss and accuracy of every epoch, for the runs in outs/exercise_04 and for cnn2 with softmax
applied twice, in curves.csv there, and draws curves.png. For the latter, both the true cross-entropy (true_loss.csv)
and the loss that it was trained on are shown.
"""

import command

if __name__ == "__main__":
    command.start()


import sys
from pathlib import Path

import runs
from experiments import CURVES, TRUE_LOSS, pictures


def main(argv=None):
    parser = command.Parser(description="Draw the learning curves of all networks.")
    parser.add_argument("--folder", type=Path, default=runs.DEFAULT_OUT_DIR["cifar10"], help="(default: %(default)s)")
    parser.add_argument("--twice", type=Path, default=Path("outs/softmax_twice"), help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    rows = []
    for row in runs.read_rows(arguments.folder / runs.COMPARISON, "model"):
        rows += rows_of(row["model"], runs.read_history(arguments.folder / row["model"]))
    twice = runs.read_history(arguments.twice)
    true = [float(row["validation_loss"]) for row in runs.read_rows(arguments.twice / TRUE_LOSS)]
    if len(true) != len(twice["epoch"]):
        raise runs.ResultsError(f"{arguments.twice / TRUE_LOSS} covers other epochs than {runs.HISTORY} beside it")
    rows += rows_of(pictures.TRUE_LOSS_CURVE, twice | {"validation_loss": true})
    rows += rows_of(pictures.OWN_LOSS_CURVE, twice)
    runs.write_atomically(arguments.folder / CURVES, runs.csv_bytes(rows))
    pictures.draw_curves(arguments.folder)


def rows_of(name, history):
    columns = ("epoch", "validation_loss", "validation_accuracy")
    return [{"curve": name, **dict(zip(columns, values))} for values in zip(*(history[column] for column in columns))]


if __name__ == "__main__":
    sys.exit(command.run_command(main))
