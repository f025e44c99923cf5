"""A user's own network: whatever PyTorch can train is trained, evaluated and drawn, or rejected in one line."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import max_pool2d

import evaluate
import models
import optimizers
import runs
import train
from conftest import DIGITS, FILES, FILTERS, assert_same_weights
from recipe import Recipe


def block(channels_in, channels_out):
    """A convolution block as most people write it."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(), nn.MaxPool2d(2))


class Nested(models.Network):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(block(3, 8), block(8, 16), nn.Flatten(), nn.Linear(16 * 8 * 8, 10))


class Residual(models.Network):
    """No `layers`, a skip connection, functions instead of modules."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8 * 16 * 16, 10)

    def logits(self, images):
        values = self.first(self.normalised(images)).relu()
        values = max_pool2d(values + self.second(values), 2)
        return self.last(values.flatten(1))


class Buffers(models.Network):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("precise", torch.tensor([1.0, -torch.inf], dtype=torch.float64))


class Unused(models.Network):
    def __init__(self):
        super().__init__()
        self.forgotten = nn.Linear(3, 3)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))


class Lazy(models.Network):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(10))


class Grey(models.Network):
    """A first convolution with one input channel and three feature maps."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 14 * 14, 10))

    def normalised(self, images):
        return super().normalised(images).mean(dim=1, keepdim=True)


class WrongSize(models.Network):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10))


class ElevenClasses(models.Network):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, 11))


@pytest.mark.parametrize("network", [Nested, Residual, Buffers, Unused, Lazy, Grey], ids=lambda each: each.__name__)
def test_own_network_is_trained_resumed_evaluated_and_compared(call, tmp_path, monkeypatch, few_digits, network):
    monkeypatch.setitem(models.MODELS, "mine", network)
    options = ["--model", "mine", *DIGITS, "--out-dir", "."]
    assert call(train.main, *options, "--epochs", 2, "--run-name", "whole")[0] == 0
    for epochs, resume in ((1, []), (2, ["--resume"])):
        code, out, err = call(train.main, *options, "--epochs", epochs, *resume)
        assert code == 0 and err == "", err
    assert_same_weights(tmp_path / "whole/last.pt", tmp_path / "mine/last.pt")
    convolutions = FILTERS if network in (Nested, Residual, Lazy, Grey) else set()
    assert {path.name for path in (tmp_path / "mine").iterdir()} == FILES | convolutions
    code, out, err = call(evaluate.main, "whole/best.pt", "mine/best.pt")
    assert code == 0 and (tmp_path / "comparison.png").exists(), err


def test_multiply_adds_are_counted_in_any_structure():
    first, second = 32 * 32 * 27 * 8, 16 * 16 * 72 * 16
    assert models.multiply_adds(models.build(Nested)) == first + second + 16 * 8 * 8 * 10
    assert models.multiply_adds(models.build(Residual)) == first + 32 * 32 * 72 * 8 + 8 * 16 * 16 * 10


def test_feature_maps_are_found_in_nested_blocks(call, monkeypatch, few_digits):
    monkeypatch.setitem(models.MODELS, "mine", Nested)
    assert call(train.main, "--model", "mine", *DIGITS, "--epochs", 1, "--out-dir", ".")[0] == 0
    with np.load("mine/inside.npz") as saved:
        assert saved["blocks"] == 2 and saved["block_1"].shape[2:] == (16, 16) and saved["block_2"].shape[2:] == (8, 8)
    assert runs.read_arrays("mine/filters.npz", "weights")[0].shape == (8, 3, 3, 3)


def test_muon_finds_batch_norm_biases_in_nested_blocks():
    model = models.build(Nested)
    groups = optimizers.make_optimizer(model, Recipe(optimizer="muon", learning_rate=0.1, batch_size=8)).param_groups
    biases = {layer.bias for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)}
    assert biases in [{*group["params"]} for group in groups]


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (
            WrongSize,
            "WrongSize fails in layers.3, Linear(in_features=512, out_features=10, bias=True), given [2, 2048]",
        ),
        (ElevenClasses, "ElevenClasses.logits gives [2, 11] for two images, not [2, 10]"),
    ],
)
def test_network_of_the_wrong_shape_is_rejected_before_training(call, monkeypatch, network, reason):
    monkeypatch.setitem(models.MODELS, "mine", network)
    code, out, err = call(train.main, "--model", "mine", *DIGITS)
    assert code == 2 and reason in err and len(err.splitlines()) == 1 and "epoch" not in out


def test_a_failure_between_layers_is_not_blamed_on_a_layer():
    class WrongSum(Residual):
        def logits(self, images):
            values = self.first(self.normalised(images))
            return self.last((values + self.second(values)[:, :5]).flatten(1))

    with pytest.raises(models.ModelError, match="WrongSum fails after second: The size of tensor"):
        models.build(WrongSum)
