"""Evaluate checkpoints: metrics, tables and pictures; or classify your own pictures with them.

Usage:

    python evaluate.py                                      every best.pt under outs/exercise_04, and a comparison
    python evaluate.py outs/exercise_04/cnn2/best.pt        a single checkpoint
    python evaluate.py outs/exercise_04/cnn2/best.pt --image cat.jpg holiday/
    python evaluate.py --robustness                         test accuracy of all of them on corrupted images
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` omits it
    import command

    command.start()

import contextlib
import dataclasses
import itertools
import json
import os

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import command
import corruptions
import data
import models
import photos
import plots
import runs
from metrics import (
    DECIMALS,
    IMAGES_SHOWN,
    Predictions,
    calibrated_metrics,
    fit_temperature,
    format_table,
    mean_loss_and_accuracy,
    metric_rows,
    metric_summary,
    paired_difference,
    rounded,
    split_metrics,
    worst_mistakes,
)

MAPS_SHOWN = 4  # feature maps shown per block and image
BATCH_SIZE = 100  # images predicted at a time


def main(argv=None):
    arguments = parse_arguments(argv)
    device = command.choose_device(arguments.device)
    paths = find_checkpoints(arguments.checkpoint)
    folders = {path: results_folder(path) for path in paths}
    if len(set(map(os.path.realpath, folders.values()))) < len(folders):
        raise command.UsageError(
            "the results of two of these checkpoints would have the same folder: name one at a time"
        )
    if arguments.image:
        loaded, all_loaded = load_models(paths, device, skip_foreign=not arguments.checkpoint)
        networks = dict(zip(run_names([folders[path].resolve() for path in loaded]), loaded.values()))
        all_read = photos.classify(networks, arguments.image, device, arguments.out_dir)
        return 0 if all_loaded and all_read else 2
    out_dir = arguments.out_dir or Path(os.path.realpath(folders[paths[0]])).parent
    if arguments.robustness or len(paths) > 1:
        runs.make_folder(out_dir)
    elif arguments.out_dir:
        raise command.UsageError("the results of one checkpoint go into its own folder: leave out --out-dir")
    with contextlib.ExitStack() as claims:
        if not arguments.robustness:
            for folder in sorted({Path(os.path.realpath(path)).parent for path in paths}):
                claims.enter_context(runs.claim_folder(folder))
        loaded, all_loaded = load_models(paths, device, skip_foreign=not arguments.checkpoint)
        splits = read_splits(loaded, arguments.data_dir, device, ["test"] if arguments.robustness else runs.SPLITS)
        if arguments.robustness:
            measure_robustness(loaded, splits["test"], out_dir)
        else:
            for path in loaded:
                runs.make_folder(folders[path])
            drawings = []
            for path, (model, checkpoint) in loaded.items():
                write_results(path, model, checkpoint, splits)
                drawings.append((plots.draw_run, folders[path]))
            if len(loaded) > 1:
                drawings.append((compare, [folders[path] for path in loaded], out_dir))
            plots.draw_all(drawings)  # if one run's file is damaged, the others are still drawn
    return 0 if all_loaded else 2


def find_checkpoints(named):
    """The checkpoint files to evaluate, without duplicates: those given, where a run folder means its best.pt, or else
    every best.pt of the exercise's runs."""
    folder = runs.DEFAULT_OUT_DIR["cifar10"]
    paths = command.expand(named) if named else sorted(folder.glob(f"*/{runs.BEST}"))
    if not paths:
        project = Path(__file__).resolve().parent
        where = f"under {folder.absolute()}" + (f"; the project is in {project}" if Path.cwd() != project else "")
        raise runs.CheckpointError(f"no checkpoint given, and no {runs.BEST} {where}")
    paths = [path / runs.BEST if path.is_dir() else path for path in paths]
    for path in paths:
        os.stat(path)  # raises OSError for a missing file before a folder is created for its results
    return list({os.path.realpath(path): path for path in paths}.values())


def load_models(paths, device, skip_foreign):
    """Load checkpoints: a dict from path to (Network, Checkpoint), and whether all of them could be loaded.

    One that can't be used raises CheckpointError or ModelError, or is reported and skipped if `skip_foreign`.
    """
    loaded = {}
    for path in paths:
        try:
            model, checkpoint = models.load_model(path)
        except (runs.CheckpointError, models.ModelError) as error:
            if not skip_foreign:
                raise
            command.print_error(f"{error} (skipped)")
        else:
            loaded[path] = model.to(device), checkpoint
    if not loaded:
        raise runs.CheckpointError("none of these checkpoints can be used")
    return loaded, len(loaded) == len(paths)


