"""The pictures of runs and comparisons, drawn from saved files, so that they can be redrawn without training.

Usage:

    python plots.py outs/exercise_04        redraw all pictures of all runs under a folder

For an unfinished run, that is only loss_plot.png.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` omits it
    import command

    command.start()

import contextlib
import functools
import io
import itertools
import textwrap
import time
import warnings

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, PercentFormatter
from PIL import Image

import command
import corruptions
import runs
from metrics import metric_rows, metric_summary

VANISHED = 0.1  # a kernel has vanished if its norm is below this share of its initial norm
MIN_IMAGES = 50  # that a bin of a reliability diagram needs for its accuracy to be shown
REDRAW_EVERY = 30  # seconds, at least, during training
PERCENT = "{x:.0%}"  # number format of an axis
SMALL = 8.33  # font size of a long legend, in points
# Okabe & Ito's colours, which the colour-blind can tell apart; dashes and markers differ even in greyscale.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, AMBER = "#56B4E9", "#E69F00"
RUN_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "black", SKY, AMBER, BLUE, ORANGE, "black")
RUN_STYLES = [
    {"marker": marker, "linestyle": line, "color": colour, "markerfacecolor": colour if number < 5 else "white"}
    for number, (marker, line, colour) in enumerate(
        zip("os^DvP<X>*", itertools.cycle(["-", "--", "-.", ":"]), RUN_COLOURS)
    )
]


def main(argv=None):
    redraw(
        "Redraw the pictures of all runs and comparisons under a folder from saved files.",
        argv,
        runs.DEFAULT_OUT_DIR["cifar10"],
        {
            runs.METRICS: draw_run,
            runs.HISTORY: draw_run,
            runs.COMPARISON: draw_comparison,
            runs.CALIBRATIONS: draw_calibrations,
            runs.RECALL: draw_recall,
            runs.ROBUSTNESS: draw_robustness,
            runs.CORRUPTED: draw_corrupted,
        },
    )


def redraw(description, argv, folder, drawers):
    """Run a command that redraws pictures. `drawers` is a dict from a file name to the function that draws from it,
    which is called once for every folder under the given one, by default `folder`, that contains such a file."""
    parser = command.Parser(description=description)
    parser.add_argument("folder", type=Path, nargs="?", default=folder, help="(default: %(default)s)")
    folder = parser.parse_args(argv).folder
    found = {}
    for name, draw in drawers.items():
        for path in sorted(folder.rglob(name)):
            found.setdefault((draw, path.parent), path)
    if not found:
        raise command.UsageError(f"there are no results under {folder}")

    def redraw_one(draw, path):
        draw(path.parent)
        print(f"Redrawn from {command.printable(path)}")

    draw_all((redraw_one, draw, path) for (draw, _), path in found.items())


def draw_all(drawings):
    """Call each of the drawings, tuples of a function and its arguments, even if others fail. Raises one ResultsError
    at the end, with a line for each damaged file and picture."""
    errors = []
    for draw, *arguments in drawings:
        try:
            draw(*arguments)
        except runs.ResultsError as error:
            errors.append(error)
    if errors:
        raise runs.ResultsError(*dict.fromkeys(line for error in errors for line in error.args)) from errors[0]


def draw_run(folder):
    """Draw every picture for which the run folder has the file. Raises ResultsError at the end, like draw_all."""
    drawings = [(runs.HISTORY, draw_loss), (runs.METRICS, draw_calibration)]
    for split in runs.SPLITS:
        drawings += [(runs.METRICS, draw_confusion_matrix, split), (runs.METRICS, draw_metric_table, split)]
    drawings += [(runs.MISTAKES, draw_mistakes), (runs.RANDOM, draw_random_predictions)]
    drawings += [(runs.FILTERS, draw_filters), (runs.INSIDE, draw_inside)]
    draw_all((draw, folder, *split) for source, draw, *split in drawings if (Path(folder) / source).exists())


def drawn_from(*sources, name=None):
    """A decorator: the Figure that draw(folder) returns is saved in the folder, unless it is None (nothing to draw).
    The picture is called `name`, or else like the first of `sources`, the files in the folder that the function reads.

    Raises ResultsError if a source is damaged or can't be read, OSError if the picture can't be written.
    """

    def decorate(draw):
        @functools.wraps(draw)
        def draw_and_save(folder, *split):
            folder = Path(folder)
            path = folder / (name.format(*split) if name else Path(sources[0]).with_suffix(".png"))
            # Neither uses nor changes the settings of a matplotlibrc or of the calling program.
            style = matplotlib.style.context(["default", {"text.parse_math": False}])  # dollar signs aren't math
            try:
                with style, np.errstate(over="raise", divide="raise"), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box is drawn for it
                    if figure := draw(folder, *split):
                        save(figure, path)
            except (command.UserError, MemoryError):
                raise
            except OSError as error:
                if Path(error.filename or path).name not in sources:  # writing failed: the next picture would fail, too
                    raise
                raise runs.ResultsError(f"{error.filename}: {error.strerror}") from error
            except Exception as error:  # NumPy and Matplotlib can raise anything for damaged values
                damaged = folder / " or ".join(sources)
                reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
                raise runs.ResultsError(f"{damaged} is damaged: can't draw {path.name} ({reason})") from error

        return draw_and_save

    return decorate


def save(figure, path):
    """Write a figure as PNG, the same bytes for the same picture. Figure.savefig would lay it out and draw it twice."""
    figure.set_dpi(150)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(picture, format="png")
    runs.write_atomically(path, picture.getvalue())


def write(axes, x, y, text, ha="center", **style):
    """Text within the axes, excluded from the layout: measuring it would take most of the time."""
    axes.text(x, y, text, ha=ha, **style).set_in_layout(False)


def add_legend(figure, place="upper", size=10):
    """Add one legend for all panels, each label once, in as few rows as the width of the figure allows."""
    entries = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= zip(labels, handles)
    widths = [text_width(label, size) + 5 * size for label in entries]  # with the handle and the space after it
    for rows in range(1, len(widths) + 1):
        columns = -(-len(widths) // rows)
        if sum(map(max, np.array_split(widths, columns))) <= 72 * figure.get_figwidth():
            break
    figure.legend(entries.values(), entries, loc=f"outside {place} center", ncols=columns, fontsize=size, frameon=False)


def text_width(text, size=10):
    """The width of a text, in points."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]


