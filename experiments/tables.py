"""The tables of the README, of the lab report and of this folder's page, made from the committed files.

Usage:

    python -m experiments.tables        write them into the three, each between its two markers

tests/test_report.py fails when one of them says anything else.
"""

import command

if __name__ == "__main__":
    command.start()


import itertools
import json
import re
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

import evaluate
import models
import runs
from experiments import EFFECTS, RUNS, SEEDS
from experiments.ablation import VARIANTS
from experiments.common import effects, folders_of_seeds
from experiments.seeds import COMMITTED
from metrics import METRIC_COLUMNS, metric_rows

ROOT = Path(__file__).resolve().parent.parent
OUTS = ROOT / "outs"
RESULTS = OUTS / "exercise_04"
EXPERIMENTS = ROOT / "experiments"
README, REPORT, PAGE = ROOT / "README.md", RESULTS / "README.md", EXPERIMENTS / "README.md"
IMPROVED = "vgg_improved"
SOFTMAX_TWICE = OUTS / "softmax_twice"
BY_EXERCISE = ["dense", "cnn1", "cnn2", "vgg"]  # those of the exercise's recipe, from the simplest on
NETWORKS = [*BY_EXERCISE, IMPROVED]
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main(argv=None):
    description = "Write the tables of README.md, of the lab report and of experiments anew from the committed files."
    command.Parser(description=description).parse_args(argv)
    for path in (README, REPORT, PAGE):
        runs.write_atomically(path, with_tables(path.read_text(encoding="utf-8")).encode())


def with_tables(text):
    """A text with what stands between the markers `table: NAME` and `end of table` made anew."""
    return MARKED.sub(lambda match: match[1] + evaluate.markdown(TABLES[match[2]]()) + match[3], text)


def metrics_of(name):
    return runs.read_metrics(RESULTS / name)


def code(name):
    return f"`{name}`"


def share(value):
    return f"{value:.2%}"


def interval(low, high):
    return f"{100 * low:.2f}–{high:.2%}"


def split():
    samples = {name: metrics_of("cnn2")[name]["samples"] for name in runs.SPLITS}
    total = sum(samples.values())
    rows = [[name, f"{count:,}", share(count / total), f"{count // 10:,}"] for name, count in samples.items()]
    return [["split", "images", "share", "of each class"], *rows]


def layers(name):
    """A row for each layer: its kind, the shape of what it gives for one image, its parameters."""
    model, rows = models.build(name).eval(), []

    def note(layer, inputs, output):
        kind = {"Conv2d": "convolution {0}x{0}", "Linear": "fully connected", "MaxPool2d": "max pooling {0}x{0}"}
        kind |= {"BatchNorm2d": "batch normalisation", "Dropout": "dropout 0.5", "Flatten": "flatten"}
        size = getattr(layer, "kernel_size", None)
        side = size[0] if isinstance(size, tuple) else size
        title = kind.get(type(layer).__name__, type(layer).__name__).format(side)
        shape = " x ".join(map(str, output.shape[1:]))
        rows.append([title, shape, f"{models.count_parameters(layer):,}"])

    for layer in model.layers:
        layer.register_forward_hook(note)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    total = ["**sum**", "", f"**{models.count_parameters(model):,}**"]
    return [["layer", "output", "parameters"], ["normalise", "3 x 32 x 32", "0"], *rows, ["softmax", "10", "0"], total]


def comparison():
    rows = []
    for row in runs.read_rows(RESULTS / runs.COMPARISON):
        cells = [code(row["model"]), *(share(float(row[f"{name}_accuracy"])) for name in ("train", "validation"))]
        cells += [f"**{float(row['test_accuracy']):.2%}**"]
        cells += [interval(float(row["interval_low"]), float(row["interval_high"]))]
        rows.append(cells + [share(float(row[f"test_{name}"])) for name in ("precision", "recall", "f1")])
    return [["network", "train", "validation", "test", "95% interval", "precision", "recall", "F1"], *rows]


