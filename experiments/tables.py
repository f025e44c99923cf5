"""The tables of README.md, the lab report and experiments/README.md, and a check of the numbers in these texts.

Usage:

    python -m experiments.tables            rewrite the tables, each between its two markers
    python -m experiments.tables --check    print a line for each disagreement with the committed files; exit code 1

A sentence may be worded in any way, but its numbers must be in a table of its section or among the section's sources
below. The check also covers links, the commands and settings of the committed runs, and, if CIFAR-10 is in --data-dir,
the predictions of the committed checkpoints.
"""

import command

if __name__ == "__main__":
    command.start()

import collections
import itertools
import json
import os
import re
import sys
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

import data
import download
import evaluate
import models
import runs
import train
from experiments import EFFECTS, NEW_ACCURACY, RUNS, SEEDS, TRUE_LOSS, ablation
from experiments.common import effects, folders_of_seeds, pflop
from experiments.seeds import COMMITTED, VARIANTS
from metrics import METRIC_COLUMNS, paired_difference
from recipe import Recipe, given_settings

ROOT = Path(__file__).resolve().parent.parent
OUTS, EXPERIMENTS = ROOT / "outs", ROOT / "experiments"
RESULTS = OUTS / "exercise_04"
README = ROOT / "README.md"
TEXTS = (README, RESULTS / "README.md", EXPERIMENTS / "README.md")
SMALL = ("dense", "cnn1", "cnn2")
IMPROVED, LONGER, ROBUST = "vgg_improved", "vgg_improved_longer", "vgg_robust"
BY_EXERCISE = (*SMALL, "vgg")
NETWORKS = (*BY_EXERCISE, IMPROVED, ROBUST)  # the runs that the report compares, the simplest network first
LONGEST_README = 230  # lines

# Reading the committed files.


def rows_of(path, **where):
    """The rows of a CSV file that have the given values, as dicts. Numbers become floats, empty cells nan."""

    def value(text):
        try:
            return float(text or "nan")
        except ValueError:
            return text

    rows = [{column: value(text) for column, text in row.items()} for row in runs.read_rows(path)]
    return [row for row in rows if where.items() <= row.items()]


def metrics_of(name):
    return runs.read_metrics(RESULTS / name)


def history_of(name):
    return runs.read_history(RESULTS / name)


def of_seeds(run, column="test_accuracy"):
    """A column of seeds.csv for a run, as an array, starting with seed 0."""
    return np.array([row[column] for row in rows_of(OUTS / "seeds" / SEEDS, run=run)])


def folders_of(run):
    """A run's folders, starting with seed 0, whose folder is in the committed results for some runs."""
    committed = ROOT / COMMITTED[run] if run in COMMITTED else None
    return list(folders_of_seeds(OUTS / "seeds" / run, runs.METRICS, committed).values())


def best_minus_last(run):
    """Test accuracy of the best epoch minus that of the last, for the seeds whose last epoch was measured."""
    differences = of_seeds(run) - of_seeds(run, "last_test_accuracy")
    return differences[~np.isnan(differences)]


def effect_of_seeds(run, baseline):
    """A run's mean test accuracy over seeds minus the baseline's, and the ends of the 95% interval."""
    (effect,) = effects({name: of_seeds(name) for name in (baseline, run)}, [(run, baseline)])
    return effect["difference"], effect["low"], effect["high"]


def confusion_matrices(run):
    """Confusion matrices of the test split, int [seeds, 10, 10]: true by predicted classes."""
    return np.array([runs.read_metrics(folder)["test"]["confusion_matrix"] for folder in folders_of(run)])


def changed(kind, amount, folder=RESULTS):
    """The test accuracy of each network on images with that corruption, as a dict."""
    rows = rows_of(folder / runs.ROBUSTNESS, transformation=kind, amount=amount)
    return {row["model"]: row["test_accuracy"] for row in rows}


def confidence_of(name):
    """The mean probability of the predicted class on the test images."""
    (probabilities,) = runs.read_arrays(RESULTS / name / runs.PREDICTIONS, "probabilities")
    return probabilities.max(axis=1).mean(dtype=np.float64)


def near_duplicates():
    """Indices of the test images that have a near-duplicate among the training images (Barz & Denzler 2020)."""
    return [int(row["TestID"]) for row in rows_of(EXPERIMENTS / "near_duplicates.csv")]


def contested_labels():
    """Indices of the test images whose label fewer than three of five people agreed with (Northcutt et al. 2021)."""
    return [int(row["test_index"]) for row in rows_of(EXPERIMENTS / "doubted_labels.csv") if row["judged_label"] < 3]


def measured(file):
    return json.loads((EXPERIMENTS / file).read_text())


