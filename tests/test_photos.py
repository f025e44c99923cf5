import dataclasses
import io
import os
import shutil
import sys
import types
import warnings
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, features
from sklearn.datasets import load_digits

import data
import evaluate
import models
import photos
import plots
import runs
from conftest import interrupted
from experiments import new_photographs


def picture_of(tmp_path, image, name="picture.png", **options):
    image.save(tmp_path / name, **options)
    picture = photos.read_picture(tmp_path / name)
    assert picture.shape == (1, 3, 32, 32) and picture.dtype == torch.uint8
    return picture[0]


def test_pictures_of_every_mode_and_size_are_read(tmp_path):
    palette = Image.new("P", (64, 64), 3)
    palette.putpalette([0, 0, 0] * 3 + [10, 200, 30])
    for image, colour in (
        (Image.new("L", (500, 300), 77), 77),
        (Image.new("L", (1, 1), 77), 77),
        (Image.new("RGBA", (64, 64), (9, 9, 9, 0)), 255),  # transparent is white
        (palette, (10, 200, 30)),
        (Image.new("I;16", (64, 64), 0x8080), 0x80),
        (Image.new("I", (9, 9), 0x8080), 0x80),
        (Image.new("F", (9, 9), 0.5), 128),
        (Image.new("F", (9, 9), 77), 77),
    ):
        picture = picture_of(tmp_path, image, "picture.tiff" if image.mode in "IF" else "picture.png")
        assert (picture == torch.tensor(colour).reshape(-1, 1, 1)).all(), image.mode
    for image in (Image.new("F", (9, 9), 300), Image.new("I", (9, 9), 2**30)):
        with pytest.raises(photos.PictureError, match="values from"):
            picture_of(tmp_path, image, "picture.tiff")