def arrays(rows, *names):
    """Columns of a list of dicts as arrays. Raises ValueError if a number isn't finite."""
    return [np.asarray_chkfinite([row[name] for row in rows]) for name in names]


def grouped(rows, name):
    """Group a list of dicts by a column: a dict from each of its values to the dicts that have it."""
    groups = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def subplots(width, height, *grid, layout="constrained", **options):
    """A figure of that size, in inches, and its axes: pyplot.subplots without global state."""
    figure = Figure(figsize=(width, height), layout=layout)
    return figure, figure.subplots(*grid, **options)


def run_styles(names):
    """The style of each run, as a dict from name to keywords of Axes.plot. `names` go from the worst to the best, which
    looks the same in all pictures."""
    return dict(zip(reversed([*names]), itertools.cycle(RUN_STYLES)))


def run_title(folder):
    return command.printable(folder.resolve().name)


def draw_loss_when_due(folder, due):
    """Draw loss_plot.png during training, if it is `due` according to time.monotonic(). Returns when it is due next, so
    that drawing takes at most 2% of the time. A failure to draw doesn't stop the training."""
    start = time.monotonic()
    if start < due:
        return due
    with contextlib.suppress(runs.ResultsError, OSError):
        draw_loss(folder)
    return start + max(REDRAW_EVERY, 50 * (time.monotonic() - start))


