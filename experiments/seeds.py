"""How much does the seed matter?

Usage:

    python -m experiments.seeds [RUN...] [--seeds N]

Trains each network with its own recipe and seeds 0 to N - 1, into outs/seeds/RUN/SEED/; stopped runs are resumed. A run
with the same recipe in outs/exercise_04 or outs/softmax_twice serves as seed 0. Then outs/seeds/seeds.csv and .png are
made from all runs found. Each run's epoch is chosen by validation accuracy; seeds are not cherry-picked.

`vgg_improved_longer` shows what the improved recipe gains from more computation, `vgg_robust_without_jpeg` what it does
for JPEG-compressed images to train on other corruptions.
"""

import command

if __name__ == "__main__":
    command.start()


import dataclasses
import functools
import sys
from pathlib import Path

import data
import evaluate
import models
import runs
from experiments import LAST_EPOCH, SEEDS, pictures
from experiments.ablation import IMPROVED
from experiments.common import (
    Variant,
    check_recipe,
    evaluate_run,
    folders_of_seeds,
    make_parser,
    parse_arguments,
    share,
    train_or_resume,
)
from experiments.softmax_twice import SoftmaxTwice
from metrics import mean_loss_and_accuracy
from recipe import LIMITS, Recipe

ROBUST = dataclasses.replace(IMPROVED, epochs=40, corrupt="noise=0.19,blur=0.06,contrast=0.05,warp=0.14,jpeg=0.08")
VARIANTS = {
    **{name: Variant(name, Recipe()) for name in ("dense", "cnn1", "cnn2", "vgg")},
    "softmax_twice": Variant("cnn2", Recipe(), network=SoftmaxTwice),
    "vgg_improved": Variant("vgg_fast", IMPROVED),
    "vgg_robust": Variant("vgg_fast", ROBUST),
}
COMMITTED = {run: runs.DEFAULT_OUT_DIR["cifar10"] / run for run in VARIANTS}  # the run with seed 0
COMMITTED["softmax_twice"] = Path("outs/softmax_twice")
VARIANTS["vgg_improved_longer"] = Variant("vgg_fast", dataclasses.replace(IMPROVED, epochs=40))
# The share of jpeg goes to the other kinds, in proportion.
WITHOUT_JPEG = dataclasses.replace(ROBUST, corrupt="noise=0.22,blur=0.07,contrast=0.06,warp=0.17")
VARIANTS["vgg_robust_without_jpeg"] = Variant("vgg_fast", WITHOUT_JPEG)


def main(argv=None):
    parser = make_parser("Train networks with several seeds.", "outs/seeds")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"(default: all of {' '.join(VARIANTS)})")
    parser.add_argument(
        "--seeds", type=command.number(int, 1, 100), default=5, help="how many seeds (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=command.number(*LIMITS["epochs"]), help="(default: as in each recipe)")
    arguments = parse_arguments(parser, argv)
    if unknown := set(arguments.runs) - VARIANTS.keys():
        raise command.UsageError(f"no such run: {', '.join(unknown)}")
    epochs = {run: arguments.epochs or variant.recipe.epochs for run, variant in VARIANTS.items()}
    summary(arguments, epochs)  # refuses to mix runs before any training

    def train_run(folder, variant, recipe):
        if not (folder / runs.METRICS).exists():
            train_or_resume(folder, variant.name, recipe, arguments, variant.network)
            write_last_epoch(folder, arguments)
            evaluate_run(folder, arguments)

    jobs = {}
    for seed in range(arguments.seeds):
        for run in arguments.runs or VARIANTS:
            variant, folder = VARIANTS[run], arguments.folder / run / str(seed)
            recipe = dataclasses.replace(variant.recipe, seed=seed, epochs=epochs[run])
            if seed or not is_committed(run, recipe, arguments.dataset):
                jobs[folder] = functools.partial(train_run, folder, variant, recipe)
    share(jobs)
    runs.make_folder(arguments.folder)
    with command.locked(arguments.folder, "Waiting for another process that summarises the runs"):
        if rows := summary(arguments, epochs):
            runs.write_atomically(arguments.folder / SEEDS, runs.csv_bytes(rows))
            pictures.draw_seeds(arguments.folder)


def is_committed(run, recipe, dataset):
    """Whether the run's folder in COMMITTED holds a run with this recipe and data set."""
    if run in COMMITTED and (COMMITTED[run] / runs.METRICS).exists():
        metrics = runs.read_metrics(COMMITTED[run])
        return (runs.recipe_of(metrics["settings"]), metrics["dataset"]) == (recipe, dataset)
    return False


def write_last_epoch(folder, arguments):
    """Write the last epoch's test accuracy, for comparison with the best epoch's."""
    device = command.choose_device(arguments.device)
    model, checkpoint = models.load_model(folder / runs.LAST)
    test = data.load_splits(arguments.dataset, arguments.data_dir, ("test",))["test"].to(device)
    _, accuracy = mean_loss_and_accuracy(evaluate.infer(model.to(device), test))
    rows = [{"epoch": checkpoint.epoch, "test_accuracy": accuracy}]
    runs.write_atomically(folder / LAST_EPOCH, runs.csv_bytes(rows))


def summary(arguments, epochs):
    """A dict for each run and seed found. Raises UsageError if one has another recipe."""
    rows = []
    for run in VARIANTS:
        recipe = dataclasses.replace(VARIANTS[run].recipe, epochs=epochs[run])
        committed = COMMITTED[run] if is_committed(run, recipe, arguments.dataset) else None
        for seed, path in folders_of_seeds(arguments.folder / run, runs.METRICS, committed).items():
            metrics, history = runs.read_metrics(path), runs.read_history(path)
            found = runs.recipe_of(metrics["settings"])
            expected = dataclasses.replace(recipe, seed=seed)
            check_recipe(path, found, expected, metrics["dataset"], arguments.dataset)
            last = runs.read_rows(path / LAST_EPOCH) if (path / LAST_EPOCH).exists() else []
            rows.append(
                {
                    "run": run,
                    "seed": seed,
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