def test_a_picture_with_too_many_pixels_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(photos.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(photos.PictureError, match="over 2,000 pixels"):
        picture_of(tmp_path, Image.new("L", (50, 50)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture_of(tmp_path, Image.new("L", (40, 40)))


def test_the_centre_square_is_upright(tmp_path):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 50))
    wide.paste("lime", (100, 50, 200, 100))
    picture = picture_of(tmp_path, wide)
    assert picture[:, 4, 16].tolist() == [0, 0, 255] and picture[:, 28, 16].tolist() == [0, 255, 0]
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    turned = picture_of(tmp_path, wide, "turned.png", exif=exif)
    assert turned[:, 4, 16].tolist() == [0, 255, 0] and turned[:, 28, 16].tolist() == [0, 0, 255]


def test_shrinking_a_picture_averages_pixels(tmp_path):
    checkerboard = np.indices((320, 320)).sum(axis=0) % 2 * 255
    picture = picture_of(tmp_path, Image.fromarray(checkerboard.astype(np.uint8)))
    assert (picture[:, 4:-4, 4:-4].int() - 127).abs().max() <= 2


@pytest.fixture
def checkpoint(finished_run):
    """best.pt of a network trained on the digits."""
    return finished_run("dense")[0] / "best.pt"


def saved_probabilities(checkpoint):
    """The network's probabilities for the images of the test split [N, 10]."""
    return runs.read_arrays(checkpoint.parent / "predictions_test.npz", "probabilities")[0]


def test_pictures_are_classified_without_a_data_set(call, checkpoint, tmp_path):
    four = Image.fromarray((load_digits(n_class=5).images[4] * 15).astype(np.uint8))
    four.resize((800, 800)).convert("RGB").save(tmp_path / "photo.jpg")
    Image.new("RGBA", (40, 40), "black").save(tmp_path / "alpha.png")
    (tmp_path / "text.png").write_text("no picture")
    code, out, err = call(evaluate.main, checkpoint, "--image", "photo.jpg", "text.png", "alpha.png", "missing.png")
    assert code == 2, "some couldn't be read"
    problems = err.splitlines()
    assert len(problems) == 2 and "text.png" in problems[0] and "missing.png" in problems[1]
    tables = out.strip().split("\n\n")
    assert [table.splitlines()[0].split()[0] for table in tables] == ["photo.jpg", "alpha.png"]
    for table in tables:
        shares = [float(line.split()[1].rstrip("%")) for line in table.splitlines()[1:]]
        assert len(shares) == 5 and shares == sorted(shares, reverse=True) and sum(shares) <= 100.1
    assert tables[0].splitlines()[1].split()[0] == "4"


def save_digit(index, path, change=lambda image: image, **options):
    """Save an image of the digits' test split, after `change`, as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    change(Image.fromarray(digits().images[index].permute(1, 2, 0).numpy())).save(path, **options)
    return path


def digits():
    """The digits' test split."""
    return data.load_splits("digits", "", ["test"])["test"]


def digit_labels():
    return digits().labels.tolist()


def labelled_digits(folder, indices):
    """Save images of the digits' test split as folder/LABEL/INDEX.png, and return the paths."""
    labels = digit_labels()
    return [save_digit(index, folder / str(labels[index]) / f"{index:03}.png") for index in indices]


def rows_of(name):
    """The rows of a CSV file, as dicts."""
    return runs.read_rows(Path(name))


def test_a_labelled_folder_of_the_test_images_gives_the_test_accuracy(call, checkpoint, monkeypatch):
    batches = []
    logits = models.Network.logits
    monkeypatch.setattr(models.Network, "logits", lambda self, x: batches.append(len(x)) or logits(self, x))
    labelled_digits(Path("photos"), range(300))
    code, out, err = call(evaluate.main, checkpoint, "--image", "photos", "--out-dir", "seen")
    assert code == 0 and err == "" and not Path("data").exists()
    assert sum(batches) >= 300 and max(batches) <= 100, "in batches: a large folder would take too much memory"
    test = runs.read_metrics(checkpoint.parent)["test"]
    total, *by_class = rows_of("seen/summary.csv")
    assert (total["model"], total["class"], total["pictures"]) == ("dense", "all", "300")
    assert float(total["accuracy"]) == test["accuracy"] and int(total["right"]) == round(300 * test["accuracy"])
    assert [float(total["low"]), float(total["high"])] == test["accuracy_interval"]
    recalls = {label: values["recall"] for label, values in test["per_class"].items()}
    assert {row["class"]: float(row["accuracy"]) for row in by_class} == recalls
    lines = [line.split() for line in out.splitlines()]
    assert all([label, *map(str, row)] in lines for label, row in zip("0123456789", test["confusion_matrix"]))
    low, high = (f"{end:.2%}" for end in test["accuracy_interval"])
    assert ["all", "300", total["right"], f"{test['accuracy']:.2%}", low, "to", high] in lines
    assert ".png" not in out, "too many to be listed"
    rows = rows_of("seen/predictions.csv")
    expected = saved_probabilities(checkpoint)
    assert len(rows) == 300 and [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    for row in rows:
        shares = expected[int(Path(row["file"]).stem)]
        assert row["label"] == Path(row["file"]).parent.name and int(row["prediction"]) == shares.argmax()
        assert float(row["probability"]) == pytest.approx(shares.max(), abs=2e-6)


def turned(image):
    return image.transpose(Image.Transpose.ROTATE_90)


def enlarged(times, how):
    return lambda image: image.resize((32 * times, 32 * times), how)


UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 6  # to be rotated clockwise by 90 degrees
# Forms of the same picture: the file extension, what is done before saving, the options of Image.save.
EXACT = {
    "png": ("png", lambda image: image, {}),
    "grey": ("png", lambda image: image.convert("L"), {}),
    "opaque": ("png", lambda image: image.convert("RGBA"), {}),
    "palette": ("png", lambda image: image.convert("L").convert("P"), {}),
    "gif": ("GIF", lambda image: image.convert("L"), {}),
    "bmp": ("bmp", lambda image: image, {}),
    "tiff": ("tif", lambda image: image, {"compression": "tiff_deflate"}),
    "turned": ("png", turned, {"exif": UPRIGHT}),
    **({"webp": ("webp", lambda image: image, {"lossless": True})} if features.check("webp") else {}),
}
CLOSE = {
    "jpeg": ("JPG", lambda image: image, {"quality": 95}),
    "turned_jpeg": ("jpeg", lambda image: turned(enlarged(8, 2)(image)), {"quality": 97, "exif": UPRIGHT}),
    "nearest": ("png", enlarged(4, Image.Resampling.NEAREST), {}),
    "smooth": ("png", enlarged(25, Image.Resampling.BICUBIC), {}),
}


def test_a_picture_gets_the_same_prediction_in_every_form(call, checkpoint):
    labels, indices = digit_labels(), range(20)
    for index in indices:
        for form, (ending, change, options) in (EXACT | CLOSE).items():
            path = Path("photos", str(labels[index]), f"{form}-{index}.{ending}")
            save_digit(index, path, change, **options)
    code, out, err = call(evaluate.main, checkpoint, "--image", "photos", "--out-dir", "seen")
    assert code == 0 and err == ""
    expected = saved_probabilities(checkpoint)
    same = {}
    for row in rows_of("seen/predictions.csv"):
        form, _, index = Path(row["file"]).stem.partition("-")
        shares = expected[int(index)]
        same.setdefault(form, []).append(int(row["prediction"]) == shares.argmax())
        if form in EXACT:
            assert same[form][-1] and float(row["probability"]) == pytest.approx(shares.max(), abs=2e-6), form
    assert same.keys() == {*EXACT, *CLOSE} and all(len(each) == 20 for each in same.values())
    assert all(sum(same[form]) >= 18 for form in CLOSE), {form: sum(same[form]) for form in CLOSE}


def test_unknown_classes_and_unreadable_files_are_reported_and_skipped(call, checkpoint):
    labels = digit_labels()
    indices = [index for index, label in enumerate(labels) if label in (3, 7)][:8]
    assert {labels[index] for index in indices} == {3, 7}
    pictures = labelled_digits(Path("photos"), indices)
    save_digit(0, Path("photos/eleven/0.png"))
    Path("photos/3/damaged.png").write_bytes(pictures[0].read_bytes()[:100])
    Path("photos/3/notes.txt").write_text("no picture, and not called so")
    Path("photos/3/._0.png").write_text("what macOS leaves behind")
    Path("photos/5").mkdir()
    code, out, err = call(evaluate.main, checkpoint, "--image", "photos", "--out-dir", "seen")
    first, second = err.splitlines()
    assert code == 2 and "photos/eleven is skipped" in first and "photos/3/damaged.png can't be read" in second
    rows = rows_of("seen/summary.csv")
    counts = [str(sum(labels[index] == label for index in indices)) for label in (3, 7)]
    assert [(row["class"], row["pictures"]) for row in rows] == [("all", "8"), ("3", counts[0]), ("7", counts[1])]
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines if len(line) == 11] == ["3", "7"], "rows of the confusion table"
    verdicts = {line[0]: line[-1] for line in lines if line and line[-1] in ("right", "wrong")}
    predicted = {row["file"]: row["prediction"] == row["label"] for row in rows_of("seen/predictions.csv")}
    assert verdicts == {file: "right" if right else "wrong" for file, right in predicted.items()} and len(verdicts) == 8


def test_a_folder_stands_for_its_pictures(call, checkpoint):
    for index in range(6, 0, -1):
        save_digit(index, Path("photos", f"{index}.png"))
    Path("photos/notes.txt").write_text("no picture, and not called so")
    save_digit(0, Path("photos/more/0.png"))
    code, out, err = call(evaluate.main, checkpoint, "--image", "photos/5.png", "photos")
    assert code == 0 and err == ""
    header, *lines = out.strip().splitlines()
    assert [Path(line.split()[0]).stem for line in lines] == ["5", "1", "2", "3", "4", "6"], "each once"
    assert header.split() == ["picture", "dense", "probability"] and "right" not in out
    assert int(lines[1].split()[1]) == saved_probabilities(checkpoint)[1].argmax()
    Path("empty").mkdir()
    code, out, err = call(evaluate.main, checkpoint, "--image", "empty")
    assert code == 2 and out == "" and "empty contains no pictures" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["photo.jpg", "photo.heic"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "is a HEIC picture, which Pillow can't read: convert"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(50), "is a HEIF picture, which Pillow can't read: convert"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + bytes(50), "is an AVIF picture, which Pillow can't read: convert"),
        (b"no picture at all", "is not a picture that Pillow can read"),
        (b"", "is not a picture that Pillow can read"),
    ],
    ids=["heic", "heif", "avif", "text", "nothing"],
)
def test_unreadable_kinds_of_files_are_told_apart(call, checkpoint, name, content, reason, monkeypatch):
    without = {ending: kind for ending, kind in Image.registered_extensions().items() if kind not in ("AVIF", "HEIF")}
    monkeypatch.setattr(Image, "EXTENSION", without)
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind not in ("AVIF", "HEIF")])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    Path("photos").mkdir()
    Path("photos", name).write_bytes(content)
    save_digit(0, Path("photos/0.png"))
    code, out, err = call(evaluate.main, checkpoint, "--image", "photos")
    assert code == 2 and "0.png (dense)" in out and len(err.splitlines()) == 1
    assert f"photos/{name} {reason}" in err and "0x" not in err and "BytesIO" not in err


