"""Augmentation of the training images, different in each epoch: flips, translations, cutout, corruption of some images.

Everything works on a whole batch at once, on its device. The random numbers are a function of (seed, epoch), those
of noise of the batch's place in the epoch too, so that resuming needs no generator state. All but the noise itself are
drawn on the CPU, so that they are the same on every device.
"""

import functools
import io
import math

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

MAX_SHIFT, HIDDEN, GREY = 4, 10, 120  # --augment: largest translation, side of the cutout (pixels), its grey level
# What random numbers are drawn for. Flips (drawn once, as if in epoch 0) share a number with the order of the epochs.
PURPOSES = {"order": 1, "flips": 1, "dropout": 2, "shifts": 3, "easy": 4, "corruption": 5, "noise": 6}


def derived_seed(seed, epoch, purpose, *more):
    """A well-mixed seed for one purpose in one epoch, so that the random numbers of each are independent."""
    numbers = np.random.SeedSequence((seed, epoch, PURPOSES[purpose], *more))
    return int(numbers.generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw_changes(count, seed, epoch):
    """Draw each sample's augmentation in an epoch: flips, bool [N]; translations and cutout corners, int64 [N, 2]."""
    generator = torch.Generator().manual_seed(derived_seed(seed, 0, "flips"))
    flips = torch.randint(0, 2, (count,), generator=generator, dtype=torch.bool)
    # Each image alternates between the original and its mirror image: with independent flips, half of the images would
    # look the same as in the previous epoch (Jordan 2024, arXiv:2404.00498).
    flips ^= epoch % 2 == 1
    generator.manual_seed(derived_seed(seed, epoch, "shifts"))
    shifts = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (count, 2), generator=generator)
    return flips, shifts, torch.randint(0, 32 - HIDDEN + 1, (count, 2), generator=generator)


def flip_and_shift(images, flips, shifts):
    """Flip images horizontally where `flips` (bool [N]) is set, then translate by `shifts` (int64 [N, 2]: down, right).

    uint8 [N, 3, H, W] in and out. The border is filled by reflection.
    """
    count, _, height, width = images.shape
    rows = reflected(torch.arange(height, device=images.device) - shifts[:, :1], height)
    columns = reflected(torch.arange(width, device=images.device) - shifts[:, 1:], width)
    columns = torch.where(flips[:, None], width - 1 - columns, columns)
    samples = torch.arange(count, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def hide_square(images, corners):
    """Cutout (DeVries & Taylor 2017, arXiv:1708.04552): cover a square of each image, uint8 [N, 3, H, W], with grey.
    `corners`, int64 [N, 2], gives its top left pixel: row, column."""
    inside = []
    for axis in (0, 1):
        places = torch.arange(images.shape[2 + axis], device=images.device) - corners[:, [axis]]
        inside.append((places >= 0) & (places < HIDDEN))
    rows, columns = inside
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], GREY)


def reflected(positions, size):
    """Reflect positions outside [0, size) back inside, at the first or last one; they must be less than `size` away."""
    positions = positions.abs()
    return torch.where(positions < size, positions, 2 * (size - 1) - positions)


def draw_corruptions(count, shares, seed, epoch):
    """Draw the corruption of each sample in an epoch: kinds, int64 [N], an index into KINDS or len(KINDS) for none, and
    strengths, float32 [N, 4], uniform from 0 to 1. `shares` is a dict from a kind to its share of the samples."""
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch, "corruption"))
    limits = torch.tensor([shares.get(kind, 0.0) for kind in KINDS]).cumsum(dim=0)
    kinds = torch.searchsorted(limits, torch.rand(count, generator=generator), right=True)
    return kinds, torch.rand(count, 4, generator=generator)


def corrupt(images, kinds, strengths, noise_seed):
    """Corrupt each image, uint8 [N, 3, H, W], by its kind and strengths: see draw_corruptions."""
    generator = torch.Generator(images.device).manual_seed(noise_seed)
    result = images.clone()
    for number, change in enumerate(KINDS.values()):
        chosen = (kinds == number).nonzero()[:, 0]
        if len(chosen):
            changed = change(images[chosen].float(), strengths[chosen].T[:, :, None, None, None], generator)
            result[chosen] = changed.round().clamp(0, 255).to(torch.uint8)
    return result


