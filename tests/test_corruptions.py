import math

import numpy as np
import pytest
import torch

import augmentation
import corruptions
from corruptions import CORRUPTIONS


def test_translation_and_rotation_fill_the_border_by_reflection():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    padded = np.pad(images, [(0, 0), (0, 0), (8, 8), (8, 8)], mode="reflect")
    assert np.array_equal(corruptions.shifted(images, 3, -5), padded[:, :, 5:37, 13:45]), "3 down, 5 to the left"
    assert np.array_equal(corruptions.shifted(images, 3, 0)[:, :, 3:], images[:, :, :-3])
    assert torch.equal(corruptions.shifted(images, 0, 0), images) and torch.equal(
        corruptions.rotated(images, 0), images
    )
    assert np.array_equal(corruptions.rotated(images, 90), np.rot90(images, axes=(2, 3))), "counter-clockwise"
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    assert all(torch.equal(corruptions.rotated(white, angle), white) for angle in (30, 45, -60)), "no black corners"


def test_corruptions_have_the_requested_amount():
    images = torch.full((40, 3, 32, 32), 100, dtype=torch.uint8)
    images[:, :, :, 16:] = 140
    change = {kind: CORRUPTIONS[kind].apply(images, 20)[0] for kind in ("noise", "jpeg")}
    assert (change["noise"].float() - images).std().item() == pytest.approx(20, rel=0.02)
    assert torch.equal(change["noise"], CORRUPTIONS["noise"].apply(images, 20)[0]), "the same in every call"
    assert (change["jpeg"].float() - images).abs().max() < 12
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    errors = [(CORRUPTIONS["jpeg"].apply(noise, loss)[0].float() - noise).abs().mean() for loss in (20, 80)]
    assert errors[0] < errors[1]
    blurred = CORRUPTIONS["blur"].apply(images, 2.0)[0].float()
    assert torch.equal(blurred[..., 0], images[..., 0].float()) and 110 < blurred[0, 0, 5, 15] < 120
    flat = CORRUPTIONS["contrast"].apply(images, 0.75)[0]
    assert flat.unique().tolist() == pytest.approx([115, 125], abs=1), "a quarter of the distance from the mean, 120"


@pytest.mark.parametrize("kind, strength, amount", [("blur", 1.0, 2.0), ("contrast", 1.0, 0.8), ("jpeg", 1 / 7, 80)])
def test_training_images_are_corrupted_as_test_images_are(kind, strength, amount):
    """--corrupt has code of its own, with a strength for each image, and agrees with --robustness."""
    torch.manual_seed(0)
    coarse = torch.randint(40, 215, (20, 3, 8, 8)).float()
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear").round().to(torch.uint8)
    strengths = torch.tensor([[strength, 0.5, 0.5, 0.5]]).expand(20, 4)  # 0.5: the brightness stays
    numbers = torch.full((20,), list(augmentation.KINDS).index(kind))
    numbers[10:] = len(augmentation.KINDS)
    trained = augmentation.corrupt(images, numbers, strengths, noise_seed=0)
    measured = CORRUPTIONS[kind].apply(images, amount)[0]
    assert torch.equal(trained[10:], images[10:]), "only the images that were drawn"
    inside = slice(None) if kind != "blur" else slice(6, -6)  # the border is filled in another way
    difference = (trained.float() - measured.float())[:10, :, inside, inside].abs().mean()
    change = (measured.float() - images.float())[:10, :, inside, inside].abs().mean()
    assert difference < 0.25 * change


def test_training_noise_and_warps_are_as_strong_as_they_say():
    images = torch.full((200, 3, 32, 32), 128, dtype=torch.uint8)
    images[:, :, :, :16] = 100
    noise, warp = (torch.full((200,), list(augmentation.KINDS).index(kind)) for kind in ("noise", "warp"))
    added = augmentation.corrupt(images, noise, torch.full((200, 4), 0.5), noise_seed=1).float() - images
    assert added.std().item() == pytest.approx(50 * 0.5**1.5, rel=0.02)
    assert torch.equal(augmentation.corrupt(images, warp, torch.full((200, 4), 0.5), noise_seed=1), images), "no change"
    turned = augmentation.corrupt(images, warp, torch.tensor([[1.0, 0.5, 0.5, 0.5]]).expand(200, 4), noise_seed=1)
    dark = turned[0, 0].float() < 114
    assert math.degrees(math.atan(dark[4:28].sum(dim=1).diff().float().mean().abs())) == pytest.approx(35, abs=4)
