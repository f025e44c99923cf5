"""The pictures of experiments, drawn from saved files.

Usage:

    python -m experiments.pictures          redraw all pictures of experiments under outs/
"""

import command

if __name__ == "__main__":
    command.start()

import sys
from pathlib import Path

import numpy as np

import plots
import runs
from experiments import CURVES, EFFECTS, EXAMPLES, NEW_ACCURACY, SEEDS

SOFTMAX_TWICE_FLOOR = np.log(1 + 9 / np.e)  # the cross-entropy of a perfect prediction, with ten classes
TRUE_LOSS_CURVE, OWN_LOSS_CURVE = "softmax twice, true cross-entropy", "softmax twice, its own loss"
SEED_REACH = 2.5  # percentage points from the mean; a seed further away is marked at the edge


def main(argv=None):
    plots.redraw(
        "Redraw the pictures of experiments under a folder from saved files.",
        argv,
        Path("outs"),
        {
            EXAMPLES: draw_examples,
            CURVES: draw_curves,
            SEEDS: draw_seeds,
            EFFECTS: draw_effects,
            NEW_ACCURACY: draw_new_photographs,
        },
    )


@plots.drawn_from(EXAMPLES)
def draw_examples(folder):
    """plot_dataset_example.png: a row of training images for each class."""
    images, classes = runs.read_arrays(folder / EXAMPLES, "images", "classes")
    picture = plots.mosaic(images, 255)
    side = len(picture) / len(classes)
    figure, axes = plots.subplots(8, 7)
    plots.show_rows(axes, picture, np.arange(len(classes)) * side + side / 2, classes)
    axes.set_title(f"The {len(classes)} classes, {images.shape[1]} training images each")
    return figure