def results():
    """The comparison in short, with what each network costs."""
    rows = []
    for row in runs.read_rows(RESULTS / runs.COMPARISON):
        cells = [f"{float(row['validation_accuracy']):.1%}", f"**{float(row['test_accuracy']):.2%}**"]
        low, high = (f"{100 * float(row[f'interval_{end}']):.1f}" for end in ("low", "high"))
        counts = [f"{int(row[name]) / 1e6:.1f} M" for name in ("parameters", "multiply_adds")]
        minutes = runs.read_history(RESULTS / row["model"])["seconds"].sum() / 60
        rows.append([code(row["model"]), *cells, f"{low}–{high}", *counts, f"{minutes:.0f}"])
    header = ["network", "validation", "test", "95% interval", "parameters", "multiply-adds", "minutes"]
    return [header, *rows]


def in_points(difference, low, high):
    return f"{100 * difference:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def spread(values, digits=2):
    """Mean and standard deviation over seeds."""
    if not values:
        return "–"
    return f"{statistics.mean(values):.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if values[1:] else "")


def rows_by(column, path):
    """The rows of a CSV file by what stands in a column: a dict of lists."""
    by_value = {}
    for row in runs.read_rows(path):
        by_value.setdefault(row[column], []).append(row)
    return by_value


def seed_rows():
    """The rows of seeds.csv by run, the committed seed 0 first."""
    return rows_by("run", OUTS / "seeds" / SEEDS)


def steps_over_seeds():
    """The difference of the mean test accuracies of two successive networks: experiments.effects by (row, against)."""
    values = {run: [float(row["test_accuracy"]) for row in rows] for run, rows in seed_rows().items()}
    steps = {}
    for against, row in itertools.pairwise(NETWORKS):
        (steps[row, against],) = effects({name: values[name] for name in (against, row)}, [(row, against)])
    return steps


def steps():
    rows, over_seeds = [], steps_over_seeds()
    for row in runs.read_rows(RESULTS / runs.COMPARISON)[1:]:
        pair = row["model"], row["compared_with"]
        counts = [f"{int(row[name]):,}" for name in ("only_that_right", "only_this_right")]
        paired = in_points(*(float(row[f"difference{end}"]) for end in ("", "_low", "_high")))
        seeds = in_points(*(over_seeds[pair][name] for name in ("difference", "low", "high")))
        rows.append([f"{code(pair[1])} → {code(pair[0])}", *counts, paired, seeds])
    header = ["step", "only the first is right", "only the second is right", "points, seed 0 (95% interval)"]
    return [[*header, "points, mean of the seeds (95% interval)"], *rows]


def seeds():
    """What the seed changes: means and standard deviations."""
    table = [["network", "seeds", "test accuracy, %", "best epoch", "validation minus test, points"]]
    table[0].append("best minus last epoch on the test images, points")
    for run, rows in seed_rows().items():
        test, validation = ([100 * float(row[f"{name}_accuracy"]) for row in rows] for name in ("test", "validation"))
        last = [(each, row["last_test_accuracy"]) for each, row in zip(test, rows)]
        cells = [spread(test), spread([int(row["best_epoch"]) for row in rows], 0)]
        cells.append(spread([here - there for here, there in zip(validation, test)]))
        gained = [best - 100 * float(accuracy) for best, accuracy in last if accuracy]
        of_them = f" ({len(gained)} {'seed' if len(gained) == 1 else 'seeds'})" if len(gained) < len(rows) else ""
        table.append([code(run), str(len(rows)), *cells, spread(gained) + of_them])
    return table


def splits_of_cnn2():
    rows, metrics = [], metrics_of("cnn2")
    for name in runs.SPLITS:
        values = metrics[name]
        cells = [name, share(values["accuracy"]), share(values["balanced_accuracy"])]
        cells += [share(values["macro"][column]) for column in METRIC_COLUMNS]
        rows.append([*cells, f"{values['loss']:.4f}"])
    return [["split", "accuracy", "balanced accuracy", "precision", "recall", "F1", "specificity", "loss"], *rows]


