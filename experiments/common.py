"""What the experiments share: options, training runs, and the comparison of variants over several seeds."""

import dataclasses
import functools
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
from experiments import EFFECTS, NOISE, RUNS, pictures
from metrics import mean_loss_and_accuracy
from recipe import LIMITS, Recipe

NOISE_STD = 10  # grey levels, of 255


def make_parser(description, folder):
    """A parser with the options of all experiments that train, for parse_arguments."""
    parser = command.Parser(description=description)
    parser.add_argument("--folder", type=Path, default=Path(folder), help="where results go (default: %(default)s)")
    parser.add_argument("--dataset", choices=data.CLASSES, default="cifar10", help="(default: %(default)s)")
    command.add_common_arguments(parser)
    return parser


def parse_arguments(parser, argv):
    """Parse the options. Data sets other than CIFAR-10 get their own default folder, so that results don't mix."""
    arguments = parser.parse_args(argv)
    if arguments.dataset != "cifar10" and arguments.folder == parser.get_default("folder"):
        arguments.folder = runs.DEFAULT_OUT_DIR[arguments.dataset] / arguments.folder.name
    return arguments


def train_or_resume(folder, name, recipe: Recipe, arguments, network=None, precision="auto", observe=None):
    """Train a network in a claimed run folder with train.py's code, or resume a stopped run there; returns its history.

    `name` is the network's name in checkpoints; `network` is its class, if it isn't models.MODELS[name]. `arguments`
    come from make_parser's parser; `observe` is for train.train. The test split isn't read. Raises UsageError if the
    folder holds a run with another recipe.
    """
    device = command.choose_device(arguments.device)
    saved = None
    if (folder / runs.LAST).exists():
        saved = runs.load_resumable(folder, name, arguments.dataset, {})
        check_recipe(folder, saved.recipe, recipe, saved.dataset, arguments.dataset)
    elif (folder / runs.METRICS).exists():  # a run that came with the clone, without last.pt
        metrics = runs.read_metrics(folder)
        check_recipe(folder, runs.recipe_of(metrics["settings"]), recipe, metrics["dataset"], arguments.dataset)
    environment = command.describe_environment(device, precision, before=saved.environment if saved else None)
    run = runs.Run(folder, name, arguments.dataset, recipe, environment, saved.run_id if saved else runs.new_id())
    return train.train(run, device, arguments.data_dir, network, saved, observe)


def share(jobs):
    """Do jobs, dicts from a run folder to a function, each once: those whose folder another process holds are left to
    it, unless it dies before the others are done.

    So the same command, started several times, also on several machines with one file system, shares the work.
    """
    while jobs:
        held = {}
        for folder, do in jobs.items():
            try:
                with runs.claim_folder(folder):
                    do()
            except command.InUseError:
                held[folder] = do
        if len(held) == len(jobs):
            return
        jobs = held


def check_recipe(folder, found: Recipe, recipe: Recipe, found_dataset, dataset):
    """Raise UsageError if the run in a folder has another recipe or data set: results must not be mixed or replaced."""
    if (found, found_dataset) != (recipe, dataset):
        raise command.UsageError(f"{folder} holds a run with another recipe: choose another --folder, or remove it")


def evaluate_run(folder, arguments):
    """Evaluate the best epoch of a finished run on all three splits, as train.py does at the end."""
    evaluate.evaluate_checkpoint(folder / runs.BEST, arguments.data_dir, command.choose_device(arguments.device))


class Variant(NamedTuple):
    """A way of training, to be compared with its `baseline`, the name of another variant."""

    name: str  # of the network
    recipe: Recipe
    baseline: str | None = None
    network: type | None = None  # its class, if it isn't models.MODELS[name]
    precision: str = "auto"

    def build(self):
        return models.build(self.network or self.name)