@plots.drawn_from(CURVES)
def draw_curves(folder):
    """curves.png: validation loss and accuracy by epoch, all runs on the same axes."""
    names = ("epoch", "validation_loss", "validation_accuracy")
    curves = plots.grouped(runs.read_rows(folder / CURVES, "curve", numbers=names), "curve")
    figure, (left, right) = plots.subplots(9, 4.6, 1, 2)
    styles = plots.run_styles(name for name in curves if name not in (TRUE_LOSS_CURVE, OWN_LOSS_CURVE))
    for name, rows in curves.items():
        epochs, losses, accuracies = plots.arrays(rows, *names)
        if name in styles:
            spacing = {"linestyle": "-", "markevery": max(1, len(epochs) // 8), "markersize": 5}
            style = styles[name] | spacing
        else:
            style = {"linestyle": "--" if name == TRUE_LOSS_CURVE else ":", "color": "0.45"}
        left.plot(epochs, losses, label=name, linewidth=1.4, **style)
        if name != OWN_LOSS_CURVE:  # its accuracy is that of the other curve
            right.plot(epochs, accuracies, linewidth=1.4, **style)
    left.axhline(SOFTMAX_TWICE_FLOOR, color="0.7", linewidth=1)
    floor = f"floor of the loss\nwith softmax twice: {SOFTMAX_TWICE_FLOOR:.2f}"
    place = {"xycoords": ("axes fraction", "data"), "xytext": (0, -3), "textcoords": "offset points"}
    left.annotate(floor, (0.98, SOFTMAX_TWICE_FLOOR), **place, ha="right", va="top", fontsize=8, color="0.3")
    left.set(xlabel="epoch", ylabel="validation loss", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="validation accuracy")
    right.yaxis.set_major_formatter(plots.PERCENT)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    plots.add_legend(figure, size=plots.SMALL)
    return figure


@plots.drawn_from(EFFECTS)
def draw_effects(folder):
    """effects.png: the differences in validation accuracy between variants and their baselines, with 95% intervals."""
    names = ("difference", "low", "high")
    rows = runs.read_rows(folder / EFFECTS, "variant", "baseline", numbers=("seeds", *names))
    difference, low, high = (100 * values for values in plots.arrays(rows, *names))
    positions = np.arange(len(rows))
    figure, axes = plots.subplots(8, 1 + 0.4 * len(rows))
    axes.axvline(0, color="black", linewidth=1)
    chance = (low < 0) & (high > 0)
    for title, chosen, colour, fill in (
        ("interval excludes 0", ~chance, plots.BLUE, "full"),
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
    plots.add_legend(figure)
    return figure


@plots.drawn_from(SEEDS)
def draw_seeds(folder):
    """seeds.png: each seed's test accuracy, best epoch, and gap between validation and test accuracy, seed 0 marked."""
    names = ("seed", "best_epoch", "validation_accuracy", "test_accuracy")
    by_run = plots.grouped(runs.read_rows(folder / SEEDS, "run", numbers=names), "run")
    by_run = {run: plots.arrays(rows, *names) for run, rows in by_run.items() if len(rows) > 1}
    if not by_run:
        return None  # a single seed has no spread
    titles = ("test accuracy minus\nits mean, in points", "best epoch", "validation minus test\naccuracy, in points")
    figure, panels = plots.subplots(9, 1.6 + 0.5 * len(by_run), 1, 3, sharey=True)
    labels = []
    for position, (run, (seeds, epochs, validation, test)) in enumerate(by_run.items()):
        test = 100 * test
        deviations = test - test.mean()
        for axes, values in zip(panels, (deviations, epochs, 100 * validation - test)):
            spread = {"xerr": values.std(ddof=1), "fmt": "|", "color": "0.45", "capsize": 4, "ms": 16}
            axes.errorbar(values.mean(), position, **spread, label="mean, standard deviation")
            axes.plot(values, np.full(len(values), position), "o", color=plots.BLUE, label="a seed")
            style = {"color": plots.ORANGE, "fillstyle": "none", "markersize": 10, "label": "seed 0"}
            axes.plot(values[seeds == 0], [position] * sum(seeds == 0), "s", **style)
        for value in deviations[abs(deviations) > SEED_REACH]:  # a longer axis would squeeze the others into one dot
            edge = np.copysign(0.92 * SEED_REACH, value)
            panels[0].plot(edge, position, "<" if edge < 0 else ">", color=plots.BLUE)
            text = f"{value:+.1f}".replace("-", "−")
            style = {"ha": "left" if edge < 0 else "right", "fontsize": 8}
            panels[0].annotate(text, (edge, position), (0, 7), textcoords="offset points", **style)
        labels.append(f"{run}, {len(test)} seeds\n{test.mean():.1f} ± {test.std(ddof=1):.1f}%")
    panels[0].set_xlim(-SEED_REACH, SEED_REACH)
    panels[0].set_yticks(range(len(by_run)), labels)
    panels[0].set_ylim(len(by_run) - 0.4, -0.6)
    for axes, title in zip(panels, titles):
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
    plots.add_legend(figure, size=plots.SMALL)
    return figure


@plots.drawn_from(NEW_ACCURACY)
def draw_new_photographs(folder):
    """accuracy.png: accuracy of the networks on new photographs and on the test split, for two of them by class."""
    names = ("accuracy", "low", "high", "test_accuracy")
    rows = runs.read_rows(folder / NEW_ACCURACY, "model", "class", numbers=names)
    total = sorted((row for row in rows if row["class"] == "all"), key=lambda row: row["test_accuracy"])
    figure, panels = plots.subplots(9, 4.8, 1, 3, sharex=True, width_ratios=[1, 1, 1])
    shown = [(None, total, "model"), *((total[index]["model"], rows, "class") for index in ((len(total) - 1) // 2, -1))]
    for axes, (model, lines, what) in zip(panels, shown):
        lines = [row for row in lines if model is None or (row["model"] == model and row["class"] != "all")]
        lines.sort(key=lambda row: row["accuracy"])
        new, low, high, test = plots.arrays(lines, *names)
        positions = np.arange(len(lines))
        axes.hlines(positions, new, test, color="0.75", linewidth=1)
        axes.plot(test, positions, "s", color=plots.BLUE, fillstyle="none", label="test split")
        style = {"fmt": "o", "color": plots.ORANGE, "markersize": 5, "capsize": 3}
        axes.errorbar(new, positions, xerr=[new - low, high - new], label="new photographs, with 95% interval", **style)
        axes.set_yticks(positions, [row[what] for row in lines])
        axes.set_title("all classes" if model is None else model, fontsize=11)
        axes.xaxis.set_major_formatter(plots.PERCENT)
        axes.set_xlim(0, 1)
        axes.grid(alpha=0.3)
    panels[1].set_xlabel("accuracy")
    plots.add_legend(figure)
    return figure


if __name__ == "__main__":
    sys.exit(command.run_command(main))