def classes_of_cnn2():
    return metric_rows(metrics_of("cnn2")["test"])


def fitting():
    """Where overfitting begins, what the best epoch shows, and what the last one does."""
    header = ["network", "lowest validation loss", "best epoch", "training / validation accuracy of the best epoch"]
    header += ["training / validation accuracy of the last epoch", "validation loss of the last epoch"]
    rows = []
    for name in NETWORKS:
        history, kept = runs.read_history(RESULTS / name), metrics_of(name)["best_epoch"]
        losses = history["validation_loss"]
        cells = [code(name), f"{losses.min():.3f} at epoch {losses.argmin() + 1}", str(kept)]
        for epoch in (kept, len(losses)):
            cells.append(" / ".join(share(history[f"{name}_accuracy"][epoch - 1]) for name in ("train", "validation")))
        rows.append([*cells, f"{losses[-1]:.3f}"])
    return [header, *rows]


def tests_of(run):
    """The metrics of a run on the test split, one for each seed, the committed run's first."""
    folders = folders_of_seeds(OUTS / "seeds" / run, runs.METRICS, ROOT / COMMITTED[run])
    return [runs.read_metrics(folder)["test"] for folder in folders.values()]


def confusions(count=8):
    """The pairs of classes that cnn2 confuses most on the test split: their share, in each network, over its seeds."""
    classes = list(metrics_of("cnn2")["test"]["per_class"])
    shares = {}
    for name in NETWORKS:
        matrices = np.array([test["confusion_matrix"] for test in tests_of(name)])
        totals = matrices.sum(axis=2, keepdims=True)
        shares[name] = 100 * (matrices + matrices.swapaxes(1, 2)) / (totals + totals.swapaxes(1, 2))
    pairs = sorted(itertools.combinations(range(len(classes)), 2), key=lambda pair: -shares["cnn2"].mean(axis=0)[pair])
    rows = [
        [f"{classes[one]}, {classes[other]}", *(spread(shares[name][:, one, other].tolist(), 1) for name in NETWORKS)]
        for one, other in pairs[:count]
    ]
    return [["classes", *map(code, NETWORKS)], *rows]


def confidence_of(name):
    """The mean probability of the predicted class on the test images."""
    (probabilities,) = runs.read_arrays(RESULTS / name / runs.PREDICTIONS, "probabilities")
    return probabilities.max(axis=1).mean(dtype=np.float64)


def calibration():
    rows = []
    for name in NETWORKS:
        test = metrics_of(name)["test"]
        rows.append(
            [code(name), share(confidence_of(name)), share(test["accuracy"]), share(test["expected_calibration_error"])]
        )
    return [["network", "mean probability of the predicted class", "accuracy", "calibration error"], *rows]


def right_of(name):
    """Where a committed run is right on the test images, in their official order, bool [10,000]."""
    return evaluate.right_predictions(RESULTS / name)


def near_duplicates():
    """Indices of the test images that have a near-duplicate among the training images (Barz & Denzler 2020)."""
    return [int(row["TestID"]) for row in runs.read_rows(EXPERIMENTS / "near_duplicates.csv")]


def doubted_labels():
    """Indices of the test images whose label fewer than three of five people agreed with (Northcutt et al. 2021)."""
    rows = runs.read_rows(EXPERIMENTS / "doubted_labels.csv")
    return [int(row["test_index"]) for row in rows if int(row["judged_label"]) < 3]


def new_data():
    """Test accuracy with and without images that say little about new data, or whose label may be wrong."""
    rows = []
    for name in NETWORKS:
        right = right_of(name)
        twins, doubted = (np.isin(np.arange(len(right)), each()) for each in (near_duplicates, doubted_labels))
        rows.append([code(name), *(share(right[each].mean()) for each in (slice(None), twins, ~twins, ~doubted))])
    header = ["all", "with a near-duplicate", "without one", "without a contested label"]
    return [["network", *header], *rows]