def read_splits(loaded, data_dir, device, names=runs.SPLITS):
    """Load the data set that these networks were trained on: a dict from split name to data.Split, on the device.
    Raises CheckpointError if they weren't all trained on the same data set and split."""
    kinds = {(checkpoint.dataset, checkpoint.split_seed) for _, checkpoint in loaded.values()}
    if len(kinds) > 1:
        kinds = "; ".join(f"{dataset}, split {seed}" for dataset, seed in sorted(kinds))
        raise runs.CheckpointError(f"checkpoints of different data sets can't be compared: {kinds}")
    ((dataset, split_seed),) = kinds
    splits = data.load_splits(dataset, data_dir, names, split_seed)
    return {name: split.to(device) for name, split in splits.items()}


def parse_arguments(argv):
    parser = command.Parser(
        description="Evaluate checkpoints on the training, validation and test split, or classify pictures.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="*",
        help=f"checkpoint files (default: every best.pt under {runs.DEFAULT_OUT_DIR['cifar10']})",
    )
    task = parser.add_mutually_exclusive_group()
    task.add_argument(
        "--image",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="pictures to classify, or folders of pictures; needs no data set",
    )
    task.add_argument(
        "--robustness",
        action="store_true",
        help="measure accuracy on corrupted test images instead: shifted, rotated, noisy, ...",
    )
    parser.add_argument(
        "--out-dir",
        type=Path,
        help="folder for the comparison or the robustness results (default: the one that contains the first run), or "
        "for the predictions of --image (default: not saved)",
    )
    command.add_common_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.image:
        arguments.image = command.expand(arguments.image)
        if not arguments.checkpoint:  # those given after --image were parsed as pictures
            checkpoints = [path for path in arguments.image if path.suffix == ".pt" or (path / runs.BEST).exists()]
            arguments.checkpoint = checkpoints
            arguments.image = [path for path in arguments.image if path not in checkpoints]
            if not arguments.image:
                parser.error("--image: no picture given")
    return arguments


def infer(model, split) -> Predictions:
    """Predict a whole split, in fp32 whatever the training precision, so that all machines agree."""
    model.eval()
    with torch.inference_mode():
        parts = [model.logits(images).float().log_softmax(dim=1) for images in split.images.split(BATCH_SIZE)]
    return Predictions(torch.cat(parts).cpu(), split.labels.cpu())


def evaluate_checkpoint(path, data_dir, device):
    """Evaluate one checkpoint on the three splits and draw its pictures: see write_results and plots.draw_run."""
    loaded, _ = load_models([path], device, skip_foreign=False)
    write_results(path, *loaded[path], read_splits(loaded, data_dir, device))
    plots.draw_run(results_folder(path))


def write_results(path, model, checkpoint: runs.Checkpoint, splits):
    """Evaluate a checkpoint's network on the three splits: print the tables, and write metrics.json,
    predictions_test.npz and the data of the pictures.

    In metrics.json, settings, precision, threads and so on are the checkpoint's; "seconds" is the training time up to
    its epoch.
    """
    folder = results_folder(path)
    if checkpoint.classes != data.CLASSES[checkpoint.dataset]:
        raise runs.CheckpointError(f"the classes in {path} are not those of {checkpoint.dataset}")
    metrics = {
        "model": checkpoint.model,
        "dataset": checkpoint.dataset,
        "parameters": models.count_parameters(model),
        "multiply_adds": models.multiply_adds(model),
        "best_epoch": checkpoint.epoch,
        "settings": dataclasses.asdict(checkpoint.recipe),
        "seeds": {"training": checkpoint.recipe.seed, "split": checkpoint.split_seed},
        **checkpoint.environment,
        "seconds": checkpoint.seconds,
    }
    print(f"\n{command.printable(path)}: {checkpoint.model}, epoch {checkpoint.epoch}")
    predictions = {}
    for name, split in splits.items():
        predictions[name] = infer(model, split)
        metrics[name] = rounded(split_metrics(predictions[name], checkpoint.classes))
        print(f"\n{name}\n{format_metrics(metrics[name])}", flush=True)
    temperature = fit_temperature(predictions["validation"])
    metrics["temperature"] = round(temperature, DECIMALS)
    for name in runs.SPLITS:
        metrics[name]["after_temperature"] = rounded(calibrated_metrics(predictions[name], temperature))
    write_predictions(folder, splits["test"].images, predictions["test"], checkpoint.classes)
    write_filters_and_inside(folder, model, checkpoint, splits["test"], predictions["test"])
    runs.write_atomically(folder / runs.METRICS, (json.dumps(metrics, indent=1) + "\n").encode())
    print(f"\nTables and pictures are in {command.printable(folder)}")


