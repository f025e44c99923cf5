"""How much does the seed decide?

Usage:

    python -m experiments.seeds [RUN...] [--seeds N]

Trains each network with its own recipe and the seeds 0 to N - 1, into outs/seeds/RUN/SEED/; one that was stopped goes
on where it was. Where there is a run folder in outs/exercise_04, that is seed 0. Then outs/seeds/seeds.csv and .png are
made of all runs that are there. The epoch of each run is chosen by validation accuracy, and no seed is chosen at all.

`vgg_improved_longer` asks what the improved recipe gives with more computation.
"""

import command

import dataclasses
import sys
from pathlib import Path

import data
import evaluate
import models
import plots
import runs
from experiments import Row, check_epochs, evaluate_run, make_parser, train_or_resume
from experiments.ablation import IMPROVED
from experiments.softmax_twice import SoftmaxTwice
from recipe import LIMITS, Recipe

ROWS = {
    **{name: Row(name, Recipe()) for name in ("dense", "cnn1", "cnn2", "vgg")},
    "softmax_twice": Row("cnn2", Recipe(), network=SoftmaxTwice),
    "vgg_improved": Row("vgg_fast", IMPROVED),
}
COMMITTED = {run: runs.DEFAULT_OUT_DIR["cifar10"] / run for run in ROWS}  # the runs of seed 0
COMMITTED["softmax_twice"] = Path("outs/softmax_twice")
ROWS["vgg_improved_longer"] = Row("vgg_fast", dataclasses.replace(IMPROVED, epochs=40))


def main(argv=None):
    parser = make_parser("Train networks with several seeds.", "outs/seeds")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"(default: all of {' '.join(ROWS)})")
    parser.add_argument("--seeds", type=command.number(int, 1, 100), default=5, help="how many (default: %(default)s)")
    parser.add_argument("--epochs", type=command.number(*LIMITS["epochs"]), help="(default: those of each recipe)")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.runs) - ROWS.keys():
        raise command.UsageError(f"no such run: {', '.join(unknown)}")
    for seed in range(arguments.seeds):
        for run in arguments.runs or ROWS:
            if seed == 0 and run in COMMITTED:
                continue
            row, folder = ROWS[run], arguments.folder / run / str(seed)
            recipe = dataclasses.replace(row.recipe, seed=seed, epochs=arguments.epochs or row.recipe.epochs)
            if (folder / runs.METRICS).exists():
                check_epochs(folder, recipe.epochs)
            else:
                train_or_resume(folder, row.name, recipe, arguments, row.network)
                note_last_epoch(folder, arguments)
                evaluate_run(folder, arguments)
    runs.write_atomically(arguments.folder / runs.SEEDS, runs.csv_bytes(summary(arguments.folder)))
    plots.draw_seeds(arguments.folder)


def note_last_epoch(folder, arguments):
    """Write how good the last epoch is on the test split, to be compared with the best one."""
    model, checkpoint = models.load_model(folder / runs.LAST)
    test = data.load_splits(arguments.dataset, arguments.data_dir, ("test",))["test"]
    _, accuracy = evaluate.mean_loss_and_accuracy(evaluate.infer(model, test))
    rows = [{"epoch": checkpoint["epoch"], "test_accuracy": accuracy}]
    runs.write_atomically(folder / runs.LAST_EPOCH, runs.csv_bytes(rows))


def summary(folder):
    """A row for each run and seed that is there, as dicts."""
    rows = []
    for run in ROWS:
        committed = [COMMITTED[run]] if run in COMMITTED else []
        others = (path.parent for path in folder.glob(f"{run}/*/{runs.METRICS}"))
        for path in [*committed, *sorted(others, key=lambda path: int(path.name))]:
            metrics, history = runs.read_metrics(path), runs.read_history(path)
            last = runs.read_rows(path / runs.LAST_EPOCH) if (path / runs.LAST_EPOCH).exists() else []
            rows.append(
                {
                    "run": run,
                    "seed": metrics["settings"]["seed"],
                    "precision": metrics["precision"],
                    "threads": metrics["threads"],
                    "best_epoch": metrics["best_epoch"],
                    **{f"{split}_accuracy": metrics[split]["accuracy"] for split in runs.SPLITS},
                    "last_test_accuracy": last[0]["test_accuracy"] if last else "",
                    "minutes": round(history["seconds"].sum() / 60, 1),
                }
            )
    return rows


if __name__ == "__main__":
    sys.exit(command.run_command(main))