def changed_accuracies():
    """The test accuracy on changed images, a dict by (network, kind of change, amount)."""
    return {
        (row["model"], row["transformation"], float(row["amount"])): float(row["test_accuracy"])
        for row in runs.read_rows(RESULTS / runs.ROBUSTNESS)
    }


def changed_images(titles):
    """Test accuracy on images that are changed as the keys of `titles` say: (kind, amount)."""
    accuracy = changed_accuracies()
    rows = [[code(name), *(f"{accuracy[(name, *change)]:.1%}" for change in titles)] for name in NETWORKS]
    return [["network", *titles.values()], *rows]


def robustness():
    shifts = {("shift", amount): f"{amount} px" for amount in (0, 1, 2, 4, 8)}
    return changed_images(shifts | {("rotation", amount): f"{amount}°" for amount in (10, 20, 30, 90)})


def conditions():
    return changed_images(
        {
            ("noise", 0): "as they are",
            ("noise", 5): "noise 5",
            ("noise", 10): "noise 10",
            ("noise", 20): "noise 20",
            ("blur", 1): "blur 1 px",
            ("contrast", 0.5): "half the contrast",
            ("jpeg", 50): "JPEG quality 50",
        }
    )


def softmax():
    rows = []
    for title, folder in (("logits", RESULTS / "cnn2"), ("probabilities: softmax applied twice", SOFTMAX_TWICE)):
        metrics, history = runs.read_metrics(folder), runs.read_history(folder)
        lowest, test = history["validation_loss"].argmin() + 1, metrics["test"]
        cells = [title, str(metrics["best_epoch"]), str(lowest), share(metrics["validation"]["accuracy"])]
        rows.append(
            [
                *cells,
                share(test["accuracy"]),
                interval(*test["accuracy_interval"]),
                share(test["expected_calibration_error"]),
            ]
        )
    header = ["the loss of `cnn2` is taken on", "best epoch", "lowest validation loss at epoch", "validation"]
    calibrated = "[calibration error](#are-its-probabilities-probabilities)"
    return [[*header, "test", "95% interval", calibrated], *rows]


def search():
    """The search for the improved recipe, from the least computation on."""
    rows = sorted(runs.read_rows(EXPERIMENTS / "search.csv"), key=lambda row: float(row["pflop"]))
    header = ["run", "widths", "epochs", "PFLOP", "minutes", "validation accuracy", "loss"]
    optimizers = {"sgd": "SGD", "muon": "Muon"}
    return [header] + [
        [
            f"{optimizers[row['optimizer']]}: {row['what']}",
            row["widths"].replace("-", ", "),
            row["epochs"],
            f"{float(row['pflop']):.2f}",
            row["minutes"],
            share(float(row["validation_accuracy"])),
            f"{float(row['validation_loss']):.3f}",
        ]
        for row in rows
    ]


def compared(experiment, titles, costs=False):
    """The rows of an experiment: those of `titles`, a dict by row; with what each costs, if so wished."""
    folder = OUTS / experiment
    by_row = rows_by("variant", folder / RUNS)
    differences = {
        row["variant"]: in_points(*(float(row[name]) for name in ("difference", "low", "high")))
        for row in runs.read_rows(folder / EFFECTS)
    }
    table = [["", "seeds", "validation accuracy, mean ± std, %", "difference in points (95% interval)"]]
    table[0] += ["with noise, %", "PFLOP", "minutes"] if costs else []
    for name, title in titles.items():
        rows = by_row[name]
        clean, noisy = ([100 * float(row[of]) for row in rows] for of in ("validation_accuracy", "with_noise"))
        table.append([title, str(len(rows)), spread(clean), differences.get(name, "–")])
        if costs:
            minutes = statistics.mean(float(row["minutes"]) for row in rows)
            table[-1] += [spread(noisy, 1), f"{float(rows[0]['pflop']):.2f}", f"{minutes:.0f}"]
    return table


