"""Classify the user's own pictures: find and read them, predict, measure accuracy if they are labelled, save."""

import contextlib
import io
import os
import re
import warnings
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from tqdm import tqdm

import command
import plots
import runs
from metrics import DECIMALS, Predictions, format_table, rounded, wilson_interval

TOP = 5  # classes printed for each picture, if there are at most so many pictures
LISTED = 100  # up to so many labelled pictures get a line each; more get only a summary
DRAWN = 100  # pictures on a sheet, at most
BATCH_SIZE = 100  # pictures predicted at a time
PREDICTIONS, SUMMARY, SHEET = "predictions.csv", "summary.csv", "{}_predictions.png"  # output files
# The brand of a HEIF file (ISO/IEC 23008-12, annex B) -> what the error message calls it.
HEIF = dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "a HEIC")
HEIF |= {b"mif1": "a HEIF", b"msf1": "a HEIF", b"avif": "an AVIF", b"avis": "an AVIF"}


class PictureError(command.UserError):
    """A file that can't be read as a picture, or a folder without pictures."""


class Answers(NamedTuple):
    """A network's predictions for N pictures."""

    model: str  # the name of its run
    classes: list
    predictions: Predictions  # a label is -1 if there is none, or if it isn't one of these classes
    rows: list  # of predictions.csv, as dicts: one for each picture


def classify(networks, named, device, out_dir=None):
    """Classify pictures with each network and print the results (print_answers); with `out_dir`, write them there, too
    (write_answers).

    `networks` is a dict from a run's name to (Network, Checkpoint); `named` are files and folders of pictures. What
    can't be read is reported on stderr and skipped; returns whether nothing was. Raises UsageError if `out_dir` can't
    be used.
    """
    classes = {label for _, checkpoint in networks.values() for label in checkpoint.classes}
    if out_dir:
        check_out_dir(out_dir, named, classes)
    labels, errors = find_pictures(named, classes)
    images = {}
    for path in tqdm(labels, "pictures", leave=False, disable=None):
        try:
            images[path] = read_picture(path)
        except PictureError as error:
            errors.append(error)
    for error in errors:
        command.print_error(error)
    if not images:
        return False
    labels, images = {path: labels[path] for path in images}, torch.cat([*images.values()])
    answers = []
    for name, (model, checkpoint) in networks.items():
        answers.append(ask(name, model, checkpoint.classes, labels, images, device))
        print_answers(answers[-1])
    if out_dir:
        write_answers(answers, images, out_dir)
    return not errors


def check_out_dir(out_dir, named, classes):
    """Create the output folder. Raises UsageError if that fails, or if the next call would classify the sheets, too."""
    if any(out_dir.resolve() == (path / label).resolve() for path in named for label in ("", *classes)):
        raise command.UsageError(f"{out_dir} is a folder of pictures: choose another --out-dir")
    runs.make_folder(out_dir)


# Finding and reading.


def find_pictures(named, classes):
    """Find the pictures in files and folders: a dict from path to label, "" for none; and a list of PictureErrors for
    what is skipped.

    A folder with pictures in subfolders that are named after some of the `classes` is a labelled set, as in
    torchvision's ImageFolder.
    """
    found, errors = {}, []
    for path in named:
        if not os.path.isdir(path):
            found.setdefault(path, "")
            continue
        pictures, folders = look_into(path, errors)
        labelled = {}
        for folder in folders:
            if folder.name in classes:
                labelled |= dict.fromkeys(look_into(folder, errors)[0], folder.name)
        if labelled:
            foreign = [folder for folder in folders if folder.name not in classes]
            errors += [PictureError(f"{folder} is skipped: no class has that name") for folder in foreign]
        elif not pictures:
            known = ", ".join(sorted(classes))
            message = f"{path} contains no pictures, and no folders of pictures named after a class: {known}"
            errors.append(PictureError(message))
        found |= dict.fromkeys(pictures, "") | labelled
    return found, errors