def step_times(values):
    """Milliseconds per step of the project, and of the usual script with the faster number of workers."""
    times = {contestant: summary["median"] for contestant, summary in values["milliseconds"].items()}
    return times["project"], min(time for contestant, time in times.items() if contestant.startswith("usual"))


# The tables. Each function yields the rows of the table with its name, their cells separated by " | ".

TABLES = {}  # a dict from a table's name to a function that returns its Markdown


def table(*header):
    def register(rows):
        TABLES[rows.__name__] = lambda: markdown(" | ".join(header), *rows())
        return rows

    return register


def markdown(*lines):
    return evaluate.markdown([line.split(" | ") for line in lines])


def percent(*values, digits=2):
    return " | ".join(f"{value:.{digits}%}" for value in values)


def interval(low, high, digits=2):
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"


def in_points(difference, low, high):
    return f"{100 * difference:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def spread(values, digits=2):
    """Mean and standard deviation over seeds."""
    if len(values) == 0:
        return "–"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def with_range(values, digits=1):
    """Median, minimum and maximum of several rounds."""
    return "{median:,.{0}f} ({minimum:,.{0}f} to {maximum:,.{0}f})".format(digits, **values)


@table("split | images | share | of each class")
def split():
    images = {name: metrics_of("cnn2")[name]["samples"] for name in runs.SPLITS}
    for name, count in images.items():
        yield f"{name} | {count:,} | {count / sum(images.values()):.2%} | {count // 10:,}"


@table("split | accuracy | balanced accuracy | precision | recall | F1 | specificity | loss")
def splits_of_cnn2():
    for name in runs.SPLITS:
        values = metrics_of("cnn2")[name]
        macro = [values["macro"][column] for column in METRIC_COLUMNS]
        yield f"{name} | {percent(values['accuracy'], values['balanced_accuracy'], *macro)} | {values['loss']:.4f}"


@table("network: its layers | parameters | multiply-adds")
def networks():
    for name in (*BY_EXERCISE, "vgg_fast"):
        model = models.build(models.MODELS[name])
        layers = ", ".join(map(short_name, model.layers))
        yield f"`{name}`: {layers} | {models.count_parameters(model):,} | {models.multiply_adds(model):,}"


def short_name(layer):
    kind, size = type(layer).__name__, getattr(layer, "out_channels", getattr(layer, "out_features", ""))
    names = {"Conv2d": "conv", "MaxPool2d": "pool", "BatchNorm2d": "BN", "Flatten": "flatten", "Dropout": "dropout"}
    return f"{names.get(kind, kind.lower() if kind == 'Linear' else kind)} {size}".rstrip()


@table("network | train | validation | test | 95% interval | precision | recall | F1")
def comparison():
    for name in NETWORKS:
        train, validation, test = (metrics_of(name)[split] for split in runs.SPLITS)
        accuracies = f"{percent(train['accuracy'], validation['accuracy'])} | **{test['accuracy']:.2%}**"
        macro = [test["macro"][column] for column in ("precision", "recall", "f1")]
        yield f"`{name}` | {accuracies} | {interval(*test['accuracy_interval'])}% | {percent(*macro)}"


@table("network | validation | test | 95% interval | parameters | multiply-adds | minutes")
def results():
    for name in NETWORKS:
        metrics, minutes = metrics_of(name), history_of(name)["seconds"].sum() / 60
        validation, test = metrics["validation"]["accuracy"], metrics["test"]
        accuracies = f"{validation:.1%} | **{test['accuracy']:.2%}** | {interval(*test['accuracy_interval'], digits=1)}"
        costs = f"{metrics['parameters'] / 1e6:.1f} M | {metrics['multiply_adds'] / 1e6:.1f} M | {minutes:.0f}"
        yield f"`{name}` | {accuracies} | {costs}"


@table(
    "step | only the first is right | only the second is right | points, seed 0 (95% interval)",
    "points, mean of the seeds (95% interval)",
)
def steps():
    for before, name in itertools.pairwise(NETWORKS):
        that, this = (evaluate.right_predictions(RESULTS / each) for each in (before, name))
        only_this, only_that, *paired = paired_difference(this, that)
        means = in_points(*effect_of_seeds(name, before))
        yield f"`{before}` → `{name}` | {only_that:,} | {only_this:,} | {in_points(*paired)} | {means}"


@table(
    "network | seeds | test accuracy, % | best epoch | validation minus test, points",
    "best minus last epoch on the test images, points",
)
def seeds():
    for run in dict.fromkeys(row["run"] for row in rows_of(OUTS / "seeds" / SEEDS)):
        test, gained = of_seeds(run), best_minus_last(run)
        gap = of_seeds(run, "validation_accuracy") - test
        cells = f"{spread(100 * test)} | {spread(of_seeds(run, 'best_epoch'), 0)} | {spread(100 * gap)}"
        some = f" ({len(gained)} seed{'s' * (len(gained) > 1)})" if len(gained) < len(test) else ""
        yield f"`{run}` | {len(test)} | {cells} | {spread(100 * gained)}{some}"