def test_a_pillow_plugin_is_used(call, checkpoint, monkeypatch):
    """A stand-in for pillow-heif reads a PNG after the header."""

    def open_behind(file, name):
        return Image.open(io.BytesIO(file.read()[12:]))

    def register_heif_opener():
        Image.register_open("HEIF", open_behind, lambda prefix: prefix[4:12] == b"ftypheic")

    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register_heif_opener))
    png = save_digit(0, Path("0.png")).read_bytes()
    Path("photo.heic").write_bytes(b"\0\0\0\x0cftypheic" + png)
    code, out, err = call(evaluate.main, checkpoint, "--image", "photo.heic", "0.png")
    first, second = out.strip().split("\n\n")
    assert code == 0 and err == "" and first.splitlines()[1:] == second.splitlines()[1:]


def test_a_picture_too_large_for_the_memory_is_reported(call, checkpoint, monkeypatch):
    def read_square(content):
        if content == large:
            raise MemoryError
        return original(content)

    original = photos.read_square
    monkeypatch.setattr(photos, "read_square", read_square)
    large = save_digit(0, Path("large.png")).read_bytes()
    save_digit(1, Path("1.png"))
    code, out, err = call(evaluate.main, checkpoint, "--image", "large.png", "1.png")
    assert code == 2 and "large.png needs more memory than there is" in err and len(err.splitlines()) == 1
    assert "1.png (dense)" in out