def write_filters_and_inside(folder, model, checkpoint: runs.Checkpoint, split, predictions: Predictions):
    """Write the data of two pictures, if the network has a convolution: the kernels of the first one, and what happens
    inside the network to the first three images classified right and the first three wrong (not cherry-picked)."""
    convolution = first_convolution(model)
    if convolution is None:
        return
    torch.manual_seed(checkpoint.recipe.seed)
    trained = convolution.weight.requires_grad
    initial = first_convolution(models.build(checkpoint.model)) if trained else convolution
    start, kernels = (layer.weight.detach().cpu().numpy() for layer in (initial, convolution))
    runs.write_arrays(folder / runs.FILTERS, start=start, weights=kernels)
    right = predictions.right()
    chosen = np.concatenate([np.flatnonzero(right)[:3], np.flatnonzero(~right)[:3]])
    inside = look_inside(model, data.Split(*(part[chosen] for part in split)))
    runs.write_arrays(folder / runs.INSIDE, index=chosen, classes=checkpoint.classes, **inside)


def first_convolution(model):
    """The first convolution of a network, at any depth, or None."""
    return next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)


def look_inside(model, split):
    """What happens to a few images inside a network, as a dict of arrays.

    images, labels, probabilities [N, 10]; block_1, block_2, ... [N, MAPS_SHOWN, height, width]: the feature maps after
    each pooling (block_maps); occlusion [N, 7, 7]: how much the label's probability drops when a grey square covers
    that part of the image (Zeiler & Fergus 2014, arXiv:1311.2901).
    """
    count = len(split.labels)
    with torch.inference_mode():
        maps = block_maps(model, split.images)
        probabilities = model(split.images)
        true = torch.arange(count), split.labels
        occlusion = torch.zeros(count, 7, 7)
        for row, column in np.ndindex(7, 7):
            covered = split.images.clone()
            covered[:, :, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8] = 127
            occlusion[:, row, column] = (probabilities[true] - model(covered)[true]).cpu()
    return {
        "images": split.images.cpu().numpy(),
        "labels": split.labels.cpu().numpy(),
        "probabilities": probabilities.cpu().numpy().round(DECIMALS),
        "occlusion": occlusion.numpy().round(DECIMALS),
        "blocks": len(maps),
        **{f"block_{number}": values.round(3) for number, values in enumerate(maps, 1)},
    }


def block_maps(model, images):
    """For each pooling layer, the feature maps that the next convolution or flatten layer receives: a list of float32
    arrays [N, up to MAPS_SHOWN, height, width], with the maps of each image that vary most."""
    maps, pooled = [], []

    def note_pooling(layer, inputs, output):
        pooled.append(layer)

    def note_input(layer, inputs):
        values = inputs[0]
        if pooled and values.ndim == 4 and values.shape[-1] > 1:
            order = values.std(dim=(2, 3)).argsort(dim=1, descending=True, stable=True)[:, :MAPS_SHOWN]
            maps.append(values[torch.arange(len(values))[:, None], order].cpu().numpy())
            pooled.clear()

    with contextlib.ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
                hooks.callback(layer.register_forward_hook(note_pooling).remove)
            elif isinstance(layer, (nn.Conv2d, nn.Flatten, models.Flatten)):
                hooks.callback(layer.register_forward_pre_hook(note_input).remove)
        model(images)
    return maps


def write_predictions(folder, images, predictions: Predictions, classes):
    """Write predictions_test.npz, and the data of two pictures: the worst mistakes, and a random sample, the same for
    every network. `images` is uint8 [N, 3, 32, 32]."""
    probabilities, labels = predictions.probabilities(), predictions.labels.numpy()
    runs.write_arrays(folder / runs.PREDICTIONS, labels=labels, probabilities=probabilities)
    losses = -predictions.log_probabilities.numpy()[np.arange(len(labels)), labels]
    random = np.sort(np.random.default_rng(0).permutation(len(labels))[:IMAGES_SHOWN])
    for name, index in ((runs.MISTAKES, worst_mistakes(probabilities, labels)), (runs.RANDOM, random)):
        runs.write_arrays(
            folder / name,
            index=index,
            images=images[index].cpu().numpy(),
            labels=labels[index],
            probabilities=probabilities[index],
            losses=losses[index].round(2),
            classes=classes,
        )