@table(
    "network | lowest validation loss | best epoch | its training / validation accuracy",
    "last epoch: training / validation accuracy | its validation loss",
)
def fitting():
    for name in NETWORKS:
        history, best = history_of(name), metrics_of(name)["best_epoch"]
        loss, pairs = history["validation_loss"], zip(history["train_accuracy"], history["validation_accuracy"])
        pairs = [f"{train:.2%} / {validation:.2%}" for train, validation in pairs]
        lowest = f"{loss.min():.3f} at epoch {loss.argmin() + 1}"
        yield f"`{name}` | {lowest} | {best} | {pairs[best - 1]} | {pairs[-1]} | {loss[-1]:.3f}"


@table("classes", *(f"`{name}`" for name in NETWORKS))
def confusions(count=4):
    """The pairs of classes that cnn2 confuses most: the share of their test images confused, in percent, over seeds."""
    classes, shares = list(metrics_of("cnn2")["test"]["per_class"]), {}
    for name in NETWORKS:
        matrices = confusion_matrices(name)
        images = matrices.sum(axis=2, keepdims=True)
        shares[name] = 100 * (matrices + matrices.swapaxes(1, 2)) / (images + images.swapaxes(1, 2))
    pairs = sorted(itertools.combinations(range(10), 2), key=lambda pair: -shares["cnn2"].mean(axis=0)[pair])
    for one, other in pairs[:count]:
        cells = (spread(shares[name][:, one, other], 1) for name in NETWORKS)
        yield " | ".join([f"{classes[one]}, {classes[other]}", *cells])


@table("network | test split | new photographs | 95% interval | points lost")
def new_photographs():
    rows = rows_of(OUTS / "new_photographs" / NEW_ACCURACY, **{"class": "all"})
    for row in sorted(rows, key=lambda row: row["test_accuracy"]):
        lost = 100 * (row["test_accuracy"] - row["accuracy"])
        accuracies = percent(row["test_accuracy"], row["accuracy"])
        yield f"`{row['model']}` | {accuracies} | {interval(row['low'], row['high'])}% | {lost:.1f}"


@table("network | all | with a near-duplicate | without one | without a contested label")
def new_data():
    for name in NETWORKS:
        right = evaluate.right_predictions(RESULTS / name)
        twins, contested = (np.isin(np.arange(len(right)), each) for each in (near_duplicates(), contested_labels()))
        shares = right.mean(), right[twins].mean(), right[~twins].mean(), right[~contested].mean()
        yield f"`{name}` | {percent(*shares)}"


CONDITIONS = {  # kind and amount of a corruption, by its name in a table
    "as they are": ("shift", 0),
    "noise 10": ("noise", 10),
    "noise 20": ("noise", 20),
    "noise 40": ("noise", 40),
    "blur 1 px": ("blur", 1),
    "blur 2 px": ("blur", 2),
    "contrast ½": ("contrast", 0.5),
    "contrast ¼": ("contrast", 0.75),
    "JPEG 50": ("jpeg", 50),
    "JPEG 20": ("jpeg", 80),
    "rotation 30°": ("rotation", 30),
    "shift 4 px": ("shift", 4),
    "shift 8 px": ("shift", 8),
}
SHOWN = ("as they are", "shift 8 px", "rotation 30°", "noise 10", "noise 40", "blur 1 px", "contrast ¼", "JPEG 20")


@table("network", *SHOWN)
def conditions():
    for name in NETWORKS:
        yield f"`{name}` | {percent(*(changed(*CONDITIONS[title])[name] for title in SHOWN), digits=1)}"


@table(
    "test images | `vgg_improved` | `vgg_robust` without JPEG | `vgg_robust` | `vgg_robust`, mean ± std of the seeds"
)
def robust():
    for title, (kind, amount) in CONDITIONS.items():
        report, others = changed(kind, amount), changed(kind, amount, OUTS / "robust")
        without = others.pop("vgg_robust_without_jpeg/0")
        seeds = [100 * report[ROBUST], *(100 * accuracy for accuracy in others.values())]
        yield f"{title} | {percent(report[IMPROVED], without, report[ROBUST], digits=1)} | {spread(seeds, 1)}"