# Each takes float32 images [N, 3, H, W] and strengths [4, N, 1, 1, 1]. corrupt() clamps the results to 0 to 255.


def add_noise(images, strengths, generator):
    """Gaussian noise with a standard deviation of up to 50 grey levels, weak more often than strong."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return images + 50 * strengths[0] ** 1.5 * noise


def blur(images, strengths, generator):
    """Gaussian blur with a standard deviation of 0.3 to 2 pixels, as a matrix product along columns and rows."""
    places = torch.arange(images.shape[2], device=images.device)
    squares = (places[:, None] - places).square()
    weights = torch.exp(-squares / (2 * (0.3 + 1.7 * strengths[0]) ** 2))
    weights = weights / weights.sum(dim=3, keepdim=True)
    return weights @ images @ weights.transpose(2, 3)


def change_contrast(images, strengths, generator):
    """Scale the contrast by 0.2 to 1, and change the brightness by up to 40 grey levels."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * 0.2 ** strengths[0] + 40 * (2 * strengths[1] - 1)


def warp(images, strengths, generator):
    """Rotate by up to 35 degrees, zoom by a factor of up to 1.15, and shear; the border is filled by reflection."""
    angle, zoom, shear, _ = (2 * strengths[:, :, 0, 0, 0] - 1).unbind()
    angle, zoom = math.radians(35) * angle, 1.15**zoom
    first_row = torch.stack([zoom * angle.cos(), 0.2 * shear - zoom * angle.sin(), torch.zeros_like(angle)], dim=1)
    second_row = torch.stack([zoom * angle.sin(), zoom * angle.cos(), torch.zeros_like(angle)], dim=1)
    grid = affine_grid(torch.stack([first_row, second_row], dim=1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def compress(images, strengths, generator):
    """JPEG compression with a quality of 10 to 80: luma, and chroma at half the resolution, with the DCT coefficients
    of each block of 8x8 pixels quantised. H and W are multiples of 16."""
    quality = 10 + 70 * strengths[0]
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)  # of the quantisation steps, as in libjpeg
    to_ycbcr = images.new_tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ycbcr = torch.einsum("kc,nchw->nkhw", to_ycbcr, images - 128)
    luma_steps, chroma_steps = quantisation_steps().to(images.device)
    luma = quantise(ycbcr[:, :1], scale * luma_steps)
    chroma = quantise(avg_pool2d(ycbcr[:, 1:], 2), scale * chroma_steps)
    ycbcr = torch.cat([luma, interpolate(chroma, scale_factor=2, mode="bilinear")], dim=1)
    return torch.einsum("ck,nkhw->nchw", to_ycbcr.inverse(), ycbcr) + 128


@functools.cache
def quantisation_steps():
    """JPEG's quantisation steps for luma and for chroma at quality 50, float32 [2, 8, 8], from Pillow."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "jpeg", quality=50)
    return torch.tensor(list(Image.open(file).quantization.values()), dtype=torch.float32).reshape(2, 8, 8)


def quantise(channels, steps):
    """Round the DCT coefficients of each block of 8x8 pixels of `channels`, float32 [N, C, H, W], to multiples of
    `steps`, [N, 1, 8, 8], themselves rounded to whole numbers from 1."""
    rows = torch.arange(8, device=channels.device)[:, None]
    dct = torch.cos(rows * (2 * rows.T + 1) * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    steps = steps.round().clamp(1, 255)[:, :, None, :, None, :]
    blocks = channels.reshape(*channels.shape[:2], channels.shape[2] // 8, 8, -1, 8)
    coefficients = torch.einsum("ui,vj,ncaibj->ncaubv", dct, dct, blocks)
    coefficients = (coefficients / steps).round() * steps
    return torch.einsum("ui,vj,ncaubv->ncaibj", dct, dct, coefficients).reshape(channels.shape)


KINDS = {"noise": add_noise, "blur": blur, "contrast": change_contrast, "warp": warp, "jpeg": compress}
