"""Questions that take more than one run, one script each: `python -m experiments.NAME` from the project's folder.

README.md beside this file says which of them made which committed file. Here stands what the scripts share.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t

import command
import corruptions
import data
import evaluate
import models
import runs
import train
from experiments import EFFECTS, LAST_EPOCH, NOISE, RUNS, TRUE_LOSS, pictures
from metrics import mean_loss_and_accuracy
from recipe import LIMITS, Recipe

NOISE_STD = 10  # in grey levels of 255


def make_parser(description, folder):
    """A parser with the options that all trainings of experiments have, for parse_arguments."""
    parser = command.Parser(description=description)
    parser.add_argument("--folder", type=Path, default=Path(folder), help="of the results (default: %(default)s)")
    parser.add_argument("--dataset", choices=data.CLASSES, default="cifar10", help="(default: %(default)s)")
    command.add_common_arguments(parser)
    return parser


def parse_arguments(parser, argv):
    """The arguments; what isn't of CIFAR-10 goes by default to a folder of its own, so that results don't mix."""
    arguments = parser.parse_args(argv)
    if arguments.dataset != "cifar10" and arguments.folder == parser.get_default("folder"):
        arguments.folder = runs.DEFAULT_OUT_DIR[arguments.dataset] / arguments.folder.name
    return arguments


def train_or_resume(folder, name, recipe: Recipe, arguments, network=None, precision="auto", observe=None):
    """Train a network in a run folder by train.py's own code, or go on where a stopped run was; returns its history.

    `name` is what the checkpoints call it; `network` its class, where models.MODELS[name] isn't meant. `arguments` are
    those of make_parser; `observe` is train.train's. The test split isn't read. Raises UsageError where the folder
    holds a run of another recipe.
    """
    device = command.choose_device(arguments.device)
    with runs.claim_folder(folder):
        saved = None
        if (folder / runs.LAST).exists():
            saved = runs.load_resumable(folder, name, arguments.dataset, {})
            check_recipe(folder, saved.recipe, recipe, saved.dataset, arguments.dataset)
        else:
            for former in (TRUE_LOSS, LAST_EPOCH, NOISE):
                (folder / former).unlink(missing_ok=True)
        environment = command.describe_environment(device, precision, before=saved.environment if saved else None)
        run = runs.Run(folder, name, arguments.dataset, recipe, environment, **({"id": saved.run_id} if saved else {}))
        return train.train(run, device, arguments.data_dir, network, saved, observe)


def check_recipe(folder, found: Recipe, recipe: Recipe, found_dataset, dataset):
    """Raise UsageError where the run in a folder is of another recipe: results must not be mixed, or replaced."""
    if (found, found_dataset) != (recipe, dataset):
        raise command.UsageError(f"{folder} holds a run of another recipe: choose another --folder, or remove it")


def evaluate_run(folder, arguments):
    """Evaluate the best epoch of a finished run on all three splits, as train.py does at its end."""
    with runs.claim_folder(folder):
        evaluate.evaluate_checkpoint(folder / runs.BEST, arguments.data_dir, command.choose_device(arguments.device))


class Variant(NamedTuple):
    """A way of training that is compared with another, its `baseline`, the name of a variant."""

    name: str  # of the network
    recipe: Recipe
    baseline: str | None = None
    network: type | None = None  # its class, where models.MODELS[name] isn't meant
    precision: str = "auto"

    def build(self):
        return models.build(self.network or self.name)


def compare_variants(argv, description, folder, variants, epochs):
    """The command of an experiment that trains each of the `variants`, a dict by name, with several seeds. Those that
    are neither compared with a baseline nor one themselves get seed 0 only, unless they are asked for by name.

    Writes FOLDER/VARIANT/SEED/, and of all runs that are there FOLDER/runs.csv, and effects.csv and .png: how each
    variant differs from its baseline. Judged on the validation split, as it is and with noise; the test split is never
    read. A run that was stopped goes on where it was.
    """
    parser = make_parser(description, folder)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"(default: all of {' '.join(variants)})")
    parser.add_argument("--seeds", type=command.number(int, 1, 100), default=3, help="how many (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=command.number(*LIMITS["epochs"]), default=epochs, help="(default: %(default)s)"
    )
    arguments = parse_arguments(parser, argv)
    if unknown := set(arguments.variants) - variants.keys():
        raise command.UsageError(f"no such variant: {', '.join(unknown)}")
    summary(arguments.folder, variants, arguments.epochs)  # refuses a mixture before anything is trained
    baselines = {variant.baseline for variant in variants.values()}
    compared = [name for name, variant in variants.items() if variant.baseline or name in baselines]
    for seed in range(arguments.seeds):
        for name in arguments.variants or (compared if seed else variants):
            variant, place = variants[name], arguments.folder / name / str(seed)
            recipe = dataclasses.replace(variant.recipe, epochs=arguments.epochs, seed=seed)
            if not (place / NOISE).exists():
                train_or_resume(place, variant.name, recipe, arguments, variant.network, variant.precision)
                write_noise_accuracy(place, variant, arguments)
    lines = summary(arguments.folder, variants, arguments.epochs)
    runs.write_atomically(arguments.folder / RUNS, runs.csv_bytes(lines))
    values = {}
    for line in lines:
        values.setdefault(line["variant"], []).append(line["validation_accuracy"])
    table = arguments.folder / EFFECTS
    if differences := effects(values, [(name, variant.baseline) for name, variant in variants.items()]):
        runs.write_atomically(table, runs.csv_bytes(differences))
        pictures.draw_effects(arguments.folder)
    else:
        for former in (table, table.with_suffix(".png")):
            former.unlink(missing_ok=True)


def write_noise_accuracy(folder, variant: Variant, arguments):
    """Write how good the best epoch is on the validation split with noise added, which no training has seen."""
    model = variant.build()
    models.load_weights(model, runs.load_checkpoint(folder / runs.BEST).weights, folder / runs.BEST)
    split = data.load_splits(arguments.dataset, arguments.data_dir, ("validation",))["validation"]
    images = corruptions.noisy(split.images, NOISE_STD)
    _, accuracy = mean_loss_and_accuracy(evaluate.infer(model, data.Split(images, split.labels)))
    rows = [{"noise": NOISE_STD, "validation_accuracy": accuracy}]
    runs.write_atomically(folder / NOISE, runs.csv_bytes(rows))


def check_epochs(folder, epochs):
    """Raise UsageError where a finished run has another number of epochs: results must not be mixed, or replaced."""
    trained = len(runs.read_history(folder)["epoch"])
    if trained != epochs:
        raise command.UsageError(f"{folder} holds a run of {trained} epochs: choose another --folder, or remove it")


def folders_of_seeds(folder, file, committed=None):
    """The folders of a run's seeds that hold `file`, a dict by seed, in their order; `committed` is that of seed 0, if
    it is elsewhere."""
    folders = {int(path.parent.name): path.parent for path in folder.glob(f"*/{file}") if path.parent.name.isdigit()}
    if committed:
        folders[0] = committed
    return dict(sorted(folders.items()))


def summary(folder, variants, epochs):
    """A line for each variant and seed that has been trained, as dicts; the operations are those for CIFAR-10. Raises
    UsageError where one of them was trained for another number of epochs."""
    lines = []
    for name, variant in variants.items():
        recipe = dataclasses.replace(variant.recipe, epochs=epochs)
        operations = pflop(models.multiply_adds(variant.build()), recipe)
        for seed, path in folders_of_seeds(folder / name, NOISE).items():  # which is written last
            check_epochs(path, epochs)
            history, noise = runs.read_history(path), runs.read_rows(path / NOISE)
            lines.append(
                {
                    "variant": name,
                    "seed": seed,
                    "epochs": epochs,
                    "validation_accuracy": history["validation_accuracy"].max(),
                    "with_noise": noise[0]["validation_accuracy"],
                    "pflop": round(operations, 3),
                    "minutes": round(history["seconds"].sum() / 60, 1),
                }
            )
    return lines


def pflop(multiply_adds, recipe: Recipe):
    """The operations of a training on CIFAR-10, in 1e15: six for each multiply-add of an image that an epoch visits."""
    images = data.TOTAL - data.VALIDATION - data.TEST
    return 6 * multiply_adds * images * data.epochs_for_an_image(recipe.skip_easy, recipe.epochs) / 1e15


def effects(values, pairs):
    """How the mean accuracy of a variant differs from that of its baseline, for each of the `pairs` (variant, baseline)
    that is there, as dicts with a 95% interval.

    `values` are the accuracies of each variant, one for each seed, as a dict of lists. The interval is Student's, for
    the difference of two means, with one variance for all variants, since three seeds say little about that of a single
    one. It covers the choice of seeds only, and each difference by itself: where twenty differences are all 0, one
    interval is expected to exclude it. Empty where no variant has two seeds.
    """
    freedom = sum(len(each) - 1 for each in values.values())
    pairs = [pair for pair in pairs if values.keys() >= {*pair}]
    if not freedom:
        return []
    variance = sum(np.var(each) * len(each) for each in values.values()) / freedom
    differences = []
    for name, baseline in pairs:
        difference = np.mean(values[name]) - np.mean(values[baseline])
        margin = t.ppf(0.975, freedom) * np.sqrt(variance * (1 / len(values[name]) + 1 / len(values[baseline])))
        differences.append(
            {
                "variant": name,
                "baseline": baseline,
                "seeds": len(values[name]),
                "mean": np.mean(values[name]),
                "difference": difference,
                "low": difference - margin,
                "high": difference + margin,
            }
        )
    return differences