@table(
    "the loss of `cnn2` is taken on | best epoch | lowest validation loss at epoch | validation | test | 95% interval",
    "[calibration error](../outs/exercise_04/README.md#are-its-probabilities-probabilities)",
)
def softmax():
    folders = {"logits": RESULTS / "cnn2", "probabilities: softmax applied twice": OUTS / "softmax_twice"}
    for title, folder in folders.items():
        metrics, lowest = runs.read_metrics(folder), runs.read_history(folder)["validation_loss"].argmin() + 1
        validation, test = metrics["validation"], metrics["test"]
        accuracies = f"{percent(validation['accuracy'], test['accuracy'])} | {interval(*test['accuracy_interval'])}%"
        error = test["expected_calibration_error"]
        yield f"{title} | {metrics['best_epoch']} | {lowest} | {accuracies} | {error:.2%}"


@table("run | widths | epochs | PFLOP | minutes | validation accuracy | loss")
def search():
    """The runs of the search for the improved recipe, the least computation first."""
    optimizers = {"sgd": "SGD", "muon": "Muon"}
    for row in sorted(rows_of(EXPERIMENTS / "search.csv"), key=lambda row: row["pflop"]):
        run = f"{optimizers[row['optimizer']]}: {row['what']} | {row['widths'].replace('-', ', ')}"
        costs = f"{row['epochs']:.0f} | {row['pflop']:.2f} | {row['minutes']:.0f}"
        yield f"{run} | {costs} | {row['validation_accuracy']:.2%} | {row['validation_loss']:.3f}"


def rate(variant):
    return f"{ablation.VARIANTS[variant].recipe.learning_rate:g}"


TITLES = {  # of each experiment's variants
    "vgg_apart": {
        "cnn2": "`cnn2`",
        "wider": "as many filters and units as `vgg`",
        "third_block": "a third block",
        "two_convolutions": "two convolutions in each block",
        "batch_normalisation": "batch normalisation",
        "dropout": "dropout, which makes it `vgg`",
    },
    "ablation": {
        "all_parts": "all parts",
        "vgg_by_this_recipe": "`vgg` instead of `vgg_fast`",
        "without_whitening": "no whitening: the first layer starts at random and is trained",
        "without_identity_initialisation": "no identity initialisation: convolutions but the first start at random",
        "without_augmentation": "no augmentation",
        "without_label_smoothing": "no label smoothing",
        "without_skipping_easy_images": "no skipping of easy images",
        "constant_learning_rate": f"constant learning rate, {rate('constant_learning_rate')}",
        "adamw_instead_of_muon": f"AdamW, {rate('adamw_instead_of_muon')}, instead of Muon",
    },
    "learning_rates": {f"{name}_{x}": f"`{name}`, {x}" for name in ("dense", "cnn2") for x in ("1e-4", "3e-4", "1e-3")},
    "precision": {"fp32": "fp32", "bf16": "bf16"},
}


def compared(experiment):
    header = " | seeds | validation accuracy, mean ± std, % | difference in points (95% interval)"
    with_costs = experiment in ("vgg_apart", "ablation")
    yield header + " | with noise, % | PFLOP | minutes" * with_costs
    for variant, title in TITLES[experiment].items():
        rows = rows_of(OUTS / experiment / RUNS, variant=variant)
        clean, noisy = ([100 * row[column] for row in rows] for column in ("validation_accuracy", "with_noise"))
        effect = rows_of(OUTS / experiment / EFFECTS, variant=variant)  # none for a baseline
        difference = in_points(*(effect[0][end] for end in ("difference", "low", "high"))) if effect else "–"
        costs = f" | {spread(noisy, 1)} | {rows[0]['pflop']:.2f} | {mean(row['minutes'] for row in rows):.0f}"
        yield f"{title} | {len(rows)} | {spread(clean)} | {difference}{costs * with_costs}"


TABLES |= {experiment: lambda name=experiment: markdown(*compared(name)) for experiment in TITLES}


@table("network | this project | usual script | ratio | ratio, both in fp32 | relative to the floor")
def speed():
    for name, values in measured("throughput.json")["steps"].items():
        ratios, times = values["ratios"], " | ".join(f"{time:.2f} ms" for time in step_times(values))
        fp32, floor = (ratios[each]["median"] for each in ("usual script / project fp32", "project / floor"))
        yield f"`{name}` | {times} | {with_range(ratios['usual script / project'])} | {fp32:.1f} | {floor:.2f}"


@table("network | batch size | microseconds an image | peak memory")
def batch_sizes():
    for name, batches in measured("throughput.json")["batches"].items():
        for size, values in batches.items():
            time, memory = with_range(values["microseconds an image"], 0), values["peak memory in MB"]
            yield f"`{name}` | {size.removeprefix('batch ')} | {time} | {memory:,} MB"