def test_predictions_are_written_for_every_network(call, checkpoint):
    for folder in ("a/run", "b/run"):
        Path(folder).mkdir(parents=True)
        shutil.copy(checkpoint, folder)
    paths = labelled_digits(Path("photos"), range(6))
    networks = ["a/run/best.pt", "b/run/best.pt"]
    code, out, err = call(evaluate.main, *networks, "--image", "photos", "--out-dir", "new/seen")
    assert code == 0 and err == "" and "new/seen" in out
    written = {path.relative_to("new/seen").as_posix() for path in Path("new/seen").rglob("*") if path.is_file()}
    assert written == {"predictions.csv", "summary.csv", "a/run_predictions.png", "b/run_predictions.png"}
    rows = rows_of("new/seen/predictions.csv")
    models_and_files = [(name, str(path)) for name in ("a/run", "b/run") for path in sorted(paths)]
    assert [(row["model"], row["file"]) for row in rows] == models_and_files
    assert [row["model"] for row in rows_of("new/seen/summary.csv") if row["class"] == "all"] == ["a/run", "b/run"]
    code, out, err = call(evaluate.main, networks[0], "--image", paths[0], "--out-dir", "new/seen")
    assert code == 0 and not Path("new/seen/summary.csv").exists(), "it was about other pictures"
    (row,) = rows_of("new/seen/predictions.csv")
    assert row["label"] == "" and row["model"] == "run" and Path("new/seen/run_predictions.png").exists()


@pytest.mark.pictures
def test_wrong_predictions_are_framed_on_the_sheet(call, checkpoint):
    right = saved_probabilities(checkpoint).argmax(axis=1) == digits().labels.numpy()
    paths = labelled_digits(Path("photos"), np.flatnonzero(right)[:120])
    shutil.copy(paths[0], Path("photos", str((int(paths[0].parent.name) + 1) % 10), "000.png"))
    frames, sizes = [], []
    for names in (paths[:9], ["photos"]):
        code, out, err = call(evaluate.main, checkpoint, "--image", *names, "--out-dir", "seen")
        assert code == 0 and err == ""
        with Image.open("seen/dense_predictions.png") as file:
            sheet = np.asarray(file)
        colour = [int(plots.ORANGE[place : place + 2], 16) for place in (1, 3, 5)]
        frames.append((sheet == colour).all(axis=2).sum())
        sizes.append(sheet.shape)
    assert frames[0] == 0 and frames[1] > 1000 and len(rows_of("seen/predictions.csv")) == 121
    assert sizes[0][:2] < sizes[1][:2] and sizes[1][0] < 3500, "a hundred of them"


