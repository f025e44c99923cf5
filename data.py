"""The data sets: downloaded, verified, split, and held in memory as uint8.

CIFAR-10 (Krizhevsky 2009, "Learning multiple layers of features from tiny images"): 60,000 colour images of 32x32
pixels in ten exclusive classes. The official 50,000 training images are split into 45,000 for training and 5,000 for
validation; the official 10,000 test images are the test split.

scikit-learn's handwritten digits (1,797 images) need no download; they serve for a first try and for the tests.

torchvision and scikit-learn are imported inside functions: they take as long to import as everything else, and a
mistyped option should be reported at once.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import augmentation
import download
from augmentation import derived_seed
from download import DataError

CLASSES = {
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "digits": [str(digit) for digit in range(10)],
}
SPLIT_SEED = 0
VALIDATION, TEST, TOTAL = 5_000, 10_000, 60_000  # images of CIFAR-10; the digits are split in the same proportions
WARM_UP = 3  # the first epochs, which visit all images
EASY_EVERY = 3  # later, an easy image is visited in one of so many epochs


class Split(NamedTuple):
    """images: uint8 [N, 3, 32, 32], channels_last in memory; labels: int64 [N]; both on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def to(self, device):
        return Split(self.images.to(device), self.labels.to(device))


def load_splits(dataset, data_dir, names=("train", "validation", "test"), split_seed=SPLIT_SEED):
    """Load splits of a data set on the CPU, as a dict from name to Split.

    Training asks only for "train" and "validation", so that it can't see a test image. `split_seed`, which is not the
    training seed, decides which images are for validation. Raises DataError or OSError.
    """
    if dataset == "digits":
        splits = split_digits(split_seed)
    elif dataset == "cifar10":
        splits = read_cifar10(Path(data_dir), names, split_seed)
    else:
        raise DataError(f"there is no data set {dataset!r}, only {' and '.join(CLASSES)}")
    return {name: splits[name] for name in names}


def stratified(labels, size, split_seed):
    """Split sample indices into two sorted arrays, the second of length `size`, with all classes in proportion."""
    from sklearn.model_selection import train_test_split

    rest, drawn = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=split_seed)
    return np.sort(rest), np.sort(drawn)


def as_split(pixels, labels):
    """uint8 array [N, 32, 32, 3] and N integers -> Split."""
    pixels = np.ascontiguousarray(pixels)  # torchvision's have another memory order
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.as_tensor(labels, dtype=torch.int64))


def split_digits(split_seed):
    """scikit-learn's digits, 8x8 pixels from 0 to 16, resized to 32x32 RGB and split in CIFAR-10's proportions."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = [Image.fromarray((image * (255 / 16)).round().astype(np.uint8)) for image in digits.images]
    pixels = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR).convert("RGB")) for image in grey])
    labels, total = digits.target, len(digits.target)
    rest, test = stratified(labels, round(total * TEST / TOTAL), split_seed)
    train, validation = stratified(labels[rest], round(total * VALIDATION / TOTAL), split_seed)
    parts = {"train": rest[train], "validation": rest[validation], "test": test}
    return {name: as_split(pixels[part], labels[part]) for name, part in parts.items()}


def read_cifar10(data_dir, names, split_seed):
    """The splits of CIFAR-10 that `names` asks for, or more; the test batch is read only for "test"."""
    from torchvision.datasets import CIFAR10

    splits = {}
    with download.cifar10_root(data_dir) as root:
        try:
            if "test" in names:
                official = CIFAR10(root, train=False)
                splits["test"] = as_split(official.data, official.targets)
            if "train" in names or "validation" in names:
                official = CIFAR10(root, train=True)
                labels = np.array(official.targets)
                train, validation = stratified(labels, VALIDATION, split_seed)
                splits["train"] = as_split(official.data[train], labels[train])
                splits["validation"] = as_split(official.data[validation], labels[validation])
        except RuntimeError as error:  # torchvision doesn't say which file is damaged
            raise DataError(download.describe_damage(root / download.FOLDER)) from error
    return splits


def epoch_order(image_losses, skip_easy, seed, epoch):
    """Indices of the samples that an epoch visits, in order: int64 [M] on the device of `image_losses`, float32 [N].

    The first WARM_UP epochs visit all samples. After that, the share `skip_easy` with the lowest losses counts as easy,
    and an easy sample is visited in only one of EASY_EVERY epochs. (In Jordan's airbench96_faster, a smaller network
    decides which are easy; here, the losses of the last epochs do.) Only the losses, seed and epoch decide.
    """
    count = len(image_losses)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, epoch, "order")))
    if skip_easy and epoch > WARM_UP:
        easy = torch.zeros(count, dtype=torch.bool)
        easy[image_losses.cpu().argsort(stable=True)[: round(skip_easy * count)]] = True
        turns = torch.randint(
            0, EASY_EVERY, (count,), generator=torch.Generator().manual_seed(derived_seed(seed, 0, "easy"))
        )
        visited = ~easy | ((turns + epoch) % EASY_EVERY == 0)
        order = order[visited[order]]
    return order.to(image_losses.device)


def epochs_for_an_image(skip_easy, epochs):
    """How many of the epochs visit a sample, on average."""
    return epochs - skip_easy * (1 - 1 / EASY_EVERY) * max(0, epochs - WARM_UP)


def batches(split, order, batch_size, seed, epoch, augment=False, corrupt=None):
    """Yield (indices, images, labels) in the given order: int64 [batch_size], uint8 [batch_size, 3, 32, 32] and int64
    [batch_size]. Augmentation depends only on (seed, epoch); noise also on a batch's place in the order.

    `order`, int64 [M], is on the split's device. `corrupt` is a dict from a kind of corruption (augmentation.KINDS) to
    its share of the samples. The last batch is smaller if `batch_size` doesn't divide M.
    """
    count, device = len(split.labels), order.device
    if augment:
        flips, shifts, corners = (part.to(device) for part in augmentation.draw_changes(count, seed, epoch))
    if corrupt:
        kinds, strengths = (part.to(device) for part in augmentation.draw_corruptions(count, corrupt, seed, epoch))
    pixels = split.images.permute(0, 2, 3, 1)  # in memory order: each image is one block of bytes to copy
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        images = pixels.index_select(0, batch).permute(0, 3, 1, 2)
        if augment:
            images = augmentation.flip_and_shift(images, flips[batch], shifts[batch])
            images = augmentation.hide_square(images, corners[batch])
        if corrupt:
            noise_seed = derived_seed(seed, epoch, "noise", start)
            images = augmentation.corrupt(images, kinds[batch], strengths[batch], noise_seed)
        yield batch, images, split.labels[batch]


def examples(split, per_class):
    """The first `per_class` images of each class, uint8 [10, per_class, 3, 32, 32]."""
    return torch.stack([split.images[split.labels == label][:per_class] for label in range(10)])