@drawn_from(runs.HISTORY, runs.METRICS, name=runs.LOSS_PLOT)
def draw_loss(folder):
    """loss_plot.png: loss and accuracy by epoch, with the best epoch and the lowest validation loss marked. A run
    without metrics.json isn't finished: its best epoch is the best so far."""
    history = runs.read_history(folder)
    np.asarray_chkfinite([*history.values()])  # raises ValueError
    epochs = history["epoch"]
    lowest = history["validation_loss"].argmin()
    title, training = f"{run_title(folder)}: training and validation by epoch", "training"
    if (folder / runs.METRICS).exists():
        metrics = runs.read_metrics(folder)
        best_epoch, settings = metrics["best_epoch"], metrics["settings"]
        if best_epoch > len(epochs):  # the run was killed between writing the two files
            message = f"{folder / runs.HISTORY} ends before epoch {best_epoch}: resume the run with --resume"
            raise runs.ResultsError(message)
        (best,) = np.flatnonzero(epochs == best_epoch)
        kinds = {"augment": "augmented", "corrupt": "corrupted", "skip_easy": "mostly hard"}
        kinds = [kind for name, kind in kinds.items() if settings[name]]
        training += f" ({', '.join(kinds)})" if kinds else ""
    else:
        best = np.lexsort((history["validation_loss"], -history["validation_accuracy"]))[0]
        title += f", up to epoch {len(epochs)}"
    marker = "." if len(epochs) < 10 else ""  # a line needs two epochs
    figure, panels = subplots(9, 4, 1, 2)
    for axes, quantity in zip(panels, ("loss", "accuracy")):
        axes.plot(epochs, history[f"train_{quantity}"], "--", color=BLUE, marker=marker, label=training)
        validation = history[f"validation_{quantity}"]
        axes.plot(epochs, validation, "-", color=ORANGE, marker=marker, label="validation")
        axes.axvline(epochs[lowest], color="black", linestyle=":", linewidth=1)
        label = f"lowest validation loss: epoch {epochs[lowest]:.0f}"
        axes.plot(epochs[lowest], validation[lowest], "v:", color="black", linewidth=1, label=label)
        label = f"best epoch, by validation accuracy: {epochs[best]:.0f}"
        axes.plot(epochs[best], validation[best], "o", color="black", fillstyle="none", markersize=9, label=label)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.set_xlim(1 - 0.02 * len(epochs), len(epochs) + 0.02 * len(epochs))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.grid(alpha=0.3)
    panels[1].yaxis.set_major_formatter(PERCENT)
    figure.suptitle(title)
    add_legend(figure, "lower", SMALL)
    return figure


@drawn_from(runs.METRICS, name=runs.CONFUSION_MATRIX)
def draw_confusion_matrix(folder, split):
    """confusion_matrix_<split>.png: counts, each with its share of the row, which is also the shade of a mistake.

    The darkest shade is the most frequent mistake: on a scale up to the diagonal, a good network's would all be white.
    """
    values = runs.read_metrics(folder)[split]
    counts, classes = np.array(values["confusion_matrix"]), list(values["per_class"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mistakes = np.ma.masked_array(shares, np.eye(len(counts), dtype=bool))
    figure, axes = subplots(7.5, 6.6)
    axes.set_facecolor("0.88")  # the diagonal, which is masked
    image = axes.imshow(mistakes, cmap="Blues", vmin=0, vmax=max(mistakes.max(), 0.001))
    for row, column in np.ndindex(*counts.shape):
        count, share = counts[row, column], shares[row, column]
        text = f"{count:,}\n{share:.1%}" if count else "0"
        dark = row != column and share > 0.6 * mistakes.max()
        weight = "bold" if row == column else "normal"
        write(axes, column, row, text, va="center", fontsize=8, color="white" if dark else "black", weight=weight)
    axes.set_xticks(range(len(counts)), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(counts)), classes)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{run_title(folder)}, {split}: {values['samples']:,} images, accuracy {values['accuracy']:.2%}")
    label = "mistakes: share of the true class"
    figure.colorbar(image, ax=axes, shrink=0.8, label=label, format=PercentFormatter(1))
    return figure


@drawn_from(runs.METRICS, name=runs.METRIC_TABLE)
def draw_metric_table(folder, split):
    """metrics_<split>.png: the metric table as a picture, with the overall metrics below."""
    metrics = runs.read_metrics(folder)
    values = metrics[split]
    header, *body = metric_rows(values)
    figure, axes = subplots(7, 4.2)
    axes.axis("off")
    widths = [0.22, 0.15, 0.15, 0.15, 0.17, 0.14]
    table = axes.table(body, colLabels=header, loc="center", cellLoc="right", colWidths=widths)
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
    return figure


@drawn_from(runs.METRICS, name=runs.CALIBRATION)
def draw_calibration(folder):
    """calibration.png: the test split's reliability diagram (Guo et al. 2017): accuracy by confidence, and how many
    images have that confidence."""
    test = runs.read_metrics(folder)["test"]
    bins = [each for each in test["calibration_bins"] if each["samples"]]
    low, high, accuracy, confidence, samples = arrays(bins, "low", "high", "accuracy", "confidence", "samples")
    width = high - low
    accuracy[samples < MIN_IMAGES], confidence[samples < MIN_IMAGES] = np.nan, np.nan  # too few to say anything
    figure, (upper, lower) = subplots(5.5, 6, 2, 1, sharex=True, height_ratios=[3, 1])
    bars = {"width": width, "align": "edge", "linewidth": 0.6}
    upper.bar(low, accuracy, **bars, color=SKY, edgecolor="black", label="share that is right")
    gap = {"color": "none", "edgecolor": ORANGE, "hatch": "///", "label": "gap to the mean probability there"}
    upper.bar(low, confidence - accuracy, bottom=accuracy, **bars, **gap)
    upper.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="perfect calibration")
    upper.set(ylabel=f"accuracy, in bins of {MIN_IMAGES} images or more", xlim=(0, 1), ylim=(0, 1))
    error = test["expected_calibration_error"]
    upper.set_title(f"{run_title(folder)}, test split\nexpected calibration error {error:.2%}")
    shares = samples / test["samples"]
    lower.bar(low, shares, **bars, color="0.6", edgecolor="black")
    for left, share, count in zip(low + width / 2, shares, samples):
        lower.annotate(f"{count:,}", (left, share), (0, 2), textcoords="offset points", ha="center", fontsize=6.5)
    lower.margins(y=0.2)
    lower.set(xlabel="probability of the predicted class", ylabel="share of images")
    for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
        axis.set_major_formatter(PERCENT)
    figure.legend(loc="outside lower center", fontsize="small", frameon=False)
    return figure