@table("network | threads | alone | beside a busy program | ratio")
def busy():
    for (name, values), threads in itertools.product(measured("throughput.json")["busy"].items(), ("bound", "free")):
        alone, beside = (values["milliseconds"][f"{threads}, {state}"]["median"] for state in ("alone", "busy"))
        ratio = with_range(values["ratios"][f"busy / alone, {threads}"])
        yield f"`{name}` | {threads} | {alone:.2f} ms | {beside:.2f} ms | {ratio}"


# The numbers that sentences may contain besides those in the tables of their section.


def sources():
    """Yield the heading of a section, followed by numbers that its sentences may contain. Strings hold those that were
    chosen, defined or measured by others; the rest are values from the committed files, shares as fractions."""
    training, validation, test = ({name: metrics_of(name)[split] for name in NETWORKS} for split in runs.SPLITS)
    vgg, cnn2, dense = (test[name]["accuracy"] for name in ("vgg", "cnn2", "dense"))
    improved, longer, robust = (of_seeds(run) for run in (IMPROVED, LONGER, ROBUST))
    minutes = of_seeds(IMPROVED, "minutes").mean()
    deviations = [of_seeds(run).std(ddof=1) for run in SMALL]
    softmax_costs = of_seeds("cnn2") - of_seeds("softmax_twice")
    lowest = [history_of(name)["validation_loss"].argmin() + 1 for name in BY_EXERCISE]
    new = {(row["model"], row["class"]): row for row in rows_of(OUTS / "new_photographs" / NEW_ACCURACY)}
    lost = [new[name, "all"]["test_accuracy"] - new[name, "all"]["accuracy"] for name in NETWORKS]
    pictures, twins, contested = new["dense", "all"]["pictures"], near_duplicates(), contested_labels()
    costs_of_robustness = [improved.mean() - robust.mean(), improved[0] - robust[0]]
    robust_minutes = of_seeds(ROBUST, "minutes")
    gpu, steps = measured("gpu.json"), measured("throughput.json")["steps"].values()
    speedups = [values["ratios"]["usual script / project"]["median"] for values in steps]

    # README.md
    heading = "CIFAR-10 with convolutional networks"
    yield heading, "60,000", improved.mean(), robust.mean(), minutes
    yield "Quick start", "3.10 16 80 170", cnn2, minutes, operations(ROBUST) / operations(IMPROVED)
    yield "Quick start", gpu[IMPROVED]["training seconds"]
    heading = "What came out"
    yield heading, "10 32 40 80 255 10,000", improved, pictures, lost, softmax_costs, lowest, costs_of_robustness
    yield heading, [new[name, "all"]["accuracy"] for name in NETWORKS]
    yield heading, confidence_of("vgg"), confidence_of(IMPROVED), kept("shift", 8)
    yield heading, [changed("noise", amount)[name] for amount in (0, 10) for name in NETWORKS]
    yield "Use", "3"
    yield "Files", "25 5,000 10,000 45,000"

    # The lab report
    heading = "Lab report: CIFAR-10 with convolutional networks"
    yield heading, "80", [test[name]["accuracy"] for name in NETWORKS], max(lowest), lost
    yield heading, improved.mean(), robust.mean(), operations("vgg") / operations(IMPROVED)
    yield heading, changed("noise", 10)[IMPROVED]
    model, _ = models.load_model(RESULTS / "cnn2" / runs.BEST)
    yield "Formalisation", "32 100 45,000", models.count_parameters(model), *(each.shape for each in model.parameters())
    yield "Data", "6,000 50,000 60,000", model.mean, model.std
    yield "Loss", "2.30 60", softmax_costs, of_seeds("softmax_twice")
    yield "Networks", "27 288"
    yield "Hyper-parameters", "0.01 32 80", max(max(of_seeds(run, "best_epoch")) for run in SMALL)
    yield "Training", "60 80", best_minus_last("cnn2").mean()
    yield "Evaluation", "25 45 50 55 60 70 2,000", *mistakes_by_kind()
    for column in METRIC_COLUMNS:
        values = [values[column] for values in test["cnn2"]["per_class"].values()]
        yield "Evaluation", min(values), max(values)
    heading = "The design feedback loop"
    yield heading, "20 28 32 40 64", deviations, of_seeds("cnn2").mean() - of_seeds("cnn1").mean()
    yield heading, metrics_of("vgg")["multiply_adds"] / metrics_of("cnn2")["multiply_adds"]
    drops = occlusion("cnn2")
    yield "How does the model solve the problem?", likeness_to_start("cnn2"), drops[1].max(), drops[4].min()
    yield "Are its probabilities probabilities?", "15 80 82 100", vgg, confidence_of("vgg"), confidence_of(IMPROVED)
    last = min(history_of(name)["train_accuracy"][-1] for name in BY_EXERCISE)
    yield "Is there overfitting or underfitting?", "80", last, [each[IMPROVED]["accuracy"] for each in (training, test)]
    heading = "How could it be improved?"
    yield heading, "10 15 82 100", operations("vgg"), operations(IMPROVED), history_of(IMPROVED)["seconds"].sum() / 60
    yield heading, vgg, improved[0], improved.mean()
    heading = "How does it generalise to new data?"
    yield heading, "4 10 32 60 255 1,797", pictures, digits_taken_for_cats(), changed("noise", 10)[IMPROVED]
    best, worst = new[IMPROVED, "all"], new["dense", "all"]
    yield heading, *(best[column] - worst[column] for column in ("accuracy", "test_accuracy"))
    yield heading, *(new[IMPROVED, "dog"][column] for column in ("accuracy", "test_accuracy"))
    yield heading, test[IMPROVED]["accuracy"], costs_of_robustness
    yield "What is different from the dense model?", "3,072", cnn2 - dense
    yield "Is it invariant to translation and rotation?", "10 30", kept("shift", 8), kept("rotation", 30)

    # experiments/README.md
    yield "Experiments", "6 9 10 15 16 20 33 60 80 90 93 255", deviations, softmax_costs, minutes
    yield "Experiments", of_seeds("cnn2", "minutes")[0], robust_minutes, costs_of_robustness, speedups
    heading, epochs = "How much does the seed decide?", of_seeds("dense", "best_epoch")
    yield heading, "40", min(epochs), max(epochs), [best_minus_last(run).mean() for run in SMALL]
    gaps = np.concatenate([of_seeds(run, "validation_accuracy") - of_seeds(run) for run in BY_EXERCISE])
    chance = np.sqrt(cnn2 * (1 - cnn2) * sum(1 / split["cnn2"]["samples"] for split in (validation, test)))
    yield heading, sum(gaps > 0), len(gaps), chance, cnn2, effect_of_seeds(LONGER, IMPROVED)
    heading = "What does softmax applied twice cost?"
    yield heading, "2.40 2.46 1.46 40 60 80 100", softmax_costs, of_seeds("softmax_twice")
    for run in ("cnn2", "softmax_twice"):
        curves = np.array([runs.read_history(folder)["validation_accuracy"] for folder in folders_of(run)])
        yield heading, curves[0, 17], np.delete(curves[:, -1], 1).mean()  # without seed 1
    losses = [row["validation_loss"] for row in rows_of(OUTS / "softmax_twice" / TRUE_LOSS)]
    yield heading, min(losses), np.argmin(losses) + 1, losses[-1]
    yield "What makes `vgg` better than `cnn2`?", "20", max(history_of("vgg")["validation_accuracy"][:20])
    yield "Is 1e-4 fair to `dense`?", "20"
    heading = "What does each part of the improved recipe bring?"
    every = ablation.VARIANTS["without_skipping_easy_images"].recipe
    yield heading, "6 10 12 20 28 60 82 100", 1 - pflop(1, VARIANTS[IMPROVED].recipe) / pflop(1, every)
    yield heading, [metrics_of(name)["multiply_adds"] / 1e6 for name in ("vgg", IMPROVED)]
    yield heading, lost_by_noise("ablation", "vgg_by_this_recipe"), lost_by_noise("vgg_apart", "dropout")
    yield "How was the improved recipe found?", "0.36 94 96 320 50,000"
    yield "What makes a network robust?", "10 20 28 30 35 40 50 80 90", costs_of_robustness, longer.mean()
    yield "What do new photographs say?", "4", pictures, [new[name, "all"]["accuracy"] for name in NETWORKS]
    heading = "Which test images mislead?"
    yield heading, "41", len(twins), len(contested), len(rows_of(EXPERIMENTS / "doubted_labels.csv"))
    right = {name: evaluate.right_predictions(RESULTS / name) for name in NETWORKS}
    yield heading, max(each.mean() - np.delete(each, twins).mean() for each in right.values())
    yield heading, sum(~right[IMPROVED][contested])
    heading = "How fast is the training, and why?"
    yield heading, f"20 32 128 512 1,024 {gpu['machine']['torch'][:4]}", speedups, [*gpu[IMPROVED].values()][2:]
    yield heading, *map(step_times, gpu["steps"].values())
    yield "Does bf16 cost accuracy?", "16 20 32"


