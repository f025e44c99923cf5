"""The user's own pictures: found in folders, read, classified, measured where they are labelled, written and drawn."""

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

TOP = 5  # classes printed for a picture, where there are no more pictures than this
LISTED = 100  # up to so many labelled pictures get a line each; more are only summed up
DRAWN = 100  # pictures on a sheet
BATCH_SIZE = 100  # pictures predicted at a time
PREDICTIONS, SUMMARY, SHEET = "predictions.csv", "summary.csv", "{}_predictions.png"  # what is written
# The brand of a file of the HEIF family (ISO/IEC 23008-12, annex B) -> what is to be said of it.
HEIF = dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "a HEIC")
HEIF |= {b"mif1": "a HEIF", b"msf1": "a HEIF", b"avif": "an AVIF", b"avis": "an AVIF"}


class PictureError(command.UserError):
    """A file or a folder that no picture can be read from."""


class Answers(NamedTuple):
    """What a network says of N pictures."""

    model: str  # the name of its run
    classes: list
    predictions: Predictions  # a label is -1 where there is none, or none of these classes
    rows: list  # of predictions.csv: a dict for each picture


def classify(networks, named, device, out_dir=None):
    """Print what networks say of pictures, and write it into `out_dir` if there is one: see print_answers and
    write_answers.

    `networks` is a dict from a run's name to (Network, Checkpoint); `named` are files, and folders that stand for their
    pictures. Whatever can't be read is named on stderr; returns whether nothing was left out. Raises UsageError for an
    `out_dir` that can't be used.
    """
    classes = {label for _, checkpoint in networks.values() for label in checkpoint.classes}
    if out_dir:
        check_out_dir(out_dir, named, classes)
    labels, left_out = find_pictures(named, classes)
    images = {}
    for path in tqdm(labels, "pictures", leave=False, disable=None):
        try:
            images[path] = read_picture(path)
        except PictureError as error:
            left_out.append(error)
    for error in left_out:
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
    return not left_out


def check_out_dir(out_dir, named, classes):
    """Make the folder for what is written; raises UsageError where that can't be, or where the next call would take the
    sheets for pictures."""
    if any(out_dir.resolve() == (path / label).resolve() for path in named for label in ("", *classes)):
        raise command.UsageError(f"{out_dir} is a folder of pictures: choose another --out-dir for what is written")
    runs.make_folder(out_dir)


# Finding and reading.


def find_pictures(named, classes):
    """The files that paths stand for, as a dict from path to label, "" for none; and what is left out, as a list of
    PictureErrors.

    A folder with pictures in subfolders that are named after some of the `classes` is a labelled set, as for
    torchvision's ImageFolder.
    """
    found, left_out = {}, []
    for path in named:
        if not os.path.isdir(path):
            found.setdefault(path, "")
            continue
        pictures, folders = look_into(path, left_out)
        labelled = {}
        for folder in folders:
            if folder.name in classes:
                labelled |= dict.fromkeys(look_into(folder, left_out)[0], folder.name)
        if labelled:
            foreign = [folder for folder in folders if folder.name not in classes]
            left_out += [PictureError(f"{folder} is left out: no class has that name") for folder in foreign]
        elif not pictures:
            known = ", ".join(sorted(classes))
            left_out.append(PictureError(f"{path} holds no pictures, nor folders of them named after classes: {known}"))
        found |= dict.fromkeys(pictures, "") | labelled
    return found, left_out


def look_into(folder, left_out):
    """The pictures in a folder, told by the ends of their names, and the folders in it: two sorted lists, without what
    is hidden. One that can't be read is added to `left_out`."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        left_out.append(PictureError(f"{folder}: {error.strerror}"))
        return [], []
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    endings |= {".heic", ".heif", ".mpo"}  # to be named, or read as JPEG
    folders = [path for path in paths if os.path.isdir(path)]
    return [path for path in paths if path.suffix.lower() in endings and not os.path.isdir(path)], folders


def read_picture(path):
    """Any picture that Pillow reads -> uint8 [1, 3, 32, 32]: upright, its centre square, resized with antialiasing.

    Transparent parts become white. Raises PictureError where the file is missing, no picture, or too large.
    """
    content = b""
    try:
        content = command.read_bytes(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is odd in the file
            square = read_square(content)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} has over {2 * Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller first") from error
    except MemoryError as error:
        raise PictureError(f"{path} takes more memory than there is: make it smaller first") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} {describe_unknown(content)}") from error
    except Exception as error:  # Pillow's readers raise anything for a damaged file
        if isinstance(error, OSError) and error.filename:
            raise PictureError(f"{path}: {error.strerror}") from error
        reason = re.sub(r" ?<[^<>]* at 0x\w+>", "", str(error))  # an object in memory
        raise PictureError(f"{path} can't be read as a picture: {reason or type(error).__name__}") from error
    pixels = np.array(Image.alpha_composite(Image.new("RGBA", square.size, "white"), square).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def read_square(content):
    """The centre square of a picture, from its file's bytes: upright, an RGBA Image of 32x32."""
    if content[8:12] in HEIF:
        with contextlib.suppress(ImportError):  # Pillow's plugin for HEIC, if it is installed
            import pillow_heif

            pillow_heif.register_heif_opener()
    with Image.open(io.BytesIO(content)) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode.startswith("I") or picture.mode == "F":  # convert() would clip them at 255
            whites = (1, 255) if picture.mode == "F" else (65_535,)
            picture = Image.fromarray(to_bytes(np.asarray(picture, np.float64), whites))
        return ImageOps.fit(picture.convert("RGBA"), (32, 32), Image.Resampling.LANCZOS)