def vgg_apart():
    return compared(
        "vgg_apart",
        {
            "cnn2": "`cnn2`",
            "wider": "as many filters and units as `vgg`",
            "third_block": "a third block",
            "two_convolutions": "two convolutions in each block",
            "batch_normalisation": "batch normalisation",
            "dropout": "dropout, which makes it `vgg`",
        },
        costs=True,
    )


def ablation():
    def rate(row):
        return VARIANTS[row].recipe.learning_rate

    return compared(
        "ablation",
        {
            "all_parts": "all parts",
            "vgg_by_this_recipe": "`vgg` instead of `vgg_fast`",
            "without_whitening": "no whitening: the first layer starts at random and is trained",
            "without_identity_initialisation": "no identity initialisation: convolutions but the first start at random",
            "without_augmentation": "no augmentation",
            "without_label_smoothing": "no label smoothing",
            "without_skipping_easy_images": "no skipping of easy images",
            "constant_learning_rate": f"constant learning rate, {rate('constant_learning_rate'):g}",
            "adamw_instead_of_muon": f"AdamW, {rate('adamw_instead_of_muon'):g}, instead of Muon",
        },
        costs=True,
    )


def learning_rates():
    names = [(name, rate) for name in ("dense", "cnn2") for rate in ("1e-4", "3e-4", "1e-3")]
    return compared("learning_rates", {f"{name}_{rate}": f"`{name}`, {rate}" for name, rate in names})


def precision():
    return compared("precision", {"fp32": "fp32", "bf16": "bf16"})


def measured_speed(part, file="throughput.json"):
    return json.loads((EXPERIMENTS / file).read_text())[part]


def with_range(values, digits=1):
    """Median, minimum and maximum of several rounds."""
    median, low, high = (f"{values[name]:,.{digits}f}" for name in ("median", "minimum", "maximum"))
    return f"{median} ({low} to {high})"


def step_times(values):
    """Milliseconds that the project and the usual script, with the better number of workers, need for a step."""
    times = {contestant: summary["median"] for contestant, summary in values["milliseconds"].items()}
    return times["project"], min(time for contestant, time in times.items() if contestant.startswith("usual"))


def speed():
    rows = []
    for name, values in measured_speed("steps").items():
        project, usual = step_times(values)
        ratios = values["ratios"]
        ratio, fp32 = ratios["usual script / project"], ratios["usual script / project fp32"]
        cells = [code(name), f"{project:.2f} ms", f"{usual:.2f} ms", with_range(ratio)]
        rows.append([*cells, f"{fp32['median']:.1f}", f"{ratios['project / floor']['median']:.2f}"])
    return [["network", "this project", "usual script", "ratio", "ratio, both in fp32", "relative to the floor"], *rows]


def batch_sizes():
    rows = []
    for name, batches in measured_speed("batches").items():
        for size, values in batches.items():
            cells = [code(name), size.removeprefix("batch "), with_range(values["microseconds an image"], 0)]
            rows.append([*cells, f"{values['peak memory in MB']:,} MB"])
    return [["network", "batch size", "microseconds an image", "peak memory"], *rows]


def busy():
    rows = []
    for name, values in measured_speed("busy").items():
        for threads in ("bound", "free"):
            times = [values["milliseconds"][f"{threads}, {state}"]["median"] for state in ("alone", "busy")]
            slower = with_range(values["ratios"][f"busy / alone, {threads}"])
            rows.append([code(name), threads, *(f"{time:.2f} ms" for time in times), slower])
    return [["network", "threads", "alone", "beside a busy program", "ratio"], *rows]


TABLES = {
    function.__name__: function
    for function in (
        *(split, comparison, results, steps, seeds, splits_of_cnn2, classes_of_cnn2, fitting, confusions, calibration),
        *(new_data, robustness, conditions, softmax, search, speed, batch_sizes, busy),
        *(vgg_apart, ablation, learning_rates, precision),
    )
}
TABLES |= {f"layers_{name}": lambda name=name: layers(name) for name in models.MODELS}

if __name__ == "__main__":
    sys.exit(command.run_command(main))