def operations(run):
    """The computation of a training run, in PFLOP."""
    metrics = runs.read_metrics(folders_of(run)[0])
    return pflop(metrics["multiply_adds"], runs.recipe_of(metrics["settings"]))


def kept(kind, amount):
    """The share of its accuracy above chance level that each network keeps on corrupted images."""
    before, after = changed(kind, 0), changed(kind, amount)
    return [(after[name] - 0.1) / (before[name] - 0.1) for name in NETWORKS]


def lost_by_noise(experiment, variant):
    rows = rows_of(OUTS / experiment / RUNS, variant=variant)
    return mean(row["validation_accuracy"] - row["with_noise"] for row in rows)


def occlusion(name):
    """How much the label's probability drops when a square covers part of the image, for six images: [6, 7, 7]."""
    return runs.read_arrays(RESULTS / name / runs.INSIDE, "occlusion")[0]


def likeness_to_start(name):
    """For each weight matrix of a committed checkpoint, its correlation with the initial one, rebuilt from the seed."""
    trained, checkpoint = models.load_model(RESULTS / name / runs.BEST)
    torch.manual_seed(checkpoint.recipe.seed)
    pairs = zip(models.build(checkpoint.model).parameters(), trained.parameters())
    vectors = [[each.detach().flatten() for each in pair] for pair in pairs if pair[0].ndim > 1]
    return [torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in vectors]


