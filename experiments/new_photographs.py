"""How well do the networks do on photographs that weren't collected with CIFAR-10's?

Usage:

    python -m experiments.new_photographs SHEETS [--out FOLDER]
    python evaluate.py --image FOLDER --out-dir ANSWERS
    python -m experiments.new_photographs --answers ANSWERS

The last command compares with the test split. It writes to outs/new_photographs/: accuracy.csv, by network and class,
with its picture, and confusions.csv, with those confusions whose share is largest compared with the test split.

SHEETS is a folder with the sample sheets of CINIC-10 (Darlow, Crowley, Antoniou & Storkey 2018, arXiv:1810.03505),
from images/ of github.com/BayesWatch/cinic-10: airplane.png or cinic-airplane.png and so on. A sheet is a grid of 32x32
tiles with lines of one pixel around them. Tiles that equal an image of CIFAR-10 byte for byte are skipped. The others
are photographs from ImageNet, and go to FOLDER/CLASS/NUMBER.png; NUMBER counts the tiles of the sheet row by row.

They are a test set: no epoch and no recipe is chosen by them.
"""

import command

if __name__ == "__main__":
    command.start()


import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import data
import photos
import plots
import runs
from experiments import NEW_ACCURACY, NEW_CONFUSIONS, pictures
from metrics import rounded, wilson_interval

SIDE, LINE = 32, 1  # pixels: the side of a tile, the width of a line


class SheetError(command.UserError):
    """A sheet that is missing, or a file that isn't one."""


def main(argv=None):
    parser = command.Parser(description="Cut CINIC-10's sample sheets into labelled pictures, skipping CIFAR-10's.")
    parser.add_argument("sheets", type=Path, nargs="?", help="folder with the sheets")
    parser.add_argument("--answers", type=Path, help="folder with evaluate.py's predictions.csv: compare instead")
    parser.add_argument("--out", type=Path, default=Path("data/new_photographs"), help="(default: %(default)s)")
    parser.add_argument("--data-dir", type=Path, default=command.DEFAULT_DATA_DIR, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    if (arguments.sheets is None) == (arguments.answers is None):
        raise command.UsageError("give either the folder with the sheets or --answers")
    if arguments.answers:
        compare_with_test_split(arguments.answers, Path("outs/new_photographs"))
    else:
        cut(arguments)


def cut(arguments):
    sheets = {label: read_tiles(find_sheet(arguments.sheets, label)) for label in data.CLASSES["cifar10"]}
    known = known_images(arguments.data_dir)
    for label, tiles in sheets.items():
        new = {number: tile for number, tile in enumerate(tiles) if tile.tobytes() not in known}
        runs.make_folder(arguments.out / label)
        for number, tile in new.items():
            runs.write_atomically(arguments.out / label / f"{number:03}.png", png_bytes(tile))
        print(f"{label:<12}{len(new):4} of {len(tiles)} tiles are new")


def compare_with_test_split(answers, folder, confusions_of_each=8):
    """Write accuracy.csv and confusions.csv to a folder, and draw the picture, for all runs in predictions.csv, which
    have to be in outs/exercise_04. Pictures without a label don't count."""
    accuracy, confusions = [], []
    labelled = [row for row in runs.read_rows(answers / photos.PREDICTIONS, "model", "prediction") if row["label"]]
    for model, rows in plots.grouped(labelled, "model").items():
        test = runs.read_metrics(runs.DEFAULT_OUT_DIR["cifar10"] / model)["test"]
        classes = [*test["per_class"]]
        recall = {"all": test["accuracy"]} | {label: values["recall"] for label, values in test["per_class"].items()}
        for label, on_test in recall.items():
            answered = [row["prediction"] for row in rows if label in ("all", row["label"])]
            if not answered:
                continue
            right = sum(row["prediction"] == row["label"] for row in rows if label in ("all", row["label"]))
            low, high = wilson_interval(right, len(answered))
            line = {"model": model, "class": label, "pictures": len(answered), "accuracy": right / len(answered)}
            accuracy.append(rounded(line | {"low": low, "high": high, "test_accuracy": on_test}))
            if label != "all":
                matrix_row = np.array(test["confusion_matrix"][classes.index(label)])
                confusions += [
                    {
                        "model": model,
                        "class": label,
                        "prediction": other,
                        "share": round(answered.count(other) / len(answered), 4),
                        "test_share": round(count / matrix_row.sum(), 4),
                    }
                    for other, count in zip(classes, matrix_row)
                    if other != label
                ]
    runs.make_folder(folder)
    runs.write_atomically(folder / NEW_ACCURACY, runs.csv_bytes(accuracy))
    confusions.sort(key=lambda row: row["test_share"] - row["share"])
    kept = [row for rows in plots.grouped(confusions, "model").values() for row in rows[:confusions_of_each]]
    runs.write_atomically(folder / NEW_CONFUSIONS, runs.csv_bytes(kept))
    pictures.draw_new_photographs(folder)


def find_sheet(folder, label):
    """The path of a class's sheet; raises SheetError if there is none."""
    for path in (folder / f"{label}.png", folder / f"cinic-{label}.png"):
        if path.exists():
            return path
    raise SheetError(f"{folder} holds neither {label}.png nor cinic-{label}.png")


def read_tiles(path):
    """The tiles of a sheet, row by row, uint8 [N, 32, 32, 3]. Raises SheetError or OSError."""
    try:
        with Image.open(io.BytesIO(command.read_bytes(path))) as file:
            sheet = np.asarray(file.convert("RGB"))
    except Exception as error:  # Pillow can raise anything for a damaged file
        if isinstance(error, OSError) and error.filename:
            raise
        raise SheetError(f"{path} can't be read as a picture") from error
    step = SIDE + LINE
    rows, columns = (length // step for length in sheet.shape[:2])
    if sheet.shape[:2] != (rows * step + LINE, columns * step + LINE):
        raise SheetError(f"{path} is not a sheet of tiles: {sheet.shape[1]}x{sheet.shape[0]} pixels")
    tiles = sheet[LINE:, LINE:].reshape(rows, step, columns, step, 3)[:, :SIDE, :, :SIDE]
    return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3)


def known_images(data_dir):
    """All images of CIFAR-10, as a set of bytes in the order [32, 32, 3]."""
    splits = data.load_splits("cifar10", data_dir)
    return {image.tobytes() for split in splits.values() for image in split.images.permute(0, 2, 3, 1).numpy()}


def png_bytes(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="png")
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(command.run_command(main))