def compare_variants(argv, description, folder, variants, epochs):
    """Run an experiment that trains each of the `variants`, a dict by name, with several seeds. Variants that neither
    have a baseline nor are one get seed 0 only, unless they are named on the command line.

    Writes FOLDER/VARIANT/SEED/ and, from all runs found there, FOLDER/runs.csv, effects.csv and effects.png: how each
    variant differs from its baseline. Accuracy is measured on the validation split, with and without noise; the test
    split is never read. Stopped runs are resumed.
    """
    parser = make_parser(description, folder)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"(default: all of {' '.join(variants)})")
    parser.add_argument(
        "--seeds", type=command.number(int, 1, 100), default=3, help="how many seeds (default: %(default)s)"
    )
    parser.add_argument(
        "--epochs", type=command.number(*LIMITS["epochs"]), default=epochs, help="(default: %(default)s)"
    )
    arguments = parse_arguments(parser, argv)
    if unknown := set(arguments.variants) - variants.keys():
        raise command.UsageError(f"no such variant: {', '.join(unknown)}")
    summary(arguments.folder, variants, arguments.epochs)  # refuses to mix runs before any training
    baselines = {variant.baseline for variant in variants.values()}
    compared = [name for name, variant in variants.items() if variant.baseline or name in baselines]

    def train_variant(place, variant, seed):
        if not (place / NOISE).exists():
            recipe = dataclasses.replace(variant.recipe, epochs=arguments.epochs, seed=seed)
            train_or_resume(place, variant.name, recipe, arguments, variant.network, variant.precision)
            write_noise_accuracy(place, variant, arguments)

    jobs = {}
    for seed in range(arguments.seeds):
        for name in arguments.variants or (compared if seed else variants):
            place = arguments.folder / name / str(seed)
            jobs[place] = functools.partial(train_variant, place, variants[name], seed)
    share(jobs)
    with command.locked(arguments.folder, "Waiting for another process that summarises the runs"):
        if lines := summary(arguments.folder, variants, arguments.epochs):
            write_effects(arguments.folder, variants, lines)


def write_effects(folder, variants, lines):
    """Write runs.csv and effects.csv, and draw effects.png."""
    runs.write_atomically(folder / RUNS, runs.csv_bytes(lines))
    values = {}
    for line in lines:
        values.setdefault(line["variant"], []).append(line["validation_accuracy"])
    table = folder / EFFECTS
    if differences := effects(values, [(name, variant.baseline) for name, variant in variants.items()]):
        runs.write_atomically(table, runs.csv_bytes(differences))
        pictures.draw_effects(folder)
    else:
        for path in (table, table.with_suffix(".png")):
            path.unlink(missing_ok=True)


def write_noise_accuracy(folder, variant: Variant, arguments):
    """Write the best epoch's accuracy on the validation split with added noise, a corruption not used in training."""
    device = command.choose_device(arguments.device)
    model = variant.build().to(device)
    models.load_weights(model, runs.load_checkpoint(folder / runs.BEST).weights, folder / runs.BEST)
    split = data.load_splits(arguments.dataset, arguments.data_dir, ("validation",))["validation"].to(device)
    images = corruptions.noisy(split.images, NOISE_STD)
    _, accuracy = mean_loss_and_accuracy(evaluate.infer(model, data.Split(images, split.labels)))
    rows = [{"noise": NOISE_STD, "validation_accuracy": accuracy}]
    runs.write_atomically(folder / NOISE, runs.csv_bytes(rows))


def check_epochs(folder, epochs):
    """Raise UsageError if a finished run has another number of epochs: results must not be mixed or replaced."""
    trained = len(runs.read_history(folder)["epoch"])
    if trained != epochs:
        raise command.UsageError(f"{folder} holds a run of {trained} epochs: choose another --folder, or remove it")


def folders_of_seeds(folder, file, committed=None):
    """The subfolders for seeds that contain `file`, as a dict in the order of the seeds; `committed` is the folder for
    seed 0, if it is elsewhere."""
    folders = {int(path.parent.name): path.parent for path in folder.glob(f"*/{file}") if path.parent.name.isdigit()}
    if committed:
        folders[0] = committed
    return dict(sorted(folders.items()))


def summary(folder, variants, epochs):
    """A dict for each variant and seed that has been trained; the operations are those for CIFAR-10. Raises UsageError
    if a run has another number of epochs."""
    lines = []
    for name, variant in variants.items():
        recipe = dataclasses.replace(variant.recipe, epochs=epochs)
        operations = pflop(models.multiply_adds(variant.build()), recipe)
        for seed, path in folders_of_seeds(folder / name, NOISE).items():  # NOISE is written last
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
    """The operations of training on CIFAR-10, in 1e15: six for each multiply-add and image visited in an epoch."""
    images = data.TOTAL - data.VALIDATION - data.TEST
    return 6 * multiply_adds * images * data.epochs_for_an_image(recipe.skip_easy, recipe.epochs) / 1e15


def effects(values, pairs):
    """How the mean accuracy of a variant differs from its baseline's, with a 95% interval: a dict for each of the
    `pairs` (variant, baseline) that `values` contains. Empty if no variant has two seeds.

    `values` is a dict from a variant to a list of accuracies, one for each seed. The interval is Student's t interval
    for the difference of two means, with one variance for all variants, since three seeds say little about that of a
    single one. It covers only the choice of seeds, and each difference by itself: if twenty differences are all 0, one
    interval is expected to exclude 0.
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