def results_folder(checkpoint_path):
    """Where a checkpoint's results go: for best.pt its run folder, for any other file a folder of its own beside it."""
    path = Path(checkpoint_path)
    return path.parent if path.name == runs.BEST else path.with_name(f"{path.stem}_results")


def format_metrics(metrics):
    return f"{format_table(metric_rows(metrics))}\n{metric_summary(metrics)}, {metrics['samples']:,} images"


def compare(folders, out_dir):
    """Compare the results of several runs: print tables, write comparison.csv and .md, calibrations.csv and recall.csv
    to `out_dir`, and draw their pictures.

    There is a row for each run, from the lowest test accuracy to the highest; each is compared with the one before it,
    on the same test images.
    """
    folders = [Path(folder).resolve() for folder in folders]
    results, metrics_of = [], {}
    for folder, name in zip(folders, run_names(folders)):
        metrics = metrics_of[name] = runs.read_metrics(folder)
        test = metrics["test"]
        row = {
            "model": name,
            "parameters": metrics["parameters"],
            "multiply_adds": metrics["multiply_adds"],
            "best_epoch": metrics["best_epoch"],
            "seconds_per_epoch": seconds_per_epoch(folder, metrics),
            "train_accuracy": metrics["train"]["accuracy"],
            "validation_accuracy": metrics["validation"]["accuracy"],
            "test_accuracy": test["accuracy"],
            "interval_low": test["accuracy_interval"][0],
            "interval_high": test["accuracy_interval"][1],
            **{f"test_{name}": test["macro"][name] for name in ("precision", "recall", "f1")},
        }
        results.append((row, right_predictions(folder)))
    results.sort(key=lambda result: result[0]["test_accuracy"])
    rows = [row for row, _ in results]
    summary = table_rows(rows)
    columns = ["compared_with", "only_this_right", "only_that_right"]
    columns += ["difference", "difference_low", "difference_high"]
    rows[0] |= dict.fromkeys(columns)
    for (that, that_right), (this, this_right) in itertools.pairwise(results):
        this |= dict(zip(columns, (that["model"], *paired_difference(this_right, that_right))))
    tables = [summary, table_rows([{name: row[name] for name in ("model", *columns)} for row in rows[1:]])]
    print("", *map(format_table, tables), sep="\n\n")
    if may_write(out_dir / runs.COMPARISON, rows, common_folder(folders)):
        runs.write_atomically(out_dir / runs.COMPARISON, runs.csv_bytes(rows))
        calibrations = [line for row in rows for line in calibration_rows(row["model"], metrics_of[row["model"]])]
        runs.write_atomically(out_dir / runs.CALIBRATIONS, runs.csv_bytes(calibrations))
        recalls = [
            {"model": row["model"], "class": label, "recall": values["recall"]}
            for row in rows
            for label, values in metrics_of[row["model"]]["test"]["per_class"].items()
        ]
        runs.write_atomically(out_dir / runs.RECALL, runs.csv_bytes(recalls))
        runs.write_atomically((out_dir / runs.COMPARISON).with_suffix(".md"), "\n".join(map(markdown, tables)).encode())
        print(f"\nThe comparison is in {command.printable(out_dir)}")
        plots.draw_all((draw, out_dir) for draw in (plots.draw_comparison, plots.draw_calibrations, plots.draw_recall))


def calibration_rows(name, metrics):
    """A dict for each non-empty calibration bin of a run's test split, before and after temperature scaling."""
    before, after = metrics["test"], metrics["test"]["after_temperature"]
    return [
        {"model": name, "when": when, "temperature": metrics["temperature"], "loss": values["loss"]}
        | {"expected_calibration_error": values["expected_calibration_error"], **line}
        for when, values in (("before", before), ("after", after))
        for line in values["calibration_bins"]
        if line["samples"]
    ]


def may_write(path, rows, base):
    """Whether `rows`, dicts with "model", can be written to `path` without losing those of another run; if not, say so.
    Runs whose folder is gone, both beside `path` and in `base`, the folder of these runs, don't count."""
    try:
        former = {row["model"] for row in runs.read_rows(path, "model")} if path.exists() else set()
    except runs.ResultsError:
        former = set()  # a damaged file is replaced
    others = former - {row["model"] for row in rows}
    lost = [name for name in sorted(others) if any((each / name).exists() for each in (path.parent, base))]
    if lost:
        lost = ", ".join(lost)
        print("\n" + command.printable(f"Not written: {path} also covers {lost}. Choose another --out-dir."))
    return not lost


