import numpy as np
import pytest
import torch

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