def look_into(folder, errors):
    """The pictures in a folder, recognised by their file extensions, and its subfolders: two sorted lists, without
    hidden ones. If the folder can't be read, an error is added to `errors`."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        errors.append(PictureError(f"{folder}: {error.strerror}"))
        return [], []
    extensions = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    extensions |= {".heic", ".heif", ".mpo"}  # HEIC gets an error message of its own; MPO is read as JPEG
    folders = [path for path in paths if os.path.isdir(path)]
    return [path for path in paths if path.suffix.lower() in extensions and not os.path.isdir(path)], folders


def read_picture(path):
    """Any picture that Pillow can read -> uint8 [1, 3, 32, 32]: upright, its centre square, resized with antialiasing.

    Transparent parts become white. Raises PictureError if the file is missing, not a picture, or too large.
    """
    content = b""
    try:
        content = command.read_bytes(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities of the file
            square = read_square(content)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} has over {2 * Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller first") from error
    except MemoryError as error:
        raise PictureError(f"{path} needs more memory than there is: make it smaller first") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} {describe_unknown(content)}") from error
    except Exception as error:  # Pillow can raise anything for a damaged file
        if isinstance(error, OSError) and error.filename:
            raise PictureError(f"{path}: {error.strerror}") from error
        reason = re.sub(r" ?<[^<>]* at 0x\w+>", "", str(error))  # the address of an object
        raise PictureError(f"{path} can't be read as a picture: {reason or type(error).__name__}") from error
    pixels = np.array(Image.alpha_composite(Image.new("RGBA", square.size, "white"), square).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def read_square(content):
    """The centre square of a picture, from the bytes of its file: an upright RGBA Image of 32x32."""
    if content[8:12] in HEIF:
        with contextlib.suppress(ImportError):  # a plugin for HEIC, if it is installed
            import pillow_heif

            pillow_heif.register_heif_opener()
    with Image.open(io.BytesIO(content)) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode.startswith("I") or picture.mode == "F":  # convert() would clip them at 255
            whites = (1, 255) if picture.mode == "F" else (65_535,)
            picture = Image.fromarray(to_bytes(np.asarray(picture, np.float64), whites))
        return ImageOps.fit(picture.convert("RGBA"), (32, 32), Image.Resampling.LANCZOS)


def describe_unknown(content):
    """Why Pillow can't read a file, from its bytes: the end of an error message."""
    kind = HEIF.get(content[8:12]) if content[4:8] == b"ftyp" else None
    if kind and f".{kind.split()[1].lower()}" not in Image.registered_extensions():
        plugin = "" if kind == "an AVIF" else ", or pip install pillow-heif"
        return f"is {kind} picture, which Pillow can't read: convert it to JPEG first{plugin}"
    return "is not a picture that Pillow can read"


def to_bytes(grey, whites):
    """Scale grey values [H, W] to uint8. White is the first of `whites` that no value exceeds. Raises ValueError if all
    are exceeded, or a value is negative: then it is unknown what is white."""
    for white in whites:
        if grey.min() >= 0 and grey.max() <= white:
            return (grey * (255 / white)).round().astype(np.uint8)
    raise ValueError(f"it has values from {grey.min():g} to {grey.max():g}, not from 0 to {whites[-1]:,}")


# Predicting and measuring.


def ask(name, model, classes, labels, images, device):
    """Predict pictures, uint8 [N, 3, 32, 32], with a network for those classes. `labels` is a dict by their paths."""
    with torch.inference_mode():  # in fp32, like evaluate.infer, with one batch at a time on the device
        parts = [model.logits(batch.to(device)).float().log_softmax(dim=1).cpu() for batch in images.split(BATCH_SIZE)]
    numbers = [classes.index(label) if label in classes else -1 for label in labels.values()]
    predictions = Predictions(torch.cat(parts), torch.tensor(numbers))
    rows = [
        {
            "model": name,
            "file": str(path).encode(errors="backslashreplace").decode(),  # a file name may be invalid Unicode
            "label": label,
            "prediction": classes[predicted],
            "probability": round(float(probability), DECIMALS),
        }
        for (path, label), predicted, probability in zip(
            labels.items(), predictions.classes(), predictions.probabilities().max(axis=1)
        )
    ]
    return Answers(name, classes, predictions, rows)


def summary_rows(answers: Answers):
    """The rows of summary.csv, as dicts: the accuracy on labelled pictures, of all and of each class, with Wilson's 95%
    interval. Empty if none is labelled."""
    labels, right = answers.predictions.labels.numpy(), answers.predictions.right()
    groups = [("all", labels >= 0), *((label, labels == index) for index, label in enumerate(answers.classes))]
    rows = []
    for label, group in groups:
        if total := int(group.sum()):
            count = int(right[group].sum())
            row = {"model": answers.model, "class": label, "pictures": total, "right": count, "accuracy": count / total}
            rows.append(rounded(row | dict(zip(("low", "high"), wilson_interval(count, total)))))
    return rows


# Printing, writing and drawing.