def test_an_unusable_out_dir_is_rejected_before_anything_is_read(call, checkpoint):
    labelled_digits(Path("photos"), range(3))
    Path("file").touch()
    label = digit_labels()[0]
    for folder, reason in (
        ("file/folder", "can't be written"),
        ("photos", "is a folder of pictures"),
        (f"photos/{label}", "is a folder of pictures"),
    ):
        code, out, err = call(evaluate.main, checkpoint, "--image", "photos", "--out-dir", folder)
        assert code == 2 and out == "" and f"{folder} {reason}" in err and len(err.splitlines()) == 1
    assert not list(Path("photos").rglob("*.csv"))


def test_interrupted_writing_keeps_the_old_files(call, checkpoint, monkeypatch):
    labelled_digits(Path("photos"), range(7))
    assert call(evaluate.main, checkpoint, "--image", "photos", "--out-dir", "seen")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("seen").iterdir()}
    monkeypatch.setattr(runs.os, "fsync", interrupted)
    shutil.rmtree(sorted(Path("photos").iterdir())[0])
    assert call(evaluate.main, checkpoint, "--image", "photos", "--out-dir", "seen")[0] == 130
    assert {path.name: path.read_bytes() for path in Path("seen").iterdir()} == before


def test_a_checkpoint_given_last_is_not_taken_for_a_picture(call, checkpoint):
    shutil.copy(checkpoint, "best.pt")
    for index in range(3):
        save_digit(index, Path(f"{index}.png"))
    code, out, err = call(evaluate.main, "--image", "0.png", "best.pt")
    assert code == 0 and err == "" and out.startswith("\n0.png (")
    assert call(evaluate.main, "best.pt", "--image", "0.png")[1] == out
    code, out, err = call(evaluate.main, "--image", "[01].png", "*.pt")
    assert code == 0 and err == "" and "0.png" in out and "1.png" in out and "2.png" not in out
    code, out, err = call(evaluate.main, checkpoint, "--image", "0.png", "best.pt")
    assert code == 2 and "best.pt is not a picture" in err and "0.png (dense)" in out
    code, out, err = call(evaluate.main, "--image", "best.pt")
    assert code == 2 and out == "" and "--image" in err and len(err.splitlines()) == 1


def test_pictures_are_read_once_for_all_networks(call, checkpoint, monkeypatch):
    read_picture = Mock(wraps=photos.read_picture)
    monkeypatch.setattr(photos, "read_picture", read_picture)
    for name in ("one", "two", "broken"):
        Path("outs/exercise_04", name).mkdir(parents=True)
        shutil.copy(checkpoint, Path("outs/exercise_04", name))
    Path("outs/exercise_04/broken/best.pt").write_text("no checkpoint")
    save_digit(0, Path("0.png"))
    code, out, err = call(evaluate.main, "--image", "0.png", "0.png")
    assert out.count("0.png (one)") == out.count("0.png (two)") == 1 and read_picture.call_count == 1
    assert code == 2 and "broken/best.pt" in err and len(err.splitlines()) == 1


def test_labels_are_compared_with_each_networks_own_classes(call, checkpoint):
    names = ["zero", "one", *"23456789"]
    other = dataclasses.replace(runs.load_checkpoint(checkpoint), classes=names)
    Path("other").mkdir()
    runs.save_checkpoint(Path("other/best.pt"), other)
    labels = digit_labels()
    first, second = labels.index(1), labels.index(2)
    for index, name in ((first, "1"), (first, "one"), (second, "2")):
        save_digit(index, Path("photos", name, "picture.png"))
    code, out, err = call(evaluate.main, checkpoint, "other/best.pt", "--image", "photos", "--out-dir", "seen")
    assert code == 0 and err == "", "each folder is named after a class of one of them"
    counted = {}
    for row in rows_of("seen/summary.csv"):
        counted.setdefault(Path(row["model"]).name, []).append((row["class"], row["pictures"]))
    assert counted == {
        "dense": [("all", "2"), ("1", "1"), ("2", "1")],
        "other": [("all", "2"), ("one", "1"), ("2", "1")],
    }
    assert {row["prediction"] for row in rows_of("seen/predictions.csv")} <= {*names, "1"}