def digits_taken_for_cats():
    """The share of scikit-learn's digits that cnn2 classifies as cats."""
    model, checkpoint = models.load_model(RESULTS / "cnn2" / runs.BEST)
    splits = data.load_splits("digits", None).values()
    predicted = np.concatenate([evaluate.infer(model, split).probabilities().argmax(axis=1) for split in splits])
    return (predicted == checkpoint.classes.index("cat")).mean()


def mistakes_by_kind():
    """The share of cnn2's mistakes that stay among animals or among vehicles, what it would be if mistakes were spread
    evenly over the other classes, and how many of the most confident ones confuse two vehicles."""
    test = metrics_of("cnn2")["test"]
    vehicle = np.isin([*test["per_class"]], ("airplane", "automobile", "ship", "truck"))
    same = vehicle[:, None] == vehicle
    wrong = np.array(test["confusion_matrix"]) * ~np.eye(10, dtype=bool)
    evenly = wrong.sum(axis=1) @ (same.sum(axis=1) - 1) / 9
    labels, probabilities = runs.read_arrays(RESULTS / "cnn2" / runs.MISTAKES, "labels", "probabilities")
    two_vehicles = vehicle[labels] & vehicle[probabilities.argmax(axis=1)]
    return wrong[same].sum() / wrong.sum(), evenly / wrong.sum(), two_vehicles.sum()


# The check.

# Doesn't match anything in cnn2, CIFAR-10, 1e-4, 3x3 or 16-bit.
NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z]-)(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w|-[A-Za-z])")
UNIT = re.compile(
    rf"(?:(?:, | and | or | to |–){NUMBER.pattern})*(?: ?%| points?| epochs?| minutes?)"
)  # may follow a list of numbers
NO_PROSE = re.compile(r"`[^`]*`|\]\([^)]*\)|\$+[^$]*\$+|</?\w[^>]*>|\b(?:19|20)\d\d\b|arXiv:[\d.]+|95% interval")
FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
MARKED = re.compile(r"(?P<start><!-- table: (?P<name>\w+) -->\n)(?P<rows>.*?)(?P<end><!-- end of table -->)", re.DOTALL)


def main(argv=None):
    parser = command.Parser(description="Rewrite the tables of the three texts, or check the numbers in the texts.")
    parser.add_argument("--check", action="store_true", help="print disagreements with the committed files instead")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="folder with CIFAR-10 (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    if not arguments.check:
        for path in TEXTS:
            runs.write_atomically(path, with_tables(path.read_text(encoding="utf-8")).encode())
        return 0
    problems = [*check_texts(), *check_runs(arguments.data_dir)]
    print("".join(f"{problem}\n" for problem in problems), end="")
    return 1 if problems else 0


def with_tables(text):
    """The text with each table, between the markers `table: NAME` and `end of table`, rewritten."""

    def rewritten(match):
        return match["start"] + TABLES[match["name"]]() + match["end"] if match["name"] in TABLES else match[0]

    return MARKED.sub(rewritten, text)


def check_texts():
    """Yield a line for each disagreement between the texts and the committed files."""
    known = collections.defaultdict(list)
    for heading, *numbers in sources():
        known[heading] += numbers
    headings = set()
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        headings |= {heading for heading, _ in sections(text)}
        yield from (f"{os.path.relpath(path)}: {problem}" for problem in check_text(path, text, known))
    yield from (f"sources for {heading!r}, but no such section" for heading in known if heading not in headings)