def print_answers(answers: Answers):
    """Print the likeliest classes for each of a few pictures, or a line for each of more. Labelled pictures also get a
    summary, a large set of them nothing else."""
    labels, right = answers.predictions.labels.numpy(), answers.predictions.right()
    files = [command.printable(row["file"]) for row in answers.rows]
    lines = []
    for file, row, label, is_right in zip(files, answers.rows, labels, right):
        verdict = "" if label < 0 else "right" if is_right else "wrong"
        if label < 0 or (labels >= 0).sum() <= LISTED:
            lines.append([file, row["prediction"], f"{row['probability']:.2%}", verdict])
    if len(files) <= TOP:
        for file, row, shares in zip(files, answers.rows, answers.predictions.probabilities()):
            print(f"\n{file} ({answers.model})" + (f", label: {row['label']}" if row["label"] else ""))
            for index in np.argsort(-shares, kind="stable")[:TOP]:
                print(f"  {answers.classes[index]:<12}{shares[index]:7.2%}")
    elif lines:
        print(f"\n{format_table([['picture', answers.model, 'probability', ''], *lines])}")
    if summary := summary_rows(answers):
        print_summary(answers, summary)


def print_summary(answers: Answers, summary):
    """Print the confusion matrix of the labelled pictures, and the accuracy by class."""
    from sklearn.metrics import confusion_matrix  # takes as long to import as everything else

    labels, predicted = answers.predictions.labels.numpy(), answers.predictions.classes()
    matrix = confusion_matrix(labels[labels >= 0], predicted[labels >= 0], labels=range(len(answers.classes)))
    rows = [[label, *map(str, counts)] for label, counts in zip(answers.classes, matrix) if counts.any()]
    print(f"\n{answers.model}: rows are true classes, columns predicted classes")
    print(format_table([["", *answers.classes], *rows]))
    table = [["class", "pictures", "right", "accuracy", "95% interval"]]
    for row in [*summary[1:], summary[0]]:
        shares = f"{row['accuracy']:.2%}", f"{row['low']:.2%} to {row['high']:.2%}"
        table.append([row["class"], f"{row['pictures']:,}", f"{row['right']:,}", *shares])
    print(f"\n{format_table(table)}", flush=True)


def write_answers(answers, images, out_dir):
    """Write predictions.csv, summary.csv if any pictures are labelled, and a sheet of pictures for each network."""
    runs.write_atomically(out_dir / PREDICTIONS, runs.csv_bytes([row for each in answers for row in each.rows]))
    if summary := [row for each in answers for row in summary_rows(each)]:
        runs.write_atomically(out_dir / SUMMARY, runs.csv_bytes(summary))
    else:
        (out_dir / SUMMARY).unlink(missing_ok=True)  # left by a call with other pictures
    for each in answers:
        path = out_dir / SHEET.format(each.model)
        runs.make_folder(path.parent)  # a run's name may contain slashes
        draw_sheet(path, each, images)
    print(f"\nThe predictions are in {command.printable(out_dir)}")


def draw_sheet(path, answers: Answers, images):
    """Draw pictures as the network sees them, uint8 [N, 3, 32, 32], and predictions: at most DRAWN, evenly spaced."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), DRAWN)).round().astype(int)
    labels, right = answers.predictions.labels.numpy(), answers.predictions.right()
    columns, down, across = 8, 51, 40  # pixels from one picture to the next, with the caption above it
    sheet = np.full((-(-len(chosen) // columns) * down, columns * across, 3), 255, np.uint8)
    figure = Figure(figsize=(10, len(sheet) / 32 + 0.7), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    for position, index in enumerate(chosen):
        top, left = (position // columns + 1) * down - 35, position % columns * across + 4
        row, style = answers.rows[index], {}
        caption = [os.path.basename(row["file"]), f"{row['prediction']} {row['probability']:.1%}"]
        if row["label"] not in ("", row["prediction"]):
            caption.append(f"label: {row['label']}")
        if labels[index] >= 0 and not right[index]:
            style = {"color": plots.ORANGE, "weight": "bold"}
            sheet[top - 2 : top + 34, left - 2 : left + 34] = ImageColor.getrgb(plots.ORANGE)
        sheet[top : top + 32, left : left + 32] = images[index].permute(1, 2, 0)
        plots.write(axes, left + 15.5, top - 3.5, "\n".join(map(shortened, caption)), va="bottom", fontsize=7, **style)
    axes.imshow(sheet, interpolation="nearest")
    some = f", {len(chosen)} of {len(images):,} pictures, evenly spaced" if len(images) > len(chosen) else ""
    marked = "; wrong ones framed, in bold" if (labels >= 0).any() else ""
    figure.suptitle(
        f"{answers.model}: pictures as it sees them{some}\npredicted class and its probability{marked}", fontsize=10
    )
    plots.save(figure, path)


def shortened(text):
    """The text of a caption, printable; of a long one, the end."""
    text = command.printable(text)
    return text if len(text) <= 17 else f"…{text[-16:]}"
