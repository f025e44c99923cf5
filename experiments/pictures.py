"""The pictures of experiments, each drawn from saved files: `python -m experiments.pictures` draws them anew.

Usage:

    python -m experiments.pictures          all under outs/
"""

import command

if __name__ == "__main__":
    command.start()


import itertools
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import runs
from experiments import CURVES, EFFECTS, EXAMPLES, SEEDS
from plots import BLUE, LINE_STYLES, ORANGE, mosaic, redraw, save

SOFTMAX_TWICE_FLOOR = np.log(1 + 9 / np.e)  # the cross-entropy of a perfect prediction among ten classes
TRUE_LOSS_CURVE, OWN_LOSS_CURVE = "softmax twice, true cross-entropy", "softmax twice, its own loss"
SEED_REACH = 2.5  # points from the mean, beyond which a seed's accuracy is marked at the edge


def main(argv=None):
    redraw(
        "Redraw the pictures of experiments under a folder from its files.",
        argv,
        Path("outs"),
        {EXAMPLES: draw_examples, CURVES: draw_curves, SEEDS: draw_seeds, EFFECTS: draw_effects},
    )


def draw_examples(out_dir):
    """plot_dataset_example.png: a row of training images for every class."""
    images, classes = runs.read_arrays(Path(out_dir) / EXAMPLES, "images", "classes")
    picture = mosaic(images, 255)
    side = len(picture) / len(classes)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture, interpolation="nearest")
    axes.set_yticks(np.arange(len(classes)) * side + side / 2, classes)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"The {len(classes)} classes, {images.shape[1]} training images each")
    save(figure, (Path(out_dir) / EXAMPLES).with_suffix(".png"))


def draw_curves(out_dir):
    """curves.png: validation loss and accuracy of all runs by epoch, on common axes."""
    curves = {}
    names = ("epoch", "validation_loss", "validation_accuracy")
    for row in runs.read_rows(Path(out_dir) / CURVES, "curve", numbers=names):
        values = [row[name] for name in names]
        curves.setdefault(row["curve"], []).append(values)
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {TRUE_LOSS_CURVE: ("--", "0.45"), OWN_LOSS_CURVE: (":", "0.45")}
    networks = itertools.cycle((line[0], colour) for line, colour in LINE_STYLES[::-1])
    for name, values in curves.items():
        epochs, losses, accuracies = np.array(values).T
        if name in styles:
            line, colour = styles[name]
            marker = {}
        else:
            (symbol, colour), line = next(networks), "-"
            marker = {"marker": symbol, "markevery": max(1, len(epochs) // 8), "markersize": 5}
        left.plot(epochs, losses, line, color=colour, label=name, linewidth=1.4, **marker)
        if name != OWN_LOSS_CURVE:  # whose accuracy is the other's
            right.plot(epochs, accuracies, line, color=colour, linewidth=1.4, **marker)
    left.axhline(SOFTMAX_TWICE_FLOOR, color="0.7", linewidth=1)
    left.annotate(
        f"floor of the loss\nwith softmax twice: {SOFTMAX_TWICE_FLOOR:.2f}",
        (0.98, SOFTMAX_TWICE_FLOOR),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color="0.3",
    )
    left.set(xlabel="epoch", ylabel="validation loss", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="validation accuracy")
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    save(figure, (Path(out_dir) / CURVES).with_suffix(".png"))


def draw_effects(out_dir):
    """effects.png: how the validation accuracy of an experiment's rows differs from another's, with intervals."""
    names = ("difference", "low", "high")
    rows = runs.read_rows(Path(out_dir) / EFFECTS, "variant", "baseline", numbers=("seeds", *names))
    difference, low, high = (np.array([100 * row[name] for row in rows]) for name in names)
    positions = np.arange(len(rows))
    figure = Figure(figsize=(8, 1 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=1)
    chance = (low < 0) & (high > 0)
    for title, chosen, colour, fill in (
        ("interval excludes 0", ~chance, BLUE, "full"),
        ("interval includes 0", chance, "0.45", "none"),
    ):
        margins = [(difference - low)[chosen], (high - difference)[chosen]]
        style = {"fmt": "o", "color": colour, "fillstyle": fill, "capsize": 3, "label": title}
        if chosen.any():
            axes.errorbar(difference[chosen], positions[chosen], xerr=margins, **style)
    baselines = {row["baseline"] for row in rows}
    only = baselines.pop() if len(baselines) == 1 else None
    labels = [row["variant"] if only else f"{row['baseline']} → {row['variant']}" for row in rows]
    axes.set_yticks(positions, [label.replace("_", " ") for label in labels])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    seeds = [f"{row['seeds']:g} seed{'s' if row['seeds'] > 1 else ''}" for row in rows]
    axes.secondary_yaxis("right").set_yticks(positions, seeds)
    than = f"minus that of '{only.replace('_', ' ')}'" if only else "minus that on the left of the arrow"
    axes.set(xlabel=f"validation accuracy {than},\nin percentage points, with 95% interval over seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    save(figure, (Path(out_dir) / EFFECTS).with_suffix(".png"))


def draw_seeds(out_dir):
    """seeds.png: test accuracy, best epoch and gap between validation and test of each seed, seed 0 marked."""
    by_run = {}
    names = ("seed", "best_epoch", "validation_accuracy", "test_accuracy")
    for row in runs.read_rows(Path(out_dir) / SEEDS, "run", numbers=names):
        seed, epoch, validation, test = (row[name] for name in names)
        by_run.setdefault(row["run"], []).append((seed, 100 * test, epoch, 100 * (validation - test)))
    by_run = {name: np.array(values) for name, values in by_run.items() if len(values) > 1}
    titles = ("test accuracy minus\nits mean, in points", "best epoch", "validation minus test\naccuracy, in points")
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(by_run)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for position, of_run in enumerate(by_run.values()):
        seeds, of_run = of_run[:, 0], of_run[:, 1:] - [of_run[:, 1].mean(), 0, 0]
        for axes, values in zip(panels, of_run.T):
            spread = {"xerr": values.std(ddof=1), "fmt": "|", "color": "0.45", "capsize": 4, "ms": 16}
            axes.errorbar(values.mean(), position, **spread, label="mean, standard deviation")
            axes.plot(values, np.full(len(values), position), "o", color=BLUE, label="a seed")
            style = {"color": ORANGE, "fillstyle": "none", "markersize": 10, "label": "seed 0"}
            axes.plot(values[seeds == 0], [position] * sum(seeds == 0), "s", **style)
        for value in of_run[:, 0]:
            if abs(value) > SEED_REACH:  # the others would be one dot if the axis went so far
                edge = np.copysign(0.92 * SEED_REACH, value)
                panels[0].plot(edge, position, "<" if edge < 0 else ">", color=BLUE)
                text = f"{value:+.1f}".replace("-", "−")
                style = {"ha": "left" if edge < 0 else "right", "fontsize": 8}
                panels[0].annotate(text, (edge, position), (0, 7), textcoords="offset points", **style)
    panels[0].set_xlim(-SEED_REACH, SEED_REACH)
    tests = {name: of_run[:, 1] for name, of_run in by_run.items()}
    labels = [f"{name}, {len(each)} seeds\n{each.mean():.1f} ± {each.std(ddof=1):.1f}%" for name, each in tests.items()]
    panels[0].set_yticks(range(len(by_run)), labels)
    panels[0].set_ylim(len(by_run) - 0.4, -0.6)
    for axes, title in zip(panels, titles):
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    legend = dict(zip(labels, handles))
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=3, fontsize="small", frameon=False)
    save(figure, (Path(out_dir) / SEEDS).with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(command.run_command(main))
