import numpy as np
import pytest
import torch

import models

IMAGES = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# The multiply-adds are summed over the layers that the README lists.
@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("dense", 1_707_274, 3072 * 512 + 512 * 256 + 256 * 10),
        ("cnn1", 1_050_890, 32**2 * 27 * 32 + 8192 * 128 + 128 * 10),
        ("cnn2", 545_098, 32**2 * 27 * 32 + 16**2 * 288 * 64 + 4096 * 128 + 128 * 10),
        (
            "vgg",
            2_197_706,
            32**2 * (27 + 576) * 64 + 16**2 * (576 + 1152) * 128 + 8**2 * (1152 + 2304) * 256 + 4096 * 256 + 2560,
        ),
        (
            "vgg_fast",
            3_151_392,
            31**2 * (12 + 9 * 96) * 24
            + 15**2 * 864 * (96 + 320)
            + 7**2 * 2880 * (320 + 320)
            + 3**2 * 2880 * 320
            + 3200,
        ),
    ],
)
def test_networks_return_probabilities_and_have_the_documented_size(name, parameters, multiply_adds):
    model = models.build(name).eval()
    model.fit_input(IMAGES)
    assert models.count_parameters(model) == parameters
    assert models.multiply_adds(model) == multiply_adds
    probabilities = model(IMAGES)
    assert probabilities.shape == (7, 10) and probabilities.dtype == torch.float32
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(7))
    torch.testing.assert_close(probabilities, torch.softmax(model.logits(IMAGES), dim=1))


def test_network_normalises_its_input_per_channel():
    pixels = IMAGES.double()
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0, keepdim=True)
    model = models.build("cnn1")
    expected = model.logits(((pixels - mean) / std).float())
    model.fit_input(IMAGES)
    torch.testing.assert_close(model.logits(IMAGES), expected)


def test_first_layer_of_vgg_fast_whitens_patches():
    grey = torch.randint(0, 256, (500, 1, 16, 16), dtype=torch.uint8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = (grey.expand(-1, 3, -1, -1) // 2) + torch.randint(0, 128, (500, 3, 32, 32), dtype=torch.uint8)
    model = models.build("vgg_fast")
    model.fit_input(images)
    with torch.no_grad():
        outputs = model.layers[0]((images - model.mean) / model.std).transpose(0, 1).flatten(1)
    torch.testing.assert_close(outputs[:12], -outputs[12:])
    torch.testing.assert_close(outputs[:12].cov(), torch.eye(12), atol=0.02, rtol=0)
    assert not model.layers[0].weight.requires_grad


def test_convolutions_of_vgg_fast_start_as_identities():
    model = models.build("vgg_fast")
    convolutions = [layer for layer in model.layers if isinstance(layer, torch.nn.Conv2d)]
    for layer in convolutions[1:]:
        channels = layer.in_channels
        values = torch.rand(2, channels, 15, 15)
        torch.testing.assert_close(layer(values)[:, :channels], values)


def test_channel_statistics_match_numpy():
    images = torch.randint(0, 256, (2500, 3, 8, 8), dtype=torch.uint8)
    mean, std = models.channel_statistics(images)
    np.testing.assert_allclose(mean, images.numpy().mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(std, images.numpy().std(axis=(0, 2, 3)))
