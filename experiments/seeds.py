"""How much does the seed decide?

Usage:

    python -m experiments.seeds [RUN...] [--seeds N]

Trains each network by its own recipe with the seeds 1 to N - 1, into outs/seeds/RUN/SEED/; one that was stopped goes on
where it was. Seed 0 is the committed run. Then outs/seeds/seeds.csv and .png are made of all runs that are there. The
epoch of each run is chosen by validation accuracy, and no seed is chosen at all.
"""

import command

import sys
from pathlib import Path

import plots
import runs
from experiments import evaluate_run, make_parser, train_or_resume
from experiments.softmax_twice import SoftmaxTwice
from recipe import LIMITS, Recipe

EXERCISE = runs.DEFAULT_OUT_DIR["cifar10"]
RUNS = {  # their network, its class where that isn't the network's own, and the committed run, which is of seed 0
    "dense": ("dense", None, EXERCISE / "dense"),
    "cnn1": ("cnn1", None, EXERCISE / "cnn1"),
    "cnn2": ("cnn2", None, EXERCISE / "cnn2"),
    "softmax_twice": ("cnn2", SoftmaxTwice, Path("outs/softmax_twice")),
    "vgg": ("vgg", None, EXERCISE / "vgg"),
}


def main(argv=None):
    parser = make_parser("Train networks with several seeds.", "outs/seeds")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"(default: all of {' '.join(RUNS)})")
    parser.add_argument("--seeds", type=command.number(int, 1, 100), default=5, help="how many (default: %(default)s)")
    parser.add_argument("--epochs", type=command.number(*LIMITS["epochs"]), default=Recipe.epochs)
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.runs) - RUNS.keys():
        raise command.UsageError(f"no such run: {', '.join(unknown)}")
    for seed in range(1, arguments.seeds):
        for run in arguments.runs or RUNS:
            name, network, _ = RUNS[run]
            folder = arguments.folder / run / str(seed)
            recipe = Recipe(epochs=arguments.epochs, seed=seed)
            if not (folder / runs.METRICS).exists():
                train_or_resume(folder, name, recipe, arguments, network)
                evaluate_run(folder, arguments)
    rows = summary(arguments.folder)
    runs.write_atomically(arguments.folder / runs.SEEDS, runs.csv_bytes(rows))
    plots.draw_seeds(arguments.folder)


def summary(folder):
    """A row for each run and seed that is there, as dicts."""
    rows = []
    for run, (_, _, committed) in RUNS.items():
        others = sorted(
            (path.parent for path in folder.glob(f"{run}/*/{runs.METRICS}")), key=lambda path: int(path.name)
        )
        for path in [committed, *others]:
            metrics, history = runs.read_metrics(path), runs.read_history(path)
            rows.append(
                {
                    "run": run,
                    "seed": metrics["settings"]["seed"],
                    "precision": metrics["precision"],
                    "threads": metrics["threads"],
                    "best_epoch": metrics["best_epoch"],
                    **{f"{split}_accuracy": metrics[split]["accuracy"] for split in runs.SPLITS},
                    "minutes": round(history["seconds"].sum() / 60, 1),
                }
            )
    return rows


if __name__ == "__main__":
    sys.exit(command.run_command(main))