def seconds_per_epoch(folder, metrics):
    """The median over the run's epochs, which an interruption doesn't affect; without history.csv, the mean."""
    if (folder / runs.HISTORY).exists():
        return float(np.median(runs.read_history(folder)["seconds"]))
    return metrics["seconds"] / metrics["best_epoch"]


def right_predictions(folder):
    """Which of a run's saved test predictions are right, bool [N]."""
    probabilities, labels = runs.read_arrays(folder / runs.PREDICTIONS, "probabilities", "labels")
    return probabilities.argmax(axis=1) == labels


def common_folder(folders):
    """The innermost folder that contains all run folders. (os.path.commonpath fails if they are on several drives.)"""
    parts = zip(*(folder.parent.parts for folder in folders))
    return Path(*(names[0] for names in itertools.takewhile(lambda names: len({*names}) == 1, parts)))


def run_names(folders):
    """Names for runs that are shown together: their paths relative to the common folder, printable."""
    common = len(common_folder(folders).parts)
    return [command.printable(Path(*folder.parts[common:]).as_posix()) for folder in folders]


def measure_robustness(loaded, split, out_dir):
    """Measure the accuracy of networks, a dict from load_models, on corrupted images of a split. Writes robustness.csv
    and .png, and one image with each corruption to robustness_examples.npz and .png."""
    folders = [results_folder(path).resolve() for path in loaded]
    networks = {name: model for name, (model, _) in zip(run_names(folders), loaded.values())}
    accuracies, examples = {}, {}
    measured = [
        ("none", 0),
        *((kind, amount) for kind, each in corruptions.CORRUPTIONS.items() for amount in each.amounts),
    ]
    for kind, amount in tqdm(measured, "robustness", leave=False, disable=None):
        for images in corruptions.CORRUPTIONS[kind].apply(split.images, amount) if amount else [split.images]:
            images = images.contiguous(memory_format=torch.channels_last)
            examples.setdefault((kind, amount), images[0].cpu().numpy())
            for name, model in networks.items():
                accuracy = mean_loss_and_accuracy(infer(model, data.Split(images, split.labels)))[1]
                accuracies.setdefault((name, kind, amount), []).append(accuracy)
    means = {key: sum(values) / len(values) for key, values in accuracies.items()}
    rows = []
    for kind, (_, amounts, _) in corruptions.CORRUPTIONS.items():
        table = [[kind, *map(str, (0, *amounts))]]
        for name in networks:
            values = [means[name, "none", 0], *(means[name, kind, amount] for amount in amounts)]
            table.append([name, *(f"{value:.1%}" for value in values)])
            what = {"model": name, "transformation": kind}
            rows += [what | {"amount": x, "test_accuracy": y} for x, y in zip((0, *amounts), values)]
        print(f"\n{format_table(table)}")
    if may_write(out_dir / runs.ROBUSTNESS, rows, common_folder(folders)):
        runs.write_atomically(out_dir / runs.ROBUSTNESS, runs.csv_bytes(rows))
        kinds, amounts = zip(*measured)
        runs.write_arrays(out_dir / runs.CORRUPTED, images=list(examples.values()), kinds=kinds, amounts=amounts)
        plots.draw_robustness(out_dir)
        plots.draw_corrupted(out_dir)
        print(f"\nThe pictures are in {command.printable(out_dir)}")


def table_rows(rows):
    """Dicts with the same keys -> rows of strings, the first of which is the header."""
    header = [column.replace("_", " ") for column in rows[0]]
    return [header, *([format_cell(column, value) for column, value in row.items()] for row in rows)]


def markdown(table):
    """Rows of strings -> a Markdown table, the first column left-aligned, the others right-aligned."""
    lines = [table[0], ["---"] + ["---:"] * (len(table[0]) - 1), *table[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def format_cell(column, value):
    """Seconds with one decimal, other floats as percentages, counts with thousands separators."""
    if isinstance(value, float):
        return f"{value:.1f}" if column.startswith("seconds") else f"{value:.2%}"
    return value if isinstance(value, str) else f"{value:,}"


if __name__ == "__main__":
    sys.exit(command.run_command(main))
