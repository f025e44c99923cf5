"""Corruptions: how test images are changed to measure robustness, by which amounts, and what that is called.

A new one is a function and an entry in CORRUPTIONS. They are chosen after Hendrycks & Dietterich 2019
(arXiv:1903.12261), whose fifteen CIFAR-10-C has.

torchvision is imported by the functions that use it: it takes as long to import as all the rest.
"""

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

MARGIN = 8  # pixels by which images are continued outwards, as a mirror would, before they are moved or turned


def shifted(images, down, right):
    """Move images, uint8 [N, 3, 32, 32], by up to MARGIN pixels; the edges are padded by reflection."""
    from torchvision.transforms.v2.functional import crop, pad

    return crop(pad(images, [MARGIN], padding_mode="reflect"), MARGIN - down, MARGIN - right, *images.shape[2:])


def rotated(images, degrees):
    """Turn images, uint8 [N, 3, 32, 32], counter-clockwise about their centre, with bilinear interpolation; what comes
    in at the corners is padded by reflection (MARGIN is enough for any angle)."""
    from torchvision.transforms.v2.functional import InterpolationMode, center_crop, pad, rotate

    padded = pad(images, [MARGIN], padding_mode="reflect")
    return center_crop(rotate(padded, degrees, InterpolationMode.BILINEAR), list(images.shape[2:]))


def noisy(images, deviation):
    """Add Gaussian noise of that standard deviation, in pixel units, the same at every call, to images, uint8."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    return (images + deviation * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images, deviation):
    """Blur images, uint8 [N, 3, H, W], by a Gaussian of that standard deviation in pixels."""
    from torchvision.transforms.v2.functional import gaussian_blur

    side = 2 * math.ceil(3 * deviation) + 1
    return gaussian_blur(images, [side, side], [deviation, deviation])


def without_contrast(images, share):
    """Move the pixels of images, uint8 [N, 3, H, W], by that share of the way to their image's mean grey."""
    from torchvision.transforms.v2.functional import adjust_contrast

    return adjust_contrast(images, 1 - share)


def compressed(images, loss):
    """Compress images, uint8 [N, 3, H, W], as JPEG of the quality 100 - `loss`, and read them again."""
    pixels = []
    for image in images.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=100 - loss)
        pixels.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(images.device)


class Corruption(NamedTuple):
    """apply(images, amount) -> list of uint8 [N, 3, H, W]: one for each direction in which that amount can go."""

    label: str  # of the amounts
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
    """What the amounts of a corruption are; its name for one that isn't known here."""
    return CORRUPTIONS[kind].label if kind in CORRUPTIONS else kind


def format_amount(kind, amount):
    """An amount as a reader expects it; JPEG's is what its quality lacks to 100."""
    if kind == "jpeg":
        return f"{100 - amount:g}" if amount else "none"
    return f"{amount:g}"