@drawn_from(runs.MISTAKES)
def draw_mistakes(folder):
    """mistakes.png: the worst mistakes on the test split."""
    return draw_predictions(folder, runs.MISTAKES, "the {} mistakes made with the highest probability")


@drawn_from(runs.RANDOM)
def draw_random_predictions(folder):
    """random_predictions.png: predictions on the test split, not cherry-picked."""
    return draw_predictions(folder, runs.RANDOM, "{} predictions at random, mistakes in bold")


def draw_predictions(folder, name, title):
    """Test images, each with the predicted class, its probability, the label, and the loss."""
    names = ("images", "labels", "probabilities", "losses", "classes")
    images, labels, probabilities, losses, classes = runs.read_arrays(folder / name, *names)
    figure, axes = subplots(8, 9.8)
    axes.axis("off")
    # All in one image: the layout of 25 axes would take six times as long.
    columns, down, right = 5, 46, 40  # pixels from one image to the next, with the caption above it
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
    return figure


@drawn_from(runs.FILTERS)
def draw_filters(folder):
    """filters.png: the kernels of the first convolution at the start and at the best epoch, in colour if they have
    three channels, in grey if they have one. Kernels with any other number of channels aren't drawn."""
    start, weights = runs.read_arrays(folder / runs.FILTERS, "start", "weights")
    if weights.shape[1] not in (1, 3):
        return None
    norm_before, norm = (np.linalg.norm(each.reshape(len(each), -1), axis=1) for each in (start, weights))
    vanished = norm < VANISHED * norm_before
    columns = 8
    rows = -(-len(weights) // columns)
    trained = not np.array_equal(start, weights)
    panels = {"at the start": start, "at the best epoch": weights} if trained else {"not trained": start}
    figure, places = subplots(8, 1.1 + 0.47 * rows, 1, len(panels), squeeze=False)
    for axes, (title, kernels) in zip(places[0], panels.items()):
        largest = np.maximum(np.abs(kernels).max(axis=(1, 2, 3), keepdims=True), 1e-12)
        scale = max(1, 48 // max(kernels.shape[2:]))
        tiles = (0.5 + kernels / (2 * largest)).repeat(scale, axis=2).repeat(scale, axis=3)
        tiles = tiles.repeat(3 // kernels.shape[1], axis=1)  # grey is the same in all colours
        tiles = np.pad(tiles, [(0, -len(tiles) % columns), (0, 0), (0, 0), (0, 0)], constant_values=0.75)
        picture = mosaic(tiles.reshape(rows, columns, *tiles.shape[1:]), 0.75)  # grey frames: a kernel may be all white
        axes.imshow(picture, interpolation="nearest")
        if title == "at the best epoch":
            height, width = picture.shape[0] / rows, picture.shape[1] / columns
            for number in np.flatnonzero(vanished):
                x, y = (number % columns + 0.5) * width, (number // columns + 0.5) * height
                write(axes, x, y, "×", va="center", fontsize=20, color="black")
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    change = ""
    if trained and start.any():
        growth = np.linalg.norm(weights) / np.linalg.norm(start)
        change = f"\nThe norm of the layer is {growth:.2f} times that at the start"
        change += f"; {vanished.sum()} kernels have shrunk below {VANISHED:.0%} of theirs (×)" if vanished.any() else ""
    kernels = f"the {len(weights)} kernels of the first convolution, each scaled by itself"
    figure.suptitle(f"{run_title(folder)}: {kernels}{change}", fontsize=10)
    return figure


@drawn_from(runs.INSIDE)
def draw_inside(folder):
    """inside.png: what happens to six test images inside the network, a row for each; see evaluate.look_inside."""
    names = ("images", "labels", "probabilities", "occlusion", "classes")
    images, labels, probabilities, occlusion, classes = runs.read_arrays(folder / runs.INSIDE, *names)
    blocks = runs.read_blocks(folder / runs.INSIDE)
    cell, gap, caption = 96, 14, 22  # pixels
    left = [number * (cell + gap) for number in range(len(blocks) + 3)]
    down = cell + caption
    picture = np.full((len(images) * down, left[-1] + 2 * cell, 3), 1.0)
    figure, axes = subplots(9, 9 * picture.shape[0] / picture.shape[1] + 0.6)
    axes.axis("off")

    def put(values, top, left):
        """Enlarge an image [height, width, 1 or 3], values from 0 to 1, to a cell of the picture."""
        rows, columns = (np.arange(cell) * length // cell for length in values.shape[:2])
        picture[top : top + cell, left : left + cell] = values[rows][:, columns]

    for row, image in enumerate(images):
        top = row * down + caption
        put(image.transpose(1, 2, 0) / 255, top, left[0])
        predicted = probabilities[row].argmax()
        verdict = "right" if predicted == labels[row] else "wrong"
        write(axes, left[0] + cell / 2, top - 2, f"{classes[labels[row]]}: {verdict}", va="bottom", fontsize=9)
        for maps, x in zip(blocks, left[1:]):
            low, high = (edge(maps[row], axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
            count, height, width = maps[row].shape
            scaled = np.ones((4, height + 1, width + 1))  # white between the maps, and where there are fewer than four
            scaled[:count, :-1, :-1] = (maps[row] - low) / np.maximum(high - low, 1e-9)
            put(np.block([[scaled[0], scaled[1]], [scaled[2], scaled[3]]])[..., None], top, x)
        largest = max(np.abs(occlusion[row]).max(), 0.01)
        put(matplotlib.colormaps["PuOr"](0.5 - occlusion[row] / (2 * largest))[..., :3], top, left[-2])
        change = f"{-100 * occlusion[row].max():+.0f} to {-100 * occlusion[row].min():+.0f} points".replace("-", "−")
        write(axes, left[-2] + cell / 2, top - 2, change, va="bottom", fontsize=9)
        height, start = cell / len(classes), left[-1] + 0.75 * cell
        centres = top + height * (np.arange(len(classes)) + 0.5)
        colours = [ORANGE if number == labels[row] else "0.6" for number in range(len(classes))]
        axes.barh(centres, probabilities[row] * cell, 0.8 * height, start, color=colours)
        for number, (centre, share) in enumerate(zip(centres, probabilities[row])):
            write(axes, start - 4, centre, classes[number], "right", va="center", fontsize=6.5)
            if number in (predicted, labels[row]):
                write(axes, start + share * cell + 4, centre, f"{share:.0%}", "left", va="center", fontsize=6.5)
    axes.imshow(picture, interpolation="nearest")
    titles = ["image", *(f"block {number}" for number in range(1, len(blocks) + 1)), "occlusion", "probabilities"]
    middles = [x + cell / 2 for x in left[:-1]] + [left[-1] + cell]
    for title, x in zip(titles, middles):
        write(axes, x, -4, title, va="bottom", fontsize=10, weight="bold")
    axes.set_ylim(len(picture), -30)
    figure.suptitle(
        f"{run_title(folder)}: the first three test images that are recognised, and the first three that aren't\n"
        "occlusion: how a grey square there changes the label's probability, orange down, violet up; orange bar: label",
        fontsize=10,
    )
    return figure


def mosaic(tiles, grey):
    """Images [rows, columns, 3, height, width] in a grid, each in a frame of that grey, as one image [_, _, 3]."""
    frame = max(1, tiles.shape[-1] // 16)
    tiles = np.pad(tiles, [(0, 0), (0, 0), (0, 0), (frame, frame), (frame, frame)], constant_values=grey)
    rows, columns, _, height, width = tiles.shape
    return tiles.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)


def show_rows(axes, picture, middles, labels):
    """Show an image that consists of rows of images, with a label at the middle of each row."""
    axes.imshow(picture, interpolation="nearest")
    axes.set_yticks(middles, labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@drawn_from(runs.COMPARISON)
def draw_comparison(folder):
    """comparison.png: test accuracy with its 95% interval, and training accuracy, against multiply-adds."""
    names = ("multiply_adds", "train_accuracy", "test_accuracy", "interval_low", "interval_high")
    rows = runs.read_rows(folder / runs.COMPARISON, "model", numbers=names)
    cost, train, test, low, high = arrays(rows, *names)
    texts = [f"{row['model']} {row['test_accuracy']:.1%}" for row in rows]
    figure, axes = subplots(8, 4.6)
    axes.vlines(cost, test, train, color="0.75", linewidth=1)
    axes.plot(cost, train, "s", color=BLUE, fillstyle="none", label="training split")
    style = {"fmt": "o", "color": ORANGE, "markersize": 5, "capsize": 4}
    label = "test split (labelled), with 95% interval"
    axes.errorbar(cost, test, [test - low, high - test], **style, label=label)
    axes.set(xscale="log", xlabel="multiply-adds for one image, log scale", ylabel="accuracy at the best epoch")
    label_points(axes, cost, test, texts)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(places=0))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.grid(alpha=0.3)
    add_legend(figure)
    return figure


def label_points(axes, x, y, texts):
    """Write a text to the right of each point, and extend the logarithmic x axis to make room for it. Where two would
    overlap, the upper one moves up and gets a line to its point."""
    width, height = 520, 280  # approximate size of the axes, in points
    widths = np.array([text_width(text) + 12 for text in texts])
    start = x.min() / 1.7
    axes.set_xlim(start, max(4.9 * x.max(), *start * (x / start) ** (1 / np.maximum(0.2, 1 - widths / width))))
    points = (axes.transScale + axes.transLimits).transform(np.stack([x, y], axis=1)) * (width, height)
    placed = []
    for number in np.argsort(y, kind="stable"):
        left, bottom = points[number]
        right = left + widths[number]
        raised = max([bottom, *(other + 14 for start, end, other in placed if left < end and start < right)])
        placed.append((left, right, raised))
        line = {"arrowstyle": "-", "color": "0.6", "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)}
        style = {"textcoords": "offset points", "va": "center", "arrowprops": line if raised > bottom else None}
        axes.annotate(texts[number], (x[number], y[number]), (9, raised - bottom), **style)


@drawn_from(runs.RECALL)
def draw_recall(folder):
    """recall.png: each model's recall of each class on the test split."""
    rows = runs.read_rows(folder / runs.RECALL, "model", "class", numbers=["recall"])
    recalls = {model: dict(zip(*arrays(each, "class", "recall"))) for model, each in grouped(rows, "model").items()}
    styles = run_styles(recalls)
    best = recalls[next(iter(styles))]
    classes = sorted(grouped(rows, "class"), key=best.__getitem__)
    figure, axes = subplots(8, 1.2 + 0.4 * len(classes))
    for model, by_class in recalls.items():
        style = styles[model] | {"linestyle": "none", "markersize": 7, "clip_on": False, "label": model}
        axes.plot([by_class[label] for label in classes], range(len(classes)), **style)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="recall on the test split", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.grid(alpha=0.3)
    add_legend(figure)
    return figure


def draw_panels(panels, draw, xlabel, ylabel, height):
    """A figure with a panel for each entry of `panels`, three in a row, and one legend for all. draw(axes, key, value)
    draws a panel."""
    columns, rows = 3, -(-len(panels) // 3)
    figure, places = subplots(9, 0.6 + height * rows, rows, columns, sharex=bool(xlabel), sharey=True, squeeze=False)
    places = places.flatten()
    for axes, (key, value) in zip(places, panels.items()):
        draw(axes, key, value)
        axes.grid(alpha=0.3)
    places[0].yaxis.set_major_formatter(PERCENT)
    for axes in places[len(panels) :]:
        axes.axis("off")
    for axes in places[max(0, len(panels) - columns) : len(panels)]:
        axes.tick_params(labelbottom=True)  # shared axes label the bottom row, but it may be incomplete
    if xlabel:
        figure.supxlabel(xlabel, fontsize=11)
    figure.supylabel(ylabel, fontsize=11)
    add_legend(figure)
    return figure


@drawn_from(runs.CALIBRATIONS)
def draw_calibrations(folder):
    """calibrations.png: the test split's reliability diagrams of all models, before and after temperature scaling."""
    numbers = ("temperature", "expected_calibration_error", "samples", "confidence", "accuracy")
    rows = runs.read_rows(folder / runs.CALIBRATIONS, "model", "when", numbers=numbers)
    labels = {"before": "as trained", "after": "logits divided by the temperature T"}

    def draw(axes, model, model_rows):
        axes.plot([0, 1], [0, 1], "--", color="0.45", linewidth=1, label="perfect calibration")
        errors = []
        for (when, bins), style in zip(grouped(model_rows, "when").items(), RUN_STYLES[1::-1]):
            shown = [each for each in bins if each["samples"] >= MIN_IMAGES]
            axes.plot(*arrays(shown, "confidence", "accuracy"), **style, markersize=4, label=labels[when])
            errors.append(f"{bins[0]['expected_calibration_error']:.1%}")
        axes.set_title(f"{model}: T = {model_rows[0]['temperature']:.2f}", fontsize=11)
        write(axes, 0.7, 0.05, f"error {' → '.join(errors)}", fontsize=10)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1))
        axes.xaxis.set_major_formatter(PERCENT)

    return draw_panels(grouped(rows, "model"), draw, "probability of the predicted class", "share that is right", 3)


@drawn_from(runs.ROBUSTNESS)
def draw_robustness(folder):
    """robustness.png: the test accuracy of each model by the amount of each corruption."""
    numbers = ("amount", "test_accuracy")
    rows = runs.read_rows(folder / runs.ROBUSTNESS, "model", "transformation", numbers=numbers)
    accuracies = {row["model"]: row["test_accuracy"] for row in reversed(rows)}  # on uncorrupted images
    styles = run_styles(sorted(accuracies, key=accuracies.get))

    def draw(axes, kind, kind_rows):
        by_model = grouped(kind_rows, "model")
        for model, style in styles.items():
            amounts, accuracy = arrays(by_model[model], *numbers)
            axes.plot(amounts, accuracy, **style, markersize=5, label=model)
        axes.set(xlabel=corruptions.label(kind), ylim=(0, 1))
        axes.set_xticks(amounts, [corruptions.format_amount(kind, amount) for amount in amounts])

    return draw_panels(grouped(rows, "transformation"), draw, None, "test accuracy", 2.9)


@drawn_from(runs.CORRUPTED)
def draw_corrupted(folder):
    """robustness_examples.png: a test image with each corruption, a row for each kind."""
    images, kinds, amounts = runs.read_arrays(folder / runs.CORRUPTED, "images", "kinds", "amounts")
    by_kind = {}
    for image, kind, amount in zip(images[1:], kinds[1:], amounts[1:]):
        by_kind.setdefault(str(kind), [(images[0], 0.0)]).append((image, amount))
    columns = max(map(len, by_kind.values()))
    across, down = 38, 40
    picture = np.full((len(by_kind) * down, columns * across, 3), 255, np.uint8)
    figure, axes = subplots(1.3 * columns + 1.2, 1.35 * len(by_kind), layout="compressed")
    for row, (kind, versions) in enumerate(by_kind.items()):
        for column, (image, amount) in enumerate(versions):
            top, left = row * down + 7, column * across + 3
            picture[top : top + 32, left : left + 32] = image.transpose(1, 2, 0)
            write(axes, left + 15.5, top - 1, corruptions.format_amount(kind, amount), va="bottom", fontsize=9)
    show_rows(axes, picture, np.arange(len(by_kind)) * down + 23, [corruptions.label(kind) for kind in by_kind])
    return figure


if __name__ == "__main__":
    sys.exit(command.run_command(main))