def test_control_characters_in_file_names_are_escaped_and_few_labelled_pictures_get_details(call, checkpoint):
    (path,) = labelled_digits(Path("photos"), [0])
    strange = path.rename(path.with_name("\x1b[2J\u202f.png"))
    path.with_name("\x1b[2Jbroken.png").touch()
    if sys.platform == "linux":  # where a name may be any bytes
        shutil.copy(strange, os.fsdecode(bytes(path.parent) + b"/\xff.png"))
    code, out, err = call(evaluate.main, checkpoint, "--image", "photos", "--out-dir", "seen")
    assert code == 2 and "\x1b" not in out + err and "\\x1b[2Jbroken.png" in err
    assert f"\\x1b[2J\\u202f.png (dense), label: {path.parent.name}\n" in out and "95% interval" in out
    assert str(strange) in [row["file"] for row in rows_of("seen/predictions.csv")], "in a file, as it is"


def test_new_photographs_are_the_tiles_that_are_not_in_cifar10(call, monkeypatch):
    def load_splits(dataset, data_dir):
        assert (dataset, str(data_dir)) == ("cifar10", "there")
        return {"test": data.as_split(known[:6], [0] * 6), "train": data.as_split(known[6:], [0] * 4)}

    monkeypatch.setattr(data, "load_splits", load_splits)
    classes = data.CLASSES["cifar10"]
    tiles = np.random.default_rng(0).integers(0, 256, (10, 2, 3, 32, 32, 3), dtype=np.uint8)
    known = np.stack([sheet.reshape(6, 32, 32, 3)[number % 6] for number, sheet in enumerate(tiles)])
    Path("sheets").mkdir()
    for number, (label, sheet) in enumerate(zip(classes, tiles)):
        pixels = np.full((67, 100, 3), 255, np.uint8)
        for row, column in np.ndindex(2, 3):
            pixels[1 + 33 * row : 33 + 33 * row, 1 + 33 * column : 33 + 33 * column] = sheet[row, column]
        Image.fromarray(pixels).save(Path("sheets", f"cinic-{label}.png" if number % 2 else f"{label}.png"))
    options = ["sheets", "--data-dir", "there", "--out", "new"]
    code, out, err = call(new_photographs.main, *options)
    assert code == 0 and err == "" and "5 of 6" in out
    for number, (label, sheet) in enumerate(zip(classes, tiles)):
        names = sorted(path.name for path in Path("new", label).iterdir())
        assert names == [f"{tile:03}.png" for tile in range(6) if tile != number % 6]
        with Image.open(Path("new", label, names[-1])) as picture:
            assert np.array_equal(picture, sheet.reshape(6, 32, 32, 3)[int(names[-1][:3])])
    Image.new("RGB", (66, 100)).save("sheets/ship.png")
    code, out, err = call(new_photographs.main, *options)
    assert code == 2 and "ship.png is not a sheet of tiles: 66x100 pixels" in err and len(err.splitlines()) == 1
    Path("sheets/ship.png").unlink()
    code, out, err = call(new_photographs.main, *options)
    assert code == 2 and "sheets holds neither ship.png nor" in err and len(err.splitlines()) == 1


def test_new_photographs_are_compared_with_the_test_split(finished_run, call, tmp_path):
    shutil.copytree(finished_run("dense")[0], tmp_path / "outs/exercise_04/dense")
    answers = [("0", "0"), ("0", "8"), ("0", "8"), ("1", "1")] + [(str(digit), str(digit)) for digit in range(2, 10)]
    rows = [{"model": "dense", "label": label, "prediction": answer} for label, answer in answers]
    runs.write_atomically(tmp_path / "predictions.csv", runs.csv_bytes(rows))
    assert call(new_photographs.main, "--answers", ".")[0] == 0
    accuracy = {row["class"]: row for row in runs.read_rows("outs/new_photographs/accuracy.csv")}
    assert float(accuracy["all"]["accuracy"]) == pytest.approx(10 / 12, abs=1e-6) and accuracy["0"]["pictures"] == "3"
    test = runs.read_metrics("outs/exercise_04/dense")["test"]
    assert float(accuracy["all"]["test_accuracy"]) == test["accuracy"]
    assert float(accuracy["1"]["test_accuracy"]) == test["per_class"]["1"]["recall"]
    first = runs.read_rows("outs/new_photographs/confusions.csv")[0]
    assert (first["class"], first["prediction"], float(first["share"])) == ("0", "8", pytest.approx(2 / 3, abs=1e-4))
    assert call(new_photographs.main)[0] == call(new_photographs.main, ".", "--answers", ".")[0] == 2
