import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

import augmentation
import data
import download
import models

LAST_MIRROR = download.MIRRORS[-1]  # the no_network fixture replaces the list


def a_split(count=100):
    """Images with their index in the first pixel."""
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return data.Split(images, torch.arange(count))


def test_digits_are_split_without_overlap_in_cifar10s_proportions():
    splits = data.load_splits("digits", "nowhere")
    sizes = {name: len(split.labels) for name, split in splits.items()}
    assert sizes == {"train": 1347, "validation": 150, "test": 300}
    for split in splits.values():
        assert split.images.shape[1:] == (3, 32, 32) and split.images.dtype == torch.uint8
        assert split.images.is_contiguous(memory_format=torch.channels_last)
        counts = torch.bincount(split.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.1 * counts.sum() / 10 + 2, "stratified"
    seen = [image.numpy().tobytes() for split in splits.values() for image in split.images]
    assert len(set(seen)) == len(seen) == 1797


def test_split_seed_decides_the_validation_images():
    first, same, other = (data.load_splits("digits", "", ["validation"], seed)["validation"] for seed in (0, 0, 1))
    assert torch.equal(first.images, same.images) and not torch.equal(first.images, other.images)


def test_split_is_the_same_everywhere():
    """A checkpoint stores only the split seed, so the split must not depend on the version of scikit-learn."""
    train, validation = data.stratified(np.arange(50_000) % 10, data.VALIDATION, 0)
    assert hashlib.md5(validation.astype("<i8").tobytes()).hexdigest() == "97ff54045dafde48c1dbda165d5e9ae7"
    assert len(train) == 45_000 and not set(train) & set(validation)


def test_each_epoch_visits_every_image_once_in_its_own_order():
    split = a_split()
    orders = {}
    for seed, epoch in ((0, 1), (0, 2), (1, 1)):
        order = data.epoch_order(torch.zeros(100), 0, seed, epoch)
        visited = list(data.batches(split, order, 32, seed, epoch))
        assert [len(labels) for _, _, labels in visited] == [32, 32, 32, 4]
        for indices, images, labels in visited:
            assert torch.equal(images[:, 0, 0, 0].long(), labels) and torch.equal(indices, labels), "of the same images"
        order = torch.cat([labels for _, _, labels in visited])
        assert torch.equal(order.sort().values, split.labels)
        assert torch.equal(order, data.epoch_order(torch.zeros(100), 0, seed, epoch))
        orders[seed, epoch] = tuple(order.tolist())
    assert len(set(orders.values())) == 3


def test_easy_images_are_visited_in_every_third_epoch():
    """Easy images are those with the lowest losses, from the fourth epoch on."""
    losses = torch.arange(300.0)
    visits = torch.zeros(300, dtype=torch.int64)
    assert len(data.epoch_order(losses, 2 / 3, 0, 3)) == 300
    for epoch in range(4, 10):
        order = data.epoch_order(losses, 2 / 3, 0, epoch)
        assert 100 < len(order) < 200 and len(order.unique()) == len(order)
        visits[order] += 1
    assert (visits[:200] == 2).all() and (visits[200:] == 6).all()
    assert 3 + visits.double().mean() == pytest.approx(data.epochs_for_an_image(2 / 3, 9))


def test_cutout_covers_the_given_square():
    images = torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)
    hidden = augmentation.hide_square(images, torch.tensor([[0, 0], [22, 5]])) == augmentation.GREY
    assert hidden[0, :, :10, :10].all() and hidden[1, :, 22:, 5:15].all()
    assert hidden.sum() == 2 * 3 * augmentation.HIDDEN**2


def test_augmentation_flips_and_translates_as_given():
    images = torch.randint(1, 256, (4, 3, 32, 32), dtype=torch.uint8)
    flips = torch.tensor([False, True, False, True])
    shifts = torch.tensor([[0, 0], [0, 0], [2, -1], [-1, 2]])
    result = augmentation.flip_and_shift(images, flips, shifts)
    assert torch.equal(result[0], images[0])
    assert torch.equal(result[1], images[1].flip(-1))
    padded = np.pad(images, [(0, 0), (0, 0), (2, 2), (2, 2)], mode="reflect")
    assert np.array_equal(result[2], padded[2, :, :32, 3:35]), "2 down, 1 to the left"
    mirrored = np.pad(images.flip(-1), [(0, 0), (0, 0), (2, 2), (2, 2)], mode="reflect")
    assert np.array_equal(result[3], mirrored[3, :, 3:35, :32]), "flipped, then 1 up, 2 to the right"


def test_augmentation_depends_on_image_epoch_and_seed_only():
    split = data.Split(torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8), torch.arange(64))

    def epoch(number, seed=0):
        return next(data.batches(split, torch.arange(64), 64, seed, number, augment=True))[1]

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2)) and not torch.equal(epoch(1), epoch(1, seed=1))
    changed = (epoch(1) != split.images).flatten(1).any(dim=1)
    assert changed.sum() > 55, "almost every image"


def test_each_image_is_flipped_in_every_other_epoch(monkeypatch):
    monkeypatch.setattr(augmentation, "MAX_SHIFT", 0)
    monkeypatch.setattr(augmentation, "HIDDEN", 0)
    split = data.Split(torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8), torch.arange(64))
    mirrored = []
    for number in (1, 2, 3):
        _, images, labels = next(data.batches(split, torch.arange(64), 64, 0, number, augment=True))
        flips = (images == split.images[labels].flip(-1)).flatten(1).all(dim=1)
        assert torch.equal(images[~flips], split.images[labels][~flips])
        mirrored.append(flips[labels.argsort()])
    assert torch.equal(mirrored[0], ~mirrored[1]) and torch.equal(mirrored[0], mirrored[2])
    assert 16 < mirrored[0].sum() < 48, "half of them in one epoch, half in the next"


FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """A folder with files in CIFAR-10's format, with ten images each, and torchvision set to expect their MD5s."""
    folder = tmp_path / "small" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate(FILES[:-1]):
        pixels = np.full((10, 3072), 10 * number, np.uint8) + np.arange(10, dtype=np.uint8)[:, None]
        batch = {"data": pixels, "labels": list(range(10))}  # each pixel: ten times the file's number, plus the label
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": data.CLASSES["cifar10"]}))
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in FILES}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in FILES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    return folder.parent


@pytest.fixture
def small_archive(small_cifar10, tmp_path, monkeypatch):
    """The same folder as a cifar-10-python.tar.gz that is accepted as the official one."""
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(small_cifar10 / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(download, "ARCHIVE_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def folder_with_archive(small_archive, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(small_archive, tmp_path / "data")
    return tmp_path / "data"


def test_archive_in_a_relative_data_folder_is_extracted(folder_with_archive, monkeypatch):
    (folder_with_archive / ".extracting").mkdir()
    (folder_with_archive / ".extracting" / "data_batch_1").write_text("half")  # left by a kill
    monkeypatch.chdir(folder_with_archive)
    test = data.load_splits("cifar10", ".", ["test"])["test"]
    assert test.labels.tolist() == list(range(10)) and (test.images // 10 == 5).all()
    names = {path.name for path in folder_with_archive.iterdir()}
    assert names - {".lock"} == {"cifar-10-batches-py", "cifar-10-python.tar.gz"}


def test_archive_is_downloaded_once_and_split(small_archive, tmp_path, monkeypatch):
    def fetch_archive(archive):
        fetched.append(archive)
        shutil.copy(small_archive, archive)

    fetched = []
    monkeypatch.setattr(download, "fetch_archive", fetch_archive)
    monkeypatch.setattr(data, "VALIDATION", 10)
    for _ in range(2):
        splits = data.load_splits("cifar10", tmp_path / "new")
        sizes = {name: len(split.labels) for name, split in splits.items()}
        assert sizes == {"train": 40, "validation": 10, "test": 10}
        assert all(torch.equal(split.images[:, 0, 0, 0] % 10, split.labels) for split in splits.values())
    assert fetched == [tmp_path / "new" / "cifar-10-python.tar.gz"]


def test_archive_in_a_read_only_folder_is_read(folder_with_archive, monkeypatch):
    def refuse(path, *arguments):  # root ignores permissions
        raise PermissionError(13, "Permission denied", str(path))

    mkdir = Path.mkdir
    monkeypatch.setattr(
        Path, "mkdir", lambda path, *args, **kwargs: (mkdir if kwargs else refuse)(path, *args, **kwargs)
    )
    assert len(data.load_splits("cifar10", folder_with_archive, ["test"])["test"].labels) == 10
    assert not (folder_with_archive / "cifar-10-batches-py").exists()


def test_batch_folder_is_found_directly_or_one_level_down(small_cifar10, tmp_path):
    assert len(data.load_splits("cifar10", small_cifar10 / "cifar-10-batches-py", ["test"])["test"].labels) == 10
    (tmp_path / "nested").mkdir()
    shutil.copytree(small_cifar10, tmp_path / "nested" / "cifar-10-batches-py")
    assert len(data.load_splits("cifar10", tmp_path / "nested", ["test"])["test"].labels) == 10


def test_damaged_archive_is_named(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"not the archive")
    with pytest.raises(data.DataError, match=r"cifar-10-python\.tar\.gz is damaged"):
        data.load_splits("cifar10", tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_each_missing_or_damaged_data_file_is_named(small_cifar10, name):
    path = small_cifar10 / "cifar-10-batches-py" / name
    whole = path.read_bytes()
    path.unlink()
    for content, word in ((None, "missing"), (whole[:-1], "damaged"), (whole[:-1] + bytes([whole[-1] ^ 1]), "damaged")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(data.DataError) as refused:
            data.load_splits("cifar10", small_cifar10, ("train", "validation"))
        message = str(refused.value)
        assert f"{name} is {word}" in message and "\n" not in message
        assert [other for other in FILES if f"/{other} is" in message] == [name]


# From here on, tests of the real CIFAR-10.


def test_download_matches_what_torchvision_expects():
    expected = CIFAR10.base_folder, CIFAR10.filename, CIFAR10.tgz_md5, CIFAR10.url
    assert expected == (download.FOLDER, download.ARCHIVE, download.ARCHIVE_MD5, LAST_MIRROR)


def test_cifar10_is_split_45000_5000_10000(cifar10_dir):
    splits = data.load_splits("cifar10", cifar10_dir)
    for name, per_class in (("train", 4500), ("validation", 500), ("test", 1000)):
        split = splits[name]
        assert split.images.shape == (10 * per_class, 3, 32, 32) and split.images.dtype == torch.uint8
        assert split.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.bincount(split.labels).tolist() == [per_class] * 10
    official = CIFAR10(cifar10_dir, train=True).data
    seen = np.concatenate([splits[name].images.permute(0, 2, 3, 1).numpy() for name in ("train", "validation")])
    assert sorted(map(bytes, seen)) == sorted(map(bytes, official)), "together, they are the official training images"
    # Published for the official 50,000: mean 125.3, 123.0, 113.9 and std 63.0, 62.1, 66.7.
    mean, std = models.channel_statistics(splits["train"].images)
    np.testing.assert_allclose(mean, [125.3, 123.0, 113.9], atol=0.3)
    np.testing.assert_allclose(std, [63.0, 62.1, 66.7], atol=0.3)