def check_text(path, text, known):
    for match in MARKED.finditer(text):
        if match["name"] not in TABLES or with_tables(match[0]) != match[0]:
            yield f"the table {match['name']} doesn't match the committed files"
    for heading, section in sections(text):
        if heading != "References":
            yield from (f"{heading}: {number}" for number in stale_numbers(section, known.get(heading, [])))
    yield from (f"the link {link} is dead" for link in dead_links(path, text))
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("python train.py ") and "--run-name" in line:
            arguments = train.parse_arguments(line.split()[2:])
            run, recipe = arguments.run_name, Recipe(**given_settings(arguments))
            if run in VARIANTS and recipe != VARIANTS[run].recipe:
                yield f"the command of {run} is not that of the committed run"
    if path == README and (lines := len(text.splitlines())) > LONGEST_README:
        yield f"{lines} lines, more than {LONGEST_README}"


def check_runs(data_dir):
    """Yield a line for each disagreement among the files of a run in the report. Predictions need CIFAR-10."""
    test, compared = None, {row["model"]: row["test_accuracy"] for row in rows_of(RESULTS / runs.COMPARISON)}
    if (data_dir / download.FOLDER).is_dir():
        test = data.load_splits("cifar10", data_dir, ("test",))["test"]
    else:
        print(f"CIFAR-10 is not in {data_dir}: the predictions of the checkpoints are not checked")
    for name in NETWORKS:
        metrics, (model, saved) = metrics_of(name), models.load_model(RESULTS / name / runs.BEST)
        recipe, right = runs.recipe_of(metrics["settings"]), evaluate.right_predictions(RESULTS / name)
        if recipe != VARIANTS[name].recipe:
            yield f"{name}: the recipe in {runs.METRICS} is not the one in experiments.seeds"
        if (saved.recipe, saved.epoch) != (recipe, metrics["best_epoch"]):
            yield f"{name}: {runs.BEST} and {runs.METRICS} disagree on the recipe or the epoch"
        if not np.allclose(metrics["test"]["accuracy"], [right.mean(), compared.get(name, np.nan)], atol=1e-6):
            yield f"{name}: {runs.PREDICTIONS}, {runs.METRICS} and {runs.COMPARISON} disagree on the test accuracy"
        if test and not gives_saved_predictions(model, RESULTS / name, test):
            yield f"{name}: {runs.BEST} doesn't give the predictions in {runs.PREDICTIONS}"


def gives_saved_predictions(model, folder, test, count=1000):
    """Whether a network gives the saved predictions for the first test images, up to another machine's rounding."""
    labels, probabilities = runs.read_arrays(folder / runs.PREDICTIONS, "labels", "probabilities")
    predicted = evaluate.infer(model, data.Split(*(part[:count] for part in test))).probabilities()
    return np.array_equal(labels, test.labels) and np.allclose(predicted, probabilities[:count], rtol=0, atol=1e-4)


def sections(text):
    """Pairs of a heading and the text below it, without code blocks."""
    parts = re.split(r"^#+ (.+)$", FENCED.sub("", text), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2]))


def stale_numbers(section, values):
    """Yield the numbers in the sentences of a section that are neither in its tables nor among the values, with the
    words around them. Whole numbers below ten count only with a unit or after "epoch"."""
    tables = " ".join(match["rows"] for match in MARKED.finditer(section))
    values = [*values, " ".join(NUMBER.findall(tables))]
    prose = " ".join(NO_PROSE.sub(" ", MARKED.sub("", section)).split())
    for match in NUMBER.finditer(prose):
        before, after = prose[: match.start()], prose[match.end() :]
        counts = len(match[0]) > 1 or UNIT.match(after) or before.endswith(("epoch ", "epochs "))
        if counts and not any(agrees(match[0], value) for value in values):
            yield f"{match[0]} in '{before[-40:]}{match[0]}{after[:20]}'"


def agrees(number, value):
    """Whether a printed number is among the words of a string, or is one of the values, rounded, perhaps in percent."""
    if isinstance(value, str):
        return number in value.split()
    decimals = len(number.partition(".")[2])
    printed = {f"{scale * abs(each):.{decimals}f}" for each in np.ravel(value) for scale in (1, 100)}
    return number.replace(",", "") in printed


def dead_links(path, text):
    for link in re.findall(r"(?:\]\(|src=\")([^)\s\"]+)", FENCED.sub("", text)):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        target = target / "README.md" if target.is_dir() and anchor else target
        if not link.startswith("http") and not (target.exists() and (not anchor or anchor in anchors(target))):
            yield link


def anchors(path):
    """The anchors that GitHub gives the headings of a Markdown file; the second with the same name ends in -1."""
    counts = collections.Counter()
    for heading, _ in sections(path.read_text(encoding="utf-8")):
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        yield f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor
        counts[anchor] += 1


if __name__ == "__main__":
    sys.exit(command.run_command(main))
