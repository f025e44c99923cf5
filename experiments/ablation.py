"""What each change to the exercise's recipe brings the vgg network, judged on the validation split.

Usage:

    python benchmarks/ablation.py --data-dir FOLDER [ROW...]

Every row adds its options to those of the rows before and is trained anew, by train.py's own code, into
outs/ablation/ROW/; a row that was stopped goes on where it was. The test split is never read. `longer_cutout`
with label smoothing is outs/exercise_04/vgg_improved/, which train.py made.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import command  # noqa: E402
import runs  # noqa: E402
import train  # noqa: E402

EPOCHS = 20
ROWS = {  # and the options that each adds to those of the rows before
    "augment": "--augment",
    "schedule": "--schedule cosine --learning-rate 1e-3",
    "weight_decay": "--weight-decay 0.1",
    "longer": "--epochs 50",
    "longer_cutout": "--cutout 8",
    "short": "--label-smoothing 0.1 --epochs 20",  # all of them, but for as short a time as the first rows
}


def main():
    parser = command.Parser(description="Train the rows of the ablation table.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"(default: all of {' '.join(ROWS)})")
    parser.add_argument("--data-dir", type=Path, default=command.DEFAULT_DATA_DIR)
    parser.add_argument("--folder", type=Path, default=ROOT / "outs" / "ablation")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - ROWS.keys():
        raise command.UsageError(f"no such row: {', '.join(unknown)}")
    for row in arguments.rows or ROWS:
        train_row(row, arguments.folder, arguments.data_dir)


def train_row(row, folder, data_dir):
    options = ["--model", "vgg", "--epochs", str(EPOCHS), "--data-dir", str(data_dir)]
    options += ["--out-dir", str(folder), "--run-name", row]
    for name, added in ROWS.items():
        options += added.split()
        if name == row:
            break
    if (folder / row / runs.LAST).exists():
        options.append("--resume")
    arguments = train.parse_arguments(options)
    with runs.claim_folder(folder / row):
        saved = train.saved_run(folder / row, arguments)
        settings = train.settings_of(arguments, saved)
        history = saved["history"] if saved else []
        train.train(arguments, folder / row, settings, saved, history, command.choose_device("auto"))
    print(f"{row}: validation accuracy {max(line['validation_accuracy'] for line in history):.2%}")


if __name__ == "__main__":
    sys.exit(command.run_command(main))
