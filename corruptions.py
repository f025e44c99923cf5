"""Corruptions of test images, to measure robustness: functions, amounts and labels.

A new one is a function and an entry in CORRUPTIONS. The selection follows Hendrycks & Dietterich 2019
(arXiv:1903.12261), whose fifteen corruptions make up CIFAR-10-C.

torchvision is imported inside functions: it takes as long to import as everything else.
"""

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

MARGIN = 8  # pixels of reflection padding around images that are translated or rotated


def shifted(images, down, right):
    """Translate images, uint8 [N, 3, 32, 32], by up to MARGIN pixels; the border is filled by reflection."""
    from torchvision.transforms.v2.functional import crop, pad

    return crop(pad(images, [MARGIN], padding_mode="reflect"), MARGIN - down, MARGIN - right, *images.shape[2:])


def rotated(images, degrees):
    """Rotate images, uint8 [N, 3, 32, 32], counter-clockwise about their centre, with bilinear interpolation; the
    corners are filled by reflection (MARGIN is enough for any angle)."""
    from torchvision.transforms.v2.functional import InterpolationMode, center_crop, pad, rotate

    padded = pad(images, [MARGIN], padding_mode="reflect")
    return center_crop(rotate(padded, degrees, InterpolationMode.BILINEAR), list(images.shape[2:]))


def noisy(images, deviation):
    """Add Gaussian noise with that standard deviation, in grey levels, to uint8 images; the same in every call."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    return (images + deviation * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images, deviation):
    """Blur images, uint8 [N, 3, H, W], with a Gaussian of that standard deviation, in pixels."""
    from torchvision.transforms.v2.functional import gaussian_blur

    side = 2 * math.ceil(3 * deviation) + 1
    return gaussian_blur(images, [side, side], [deviation, deviation])


def without_contrast(images, share):
    """Move all pixels of images, uint8 [N, 3, H, W], that share of the way to the mean grey level of their image."""
    from torchvision.transforms.v2.functional import adjust_contrast

    return adjust_contrast(images, 1 - share)


def compressed(images, loss):
    """Compress images, uint8 [N, 3, H, W], as JPEG with a quality of 100 - `loss`, and decode them again."""
    pixels = []
    for image in images.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=100 - loss)
        pixels.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(images.device)


class Corruption(NamedTuple):
    """apply(images, amount) -> list of uint8 [N, 3, H, W], one for each direction: a shift has four, noise has one."""

    label: str  # what the amounts are, for figures
    amounts: tuple[float, ...]
    apply: Callable[[torch.Tensor, float], list[torch.Tensor]]


CORRUPTIONS = {
    "shift": Corruption(
        "shift in pixels",
        (1, 2, 4, 8),
        lambda images, pixels: [
            shifted(images, pixels * down, pixels * right) for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1))
        ],
    ),
    "rotation": Corruption(
        "rotation in degrees",
        (10, 20, 30, 60, 90),
        lambda images, degrees: [rotated(images, degrees), rotated(images, -degrees)],
    ),
    "noise": Corruption("noise, std. in grey levels", (2, 5, 10, 20, 40), lambda *each: [noisy(*each)]),
    "blur": Corruption("blur, std. in pixels", (0.5, 1.0, 2.0), lambda *each: [blurred(*each)]),
    "contrast": Corruption("lost share of contrast", (0.25, 0.5, 0.75), lambda *each: [without_contrast(*each)]),
    "jpeg": Corruption("JPEG quality", (20, 50, 80), lambda *each: [compressed(*each)]),
}


def label(kind):
    """The label of a corruption's amounts, or its name if it is unknown here."""
    return CORRUPTIONS[kind].label if kind in CORRUPTIONS else kind


def format_amount(kind, amount):
    """An amount as text for readers: for JPEG the quality, of which the amount is the difference from 100."""
    if kind == "jpeg":
        return f"{100 - amount:g}" if amount else "none"
    return f"{amount:g}"
