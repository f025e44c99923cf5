"""Every picture of the project, each drawn from files of a run folder, so that it can be redrawn without training.

Usage:

    python plots.py outs/exercise_04        redraw all pictures of all runs under a folder
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out
    import command

    command.start()


import io
import itertools
import warnings

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, PercentFormatter
from PIL import Image

import command
import corruptions
import runs
from metrics import metric_rows, metric_summary

matplotlib.rcdefaults()  # the same pictures whatever a matplotlibrc says
matplotlib.rcParams["text.parse_math"] = False  # dollar signs in a name are dollar signs

VANISHED = 0.1  # a kernel's share of its first norm, below which it counts for nothing
FEW = 50  # the reliability diagram shows no accuracy of fewer images than this
# Okabe & Ito's colours, told apart by the colour-blind; dashes and markers tell them apart in grey.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
LINE_STYLES = list(zip(("o-", "s--", "^-.", "D:", "v-"), (BLUE, ORANGE, GREEN, PURPLE, "black")))


class PlotError(command.UserError):
    """Files that nothing can be drawn from."""


def main(argv=None):
    redraw(
        "Redraw the pictures of all runs and comparisons under a folder from its files.",
        argv,
        runs.DEFAULT_OUT_DIR["cifar10"],
        {
            runs.METRICS: draw_run,
            runs.COMPARISON: draw_comparison,
            runs.CALIBRATIONS: draw_calibrations,
            runs.RECALL: draw_recall,
            runs.ROBUSTNESS: draw_robustness,
            runs.CORRUPTED: draw_corrupted,
        },
    )


def redraw(description, argv, folder, drawers):
    """The command that draws pictures anew: `drawers`, a dict from a file's name to the function that draws from it,
    are called with each folder below the given one that holds such a file."""
    parser = command.Parser(description=description)
    parser.add_argument("folder", type=Path, nargs="?", default=folder, help="(default: %(default)s)")
    folder = parser.parse_args(argv).folder
    drawn = []
    for name, draw in drawers.items():
        for path in sorted(folder.rglob(name)):
            draw(path.parent)
            drawn.append(command.printable(path))
    if not drawn:
        raise PlotError(f"there are no results under {folder}")
    print("Redrawn what belongs to " + ", ".join(drawn))


def draw_run(folder):
    """Draw every picture of a run folder from its metrics.json and, where there are any, the files beside it."""
    folder = Path(folder)
    metrics = runs.read_metrics(folder)
    if (folder / runs.HISTORY).exists():
        draw_loss(folder, metrics)
    for split in runs.SPLITS:
        draw_confusion_matrix(folder, metrics, split)
        draw_metric_table(folder, metrics, split)
    draw_calibration(folder, metrics)
    for name, title in (
        (runs.MISTAKES, "the {} mistakes made with the highest probability"),
        (runs.RANDOM, "{} predictions at random, mistakes in bold"),
    ):
        if (folder / name).exists():
            draw_predictions(folder, name, title)
    for name, draw in ((runs.FILTERS, draw_filters), (runs.INSIDE, draw_inside)):
        if (folder / name).exists():
            draw(folder)


def save(figure, path):
    """Write a figure as PNG, the same file for the same picture. Figure.savefig would lay it out and draw it twice."""
    figure.set_dpi(150)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of a name in another script: a box will do
        canvas.draw()
    picture = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(picture, format="png")
    runs.write_atomically(path, picture.getvalue())


def write(axes, x, y, text, **style):
    """Centred text within the axes, which need not be measured for the layout: that would take most of its time."""
    axes.text(x, y, text, ha="center", **style).set_in_layout(False)


def run_title(folder):
    return command.printable(folder.resolve().name)


def draw_loss(folder, metrics):
    """loss_plot.png: loss and accuracy by epoch, the best epoch and the lowest validation loss marked."""
    history = runs.read_history(folder)
    epochs = history["epoch"]
    best = metrics["best_epoch"] - 1
    if best >= len(epochs):  # what a run that was killed in between leaves
        raise PlotError(f"{folder / runs.HISTORY} ends before epoch {best + 1}: go on with the run by --resume")
    lowest = history["validation_loss"].argmin()
    settings = metrics["settings"]
    kinds = [kind for name, kind in (("augment", "augmented"), ("skip_easy", "mostly hard")) if settings.get(name)]
    training = f"training ({', '.join(kinds)})" if kinds else "training"
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        axes.plot(epochs, history[f"train_{quantity}"], "--", color=BLUE, label=training)
        validation = history[f"validation_{quantity}"]
        axes.plot(epochs, validation, "-", color=ORANGE, label="validation")
        axes.axvline(epochs[lowest], color="black", linestyle=":", linewidth=1)
        label = f"lowest validation loss: epoch {epochs[lowest]:.0f}"
        axes.plot(epochs[lowest], validation[lowest], "v:", color="black", linewidth=1, label=label)
        axes.plot(
            epochs[best],
            validation[best],
            "o",
            color="black",
            fillstyle="none",
            markersize=9,
            label=f"best epoch, by validation accuracy: {epochs[best]:.0f}",
        )
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.set_xlim(1 - 0.02 * len(epochs), len(epochs) + 0.02 * len(epochs))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
    figure.axes[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.suptitle(f"{run_title(folder)}: training and validation by epoch")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize="small",
        frameon=False,
    )
    save(figure, folder / runs.LOSS_PLOT)


def draw_confusion_matrix(folder, metrics, split):
    """confusion_matrix_<split>.png: counts, and under each its share of the row, which also gives the mistakes' shade.

    The shades end at the most frequent mistake: on a scale with the diagonal, a good network's would all be white.
    """
    counts = np.array(metrics[split]["confusion_matrix"])
    classes = list(metrics[split]["per_class"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mistakes = np.ma.masked_array(shares, np.eye(len(counts), dtype=bool))
    figure = Figure(figsize=(7.5, 6.6), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.88")  # of the diagonal
    image = axes.imshow(mistakes, cmap="Blues", vmin=0, vmax=max(mistakes.max(), 0.001))
    for row, column in np.ndindex(*counts.shape):
        count, share = counts[row, column], shares[row, column]
        text = f"{count:,}\n{share:.1%}" if count else "0"
        dark = row != column and share > 0.6 * mistakes.max()
        weight = "bold" if row == column else "normal"
        write(axes, column, row, text, va="center", fontsize=8, color="white" if dark else "black", weight=weight)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(
        f"{run_title(folder)}, {split}: {metrics[split]['samples']:,} images, accuracy {metrics[split]['accuracy']:.2%}"
    )
    label = "mistakes: share of the true class"
    figure.colorbar(image, ax=axes, shrink=0.8, label=label, format=PercentFormatter(1))
    save(figure, folder / runs.CONFUSION_MATRIX.format(split))


def draw_metric_table(folder, metrics, split):
    """metrics_<split>.png: the metric table as a picture, the overall figures under it."""
    values = metrics[split]
    header, *body = metric_rows(values)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    table = axes.table(
        body, colLabels=header, loc="center", cellLoc="right", colWidths=[0.22, 0.15, 0.15, 0.15, 0.17, 0.14]
    )
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    table.scale(1, 1.35)
    for (row, column), cell in table.get_celld().items():
        cell.visible_edges = "B" if row in (0, len(body) - 1) else ""
        if row in (0, len(body)):
            cell.get_text().set_fontweight("bold")
        cell.get_text().set_horizontalalignment("left" if column == 0 else "right")
    axes.set_title(f"{run_title(folder)}, epoch {metrics['best_epoch']}: {split} split", fontweight="bold")
    figure.supxlabel(metric_summary(values), fontsize=9)
    save(figure, folder / runs.METRIC_TABLE.format(split))


def draw_calibration(folder, metrics):
    """calibration.png: the test split's reliability diagram (Guo et al. 2017): accuracy by probability, and how many
    images have that probability."""
    test = metrics["test"]
    bins = [each for each in test["calibration_bins"] if each["samples"]]
    low, high, accuracy, confidence, samples = (
        np.array([each[key] for each in bins]) for key in ("low", "high", "accuracy", "confidence", "samples")
    )
    width = high - low
    accuracy[samples < FEW], confidence[samples < FEW] = np.nan, np.nan  # a share of so few says nothing
    figure = Figure(figsize=(5.5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.bar(
        low, accuracy, width, align="edge", color=SKY, edgecolor="black", linewidth=0.6, label="share that is right"
    )
    upper.bar(
        low,
        confidence - accuracy,
        width,
        accuracy,
        align="edge",
        color="none",
        edgecolor=ORANGE,
        hatch="///",
        linewidth=0.6,
        label="gap to the mean probability there",
    )
    upper.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="perfect calibration")
    upper.set(ylabel=f"accuracy, in bins of {FEW} images or more", xlim=(0, 1), ylim=(0, 1))
    upper.set_title(
        f"{run_title(folder)}, test split\nexpected calibration error {test['expected_calibration_error']:.2%}"
    )
    shares = samples / test["samples"]
    lower.bar(low, shares, width, align="edge", color="0.6", edgecolor="black", linewidth=0.6)
    for left, share, count in zip(low + width / 2, shares, samples):
        lower.annotate(f"{count:,}", (left, share), (0, 2), textcoords="offset points", ha="center", fontsize=6.5)
    lower.margins(y=0.2)
    lower.set(xlabel="probability of the predicted class", ylabel="share of images")
    for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower center", fontsize="small", frameon=False)
    save(figure, folder / runs.CALIBRATION)


def draw_predictions(folder, name, title):
    """mistakes.png, random_predictions.png: test images with the predicted class, its probability, and the label."""
    images, labels, probabilities, losses, classes = runs.read_arrays(
        folder / name, "images", "labels", "probabilities", "losses", "classes"
    )
    figure = Figure(figsize=(8, 9.8), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    # All in one picture: 25 axes would take six times as long to lay out.
    columns, down, right = 5, 46, 40  # pixels from one image to the next, its caption above it
    picture = np.full((columns * down, columns * right, 3), 255, np.uint8)
    for position, image in enumerate(images):
        bottom, left = (position // columns + 1) * down, position % columns * right + (right - 32) // 2
        picture[bottom - 32 : bottom, left : left + 32] = image.transpose(1, 2, 0)
        predicted = probabilities[position].argmax()
        wrong = predicted != labels[position]
        text = f"{classes[predicted]} {probabilities[position, predicted]:.2%}\n"
        text += f"label: {classes[labels[position]]}\nloss {losses[position]:.2f}"
        style = {"color": ORANGE, "weight": "bold"} if wrong and name == runs.RANDOM else {}
        write(axes, left + 15.5, bottom - 33.5, text, va="bottom", fontsize=8.5, **style)
    axes.imshow(picture, interpolation="nearest")
    figure.suptitle(
        f"{run_title(folder)}, test split: {title.format(len(images))}\n"
        "predicted class and its probability; the label; the loss with respect to it"
    )
    save(figure, (folder / name).with_suffix(".png"))


def draw_filters(folder):
    """filters.png: the kernels of the first convolution at the start and at the best epoch, as colour pictures."""
    start, weights = runs.read_arrays(folder / runs.FILTERS, "start", "weights")
    norms = {name: np.linalg.norm(each.reshape(len(each), -1), axis=1) for name, each in (("a", start), ("b", weights))}
    vanished = norms["b"] < VANISHED * norms["a"]
    columns = 8
    rows = -(-len(weights) // columns)
    trained = not np.array_equal(start, weights)
    panels = {"at the start": start, "at the best epoch": weights} if trained else {"not trained": start}
    figure = Figure(figsize=(8, 1.1 + 0.47 * rows), layout="constrained")
    for axes, (title, kernels) in zip(figure.subplots(1, len(panels), squeeze=False).flatten(), panels.items()):
        largest = np.maximum(np.abs(kernels).max(axis=(1, 2, 3), keepdims=True), 1e-12)
        tiles = (
            (0.5 + kernels / (2 * largest))
            .repeat(48 // kernels.shape[2], axis=2)
            .repeat(48 // kernels.shape[3], axis=3)
        )
        tiles = np.pad(tiles, [(0, -len(tiles) % columns), (0, 0), (0, 0), (0, 0)], constant_values=0.75)
        picture = mosaic(tiles.reshape(rows, columns, *tiles.shape[1:]), 0.75)  # a kernel may be all white
        axes.imshow(picture, interpolation="nearest")
        if title == "at the best epoch":
            side = len(picture) / rows
            for number in np.flatnonzero(vanished):
                x, y = (number % columns + 0.5) * side, (number // columns + 0.5) * side
                write(axes, x, y, "×", va="center", fontsize=20, color="black")
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    change = ""
    if trained:
        change = (
            f"\nThe norm of the layer is {np.linalg.norm(weights) / np.linalg.norm(start):.2f} times that at the start"
        )
        change += f"; {vanished.sum()} kernels have shrunk below {VANISHED:.0%} of theirs (×)" if vanished.any() else ""
    figure.suptitle(
        f"{run_title(folder)}: the {len(weights)} kernels of the first convolution, each scaled by itself{change}",
        fontsize=10,
    )
    save(figure, (folder / runs.FILTERS).with_suffix(".png"))


def draw_inside(folder):
    """inside.png: what becomes of six test images in the network, a row for each; evaluate.look_inside says what."""
    names = ("images", "labels", "probabilities", "occlusion", "classes")
    images, labels, probabilities, occlusion, classes = runs.read_arrays(folder / runs.INSIDE, *names)
    blocks = runs.read_blocks(folder / runs.INSIDE)
    cell, gap, caption = 96, 14, 22  # pixels
    left = [number * (cell + gap) for number in range(len(blocks) + 3)]
    down = cell + caption
    picture = np.full((len(images) * down, left[-1] + 2 * cell, 3), 1.0)
    figure = Figure(figsize=(9, 9 * picture.shape[0] / picture.shape[1] + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")

    def put(values, row, column):
        """A picture [height, width] or [height, width, 3], of 0 to 1, enlarged to a cell."""
        values = np.broadcast_to(values[..., None] if values.ndim == 2 else values, (*values.shape[:2], 3))
        index = np.arange(cell) * len(values) // cell
        top = row * down + caption
        picture[top : top + cell, left[column] : left[column] + cell] = values[index][:, index]

    for row, image in enumerate(images):
        put(image.transpose(1, 2, 0) / 255, row, 0)
        predicted = probabilities[row].argmax()
        verdict = "right" if predicted == labels[row] else "wrong"
        write(
            axes,
            left[0] + cell / 2,
            row * down + caption - 2,
            f"{classes[labels[row]]}: {verdict}",
            va="bottom",
            fontsize=9,
        )
        for column, maps in enumerate(blocks, 1):
            low, high = (edge(maps[row], axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
            scaled = np.pad(
                (maps[row] - low) / np.maximum(high - low, 1e-9), [(0, 0), (0, 1), (0, 1)], constant_values=1
            )
            put(np.block([[scaled[0], scaled[1]], [scaled[2], scaled[3]]]), row, column)
        largest = max(np.abs(occlusion[row]).max(), 0.01)
        put(matplotlib.colormaps["PuOr"](0.5 - occlusion[row] / (2 * largest))[..., :3], row, len(blocks) + 1)
        place = left[-2] + cell / 2, row * down + caption - 2
        change = f"{-100 * occlusion[row].max():+.0f} to {-100 * occlusion[row].min():+.0f} points".replace("-", "−")
        write(axes, *place, change, va="bottom", fontsize=9)
        top, height = row * down + caption, cell / len(classes)
        centres = top + height * (np.arange(len(classes)) + 0.5)
        colours = [ORANGE if number == labels[row] else "0.6" for number in range(len(classes))]
        start = left[-1] + 0.75 * cell
        axes.barh(centres, probabilities[row] * cell, 0.8 * height, start, color=colours)
        for number, (centre, label) in enumerate(zip(centres, classes)):
            axes.text(start - 4, centre, label, ha="right", va="center", fontsize=6.5).set_in_layout(False)
            if number in (predicted, labels[row]):
                share = probabilities[row, number]
                end = start + share * cell + 4
                axes.text(end, centre, f"{share:.0%}", va="center", fontsize=6.5).set_in_layout(False)
    axes.imshow(picture, interpolation="nearest")
    titles = ["image", *(f"block {number}" for number in range(1, len(blocks) + 1)), "occlusion", "probabilities"]
    for title, x in zip(titles, left):
        shift = cell if title == "probabilities" else cell / 2
        write(axes, x + shift, -4, title, va="bottom", fontsize=10, weight="bold")
    axes.set_ylim(len(picture), -30)
    figure.suptitle(
        f"{run_title(folder)}: the first three test images that are recognised, and the first three that aren't\n"
        "occlusion: how a grey square there changes the label's probability, orange down, violet up; orange bar: label",
        fontsize=10,
    )
    save(figure, (folder / runs.INSIDE).with_suffix(".png"))


def mosaic(tiles, grey):
    """Pictures [rows, columns, 3, height, width] side by side in frames of one grey, as one picture [_, _, 3]."""
    frame = max(1, tiles.shape[-1] // 16)
    tiles = np.pad(tiles, [(0, 0), (0, 0), (0, 0), (frame, frame), (frame, frame)], constant_values=grey)
    rows, columns, _, height, width = tiles.shape
    return tiles.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)


def draw_comparison(out_dir):
    """comparison.png: test accuracy with its interval, and training accuracy, against multiply-adds."""
    names = ("multiply_adds", "train_accuracy", "test_accuracy", "interval_low", "interval_high")
    rows = runs.read_rows(Path(out_dir) / runs.COMPARISON, "model", numbers=names)
    cost, train, test, low, high = (np.array([row[name] for row in rows]) for name in names)
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.vlines(cost, test, train, color="0.75", linewidth=1)
    axes.plot(cost, train, "s", color=BLUE, fillstyle="none", label="training split")
    axes.errorbar(
        cost,
        test,
        [test - low, high - test],
        fmt="o",
        color=ORANGE,
        markersize=5,
        capsize=4,
        label="test split (labelled), with 95% interval",
    )
    for row, x, y in zip(rows, cost, test):
        axes.annotate(f"{row['model']} {y:.1%}", (x, y), (9, 0), textcoords="offset points", va="center")
    axes.set(
        xscale="log",
        xlabel="multiply-adds for one image, log scale",
        ylabel="accuracy at the best epoch",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(places=0))
    axes.set_xlim(cost.min() / 1.7, 4.9 * cost.max())  # room for the last name
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    save(figure, (Path(out_dir) / runs.COMPARISON).with_suffix(".png"))


def draw_recall(out_dir):
    """recall.png: the share of each class's test images that each model recognises."""
    by_model = {}
    for row in runs.read_rows(Path(out_dir) / runs.RECALL, "model", "class", numbers=["recall"]):
        by_model.setdefault(row["model"], {})[row["class"]] = row["recall"]
    best = list(by_model.values())[-1]
    if any(recalls.keys() != best.keys() for recalls in by_model.values()):
        raise runs.ResultsError(f"{Path(out_dir) / runs.RECALL} is damaged")
    classes = sorted(best, key=best.get)
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(classes)), layout="constrained")
    axes = figure.subplots()
    for (model, recalls), (line, colour) in zip(by_model.items(), itertools.cycle(LINE_STYLES[::-1])):
        values = [recalls[label] for label in classes]
        axes.plot(values, range(len(classes)), line[0], color=colour, markersize=7, label=model)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="recall on the test split", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(by_model), frameon=False)
    save(figure, (Path(out_dir) / runs.RECALL).with_suffix(".png"))