def describe_unknown(content):
    """What is wrong with a file that Pillow doesn't know, from its bytes."""
    kind = HEIF.get(content[8:12]) if content[4:8] == b"ftyp" else None
    if kind and f".{kind.split()[1].lower()}" not in Image.registered_extensions():
        plugin = "" if kind == "an AVIF" else ", or pip install pillow-heif"
        return f"is {kind} picture, which Pillow doesn't read: convert it to JPEG first{plugin}"
    return "is not a picture that Pillow reads"


def to_bytes(grey, whites):
    """Grey values [H, W] as uint8. White is the first of `whites` that none exceeds; raises ValueError where all are
    exceeded, since then nobody knows what is white."""
    for white in whites:
        if grey.min() >= 0 and grey.max() <= white:
            return (grey * (255 / white)).round().astype(np.uint8)
    raise ValueError(f"it has values from {grey.min():g} to {grey.max():g}, not from 0 to {whites[-1]:,}")


# Predicting and measuring.


def ask(name, model, classes, labels, images, device):
    """What a network with those classes says of pictures, uint8 [N, 3, 32, 32]; `labels` is a dict by their paths."""
    with torch.inference_mode():  # in fp32, as evaluate.infer, and a batch at a time on the device
        parts = [model.logits(batch.to(device)).float().log_softmax(dim=1).cpu() for batch in images.split(BATCH_SIZE)]
    numbers = [classes.index(label) if label in classes else -1 for label in labels.values()]
    predictions = Predictions(torch.cat(parts), torch.tensor(numbers))
    rows = [
        {
            "model": name,
            "file": str(path).encode(errors="backslashreplace").decode(),  # a name need not be text
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
    """The rows of summary.csv, dicts: how many labelled pictures are right, of all and of each class, with Wilson's 95%
    interval. Empty where none is labelled."""
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
    """Few pictures with the likeliest classes of each, more with a line each, but for a large labelled set; labelled
    ones also summed up."""
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
    """What labelled pictures are taken for, and how often they are right."""
    from sklearn.metrics import confusion_matrix  # takes as long to import as all the rest

    labels, predicted = answers.predictions.labels.numpy(), answers.predictions.classes()
    matrix = confusion_matrix(labels[labels >= 0], predicted[labels >= 0], labels=range(len(answers.classes)))
    rows = [[label, *map(str, counts)] for label, counts in zip(answers.classes, matrix) if counts.any()]
    print(f"\n{answers.model}: a row for each true class, a column for each predicted one")
    print(format_table([["", *answers.classes], *rows]))
    table = [["class", "pictures", "right", "accuracy", "95% interval"]]
    for row in [*summary[1:], summary[0]]:
        shares = f"{row['accuracy']:.2%}", f"{row['low']:.2%} to {row['high']:.2%}"
        table.append([row["class"], f"{row['pictures']:,}", f"{row['right']:,}", *shares])
    print(f"\n{format_table(table)}", flush=True)


def write_answers(answers, images, out_dir):
    """Write what each network says: predictions.csv, summary.csv if pictures are labelled, and a sheet for each."""
    runs.write_atomically(out_dir / PREDICTIONS, runs.csv_bytes([row for each in answers for row in each.rows]))
    if summary := [row for each in answers for row in summary_rows(each)]:
        runs.write_atomically(out_dir / SUMMARY, runs.csv_bytes(summary))
    else:
        (out_dir / SUMMARY).unlink(missing_ok=True)  # of other pictures
    for each in answers:
        path = out_dir / SHEET.format(each.model)
        runs.make_folder(path.parent)  # a run's name may have several parts
        draw_sheet(path, each, images)
    print(f"\nThe answers are in {command.printable(out_dir)}")


def draw_sheet(path, answers: Answers, images):
    """Pictures as the network gets them, uint8 [N, 3, 32, 32], each with its answer: at most DRAWN, evenly spaced."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), DRAWN)).round().astype(int)
    labels, right = answers.predictions.labels.numpy(), answers.predictions.right()
    columns, down, across = 8, 51, 40  # pixels from one picture to the next, its caption above it
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
    some = f": {len(chosen)} of {len(images):,} pictures, evenly spaced" if len(images) > len(chosen) else ""
    marked = "; wrong ones framed, in bold" if (labels >= 0).any() else ""
    figure.suptitle(
        f"{answers.model}, what it sees and says{some}\npredicted class and its probability{marked}", fontsize=10
    )
    plots.save(figure, path)


def shortened(text):
    """A caption's text, of a long one its end."""
    text = command.printable(text)
    return text if len(text) <= 17 else f"…{text[-16:]}"