def draw_panels(path, panels, draw, across, up, height):
    """A picture of one panel for each entry of `panels`, three in a row, and one legend for all: draw(axes, key, value)
    draws one of them."""
    columns, rows = 3, -(-len(panels) // 3)
    figure = Figure(figsize=(9, 0.6 + height * rows), layout="constrained")
    places = figure.subplots(rows, columns, sharex=bool(across), sharey=True, squeeze=False).flatten()
    for axes, (key, value) in zip(places, panels.items()):
        draw(axes, key, value)
        axes.grid(alpha=0.3)
    places[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in places[len(panels) :]:
        axes.axis("off")
    for axes in places[max(0, len(panels) - columns) : len(panels)]:
        axes.tick_params(labelbottom=True)  # below some of them there is no panel that would have the labels
    if across:
        figure.supxlabel(across, fontsize=11)
    figure.supylabel(up, fontsize=11)
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    save(figure, path)


def draw_calibrations(out_dir):
    """calibrations.png: the reliability diagrams of all models on the test split, before and after the temperature."""
    names = ("temperature", "expected_calibration_error", "samples", "confidence", "accuracy")
    curves = {}
    for row in runs.read_rows(Path(out_dir) / runs.CALIBRATIONS, "model", "when", numbers=names):
        curves.setdefault(row["model"], {}).setdefault(row["when"], []).append(row)
    labels = {"before": "as trained", "after": "logits divided by the temperature T"}

    def draw(axes, model, by_when):
        axes.plot([0, 1], [0, 1], "--", color="0.45", linewidth=1, label="perfect calibration")
        errors = []
        for (when, bins), (line, colour) in zip(by_when.items(), LINE_STYLES[1::-1]):
            shown = [(each["confidence"], each["accuracy"]) for each in bins if each["samples"] >= FEW]
            axes.plot(*np.reshape(shown, (-1, 2)).T, line, color=colour, markersize=4, label=labels[when])
            errors.append(f"{bins[0]['expected_calibration_error']:.1%}")
        axes.set_title(f"{model}: T = {bins[0]['temperature']:.2f}", fontsize=11)
        write(axes, 0.7, 0.05, f"error {' → '.join(errors)}", fontsize=10)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    path = (Path(out_dir) / runs.CALIBRATIONS).with_suffix(".png")
    draw_panels(path, curves, draw, "probability of the predicted class", "share that is right", 3)


def draw_robustness(out_dir):
    """robustness.png: test accuracy of each model by the amount of each change of the images."""
    numbers = ("amount", "test_accuracy")
    rows = runs.read_rows(Path(out_dir) / runs.ROBUSTNESS, "model", "transformation", numbers=numbers)
    curves = {}
    for row in rows:
        curve = curves.setdefault(row["transformation"], {}).setdefault(row["model"], ([], []))
        curve[0].append(row["amount"])
        curve[1].append(row["test_accuracy"])

    def draw(axes, kind, by_model):
        models = sorted(by_model, key=lambda model: -by_model[model][1][0])
        for model, (line, colour) in zip(models, itertools.cycle(LINE_STYLES)):
            axes.plot(*by_model[model], line, color=colour, markersize=5, label=model)
        axes.set(xlabel=corruptions.label(kind), ylim=(0, 1))
        amounts = by_model[models[0]][0]
        axes.set_xticks(amounts, [corruptions.format_amount(kind, amount) for amount in amounts])

    draw_panels((Path(out_dir) / runs.ROBUSTNESS).with_suffix(".png"), curves, draw, None, "test accuracy", 2.9)


def draw_corrupted(out_dir):
    """robustness_examples.png: a test image as each change leaves it, a row for each kind."""
    images, kinds, amounts = runs.read_arrays(Path(out_dir) / runs.CORRUPTED, "images", "kinds", "amounts")
    by_kind = {}
    for image, kind, amount in zip(images[1:], kinds[1:], amounts[1:]):
        by_kind.setdefault(str(kind), [(images[0], 0.0)]).append((image, amount))
    columns = max(map(len, by_kind.values()))
    across, down = 38, 40
    picture = np.full((len(by_kind) * down, columns * across, 3), 255, np.uint8)
    figure = Figure(figsize=(1.3 * columns + 1.2, 1.35 * len(by_kind)), layout="compressed")
    axes = figure.subplots()
    for row, (kind, versions) in enumerate(by_kind.items()):
        for column, (image, amount) in enumerate(versions):
            top, left = row * down + 7, column * across + 3
            picture[top : top + 32, left : left + 32] = image.transpose(1, 2, 0)
            write(axes, left + 15.5, top - 1, corruptions.format_amount(kind, amount), va="bottom", fontsize=9)
    axes.imshow(picture, interpolation="nearest")
    axes.set_yticks(np.arange(len(by_kind)) * down + 23, [corruptions.label(kind) for kind in by_kind])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, (Path(out_dir) / runs.CORRUPTED).with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(command.run_command(main))
