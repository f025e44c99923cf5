import math

import pytest
import torch

import models
import optimizers
import train
from conftest import history_without_seconds, quick

IMAGES = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_linear_schedule_decays_to_zero(call, tmp_path, few_digits):
    recipe = train.Recipe(schedule="linear", learning_rate=0.5)
    rates = [optimizers.learning_rate_at(step, 200, recipe) for step in range(200)]
    assert rates[0] == 0.5 and rates[100] == 0.25 and rates[199] == pytest.approx(0.0025)
    # Two epochs of two steps; history.csv has the learning rate of each epoch's last step.
    quick(call, "--schedule", "linear", "--learning-rate", "0.004", "--batch-size", "150", "--out-dir", ".")
    rates = [float(row["learning_rate"]) for row in history_without_seconds(tmp_path / "cnn1")]
    assert rates == pytest.approx([0.003, 0.001])


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_orthogonalised_keeps_singular_vectors_and_evens_out_singular_values(shape):
    left, sizes, right = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    sizes[:] = torch.linspace(1, 0.2, len(sizes))
    result = optimizers.orthogonalised(left @ sizes.diag() @ right)
    inner = left.T @ result @ right.T
    torch.testing.assert_close(inner, inner.diagonal().diag(), atol=1e-5, rtol=0)
    assert inner.diagonal().min() > 0.6 and inner.diagonal().max() < 1.3


def test_muon_moves_kernels_by_the_learning_rate_and_leaves_the_rest_to_sgd():
    torch.manual_seed(0)
    recipe = train.Recipe(optimizer="muon", learning_rate=0.1, weight_decay=0.0, batch_size=8)
    factors = optimizers.FACTORS
    model = models.build("cnn2")
    images, labels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)
    model.fit_input(images)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train.train_step(model.logits, optimizers.make_optimizer(model, recipe), images, labels)
    for name, weight in model.named_parameters():
        if weight.ndim == 4:
            start = before[name] * math.sqrt(len(weight)) / before[name].norm()
            turned = torch.linalg.svdvals((weight.detach() - start).flatten(1)) / 0.1
            assert 0.5 < turned.median() < 1.3 and turned.max() < 1.3, name
        else:
            step = before[name] - weight.detach()
            torch.testing.assert_close(step, 1.85 * 0.1 * 8 * factors["rest"] * weight.grad)  # first Nesterov step
    model = models.build("vgg")
    (fast,) = (
        group["params"]
        for group in optimizers.make_optimizer(model, recipe).param_groups
        if group["factor"] == 8 * factors["biases"]
    )
    assert {*fast} == {layer.bias for layer in model.layers if isinstance(layer, torch.nn.BatchNorm2d)}


def test_weight_decay_with_muon_matches_the_help_text():
    """Kernels, whose norm is fixed, don't decay; all other weights do, faster by the momentum."""
    recipe = train.Recipe(optimizer="muon", learning_rate=0.01, weight_decay=0.01)
    model = models.build("cnn2")
    optimizer, norms = optimizers.make_optimizer(model, recipe), []
    for _ in range(300):
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        norms.append(model.layers[-1].weight.detach().norm().item())
    lost = math.log(norms[99] / norms[299]) / 200
    assert lost == pytest.approx(0.01 * 0.01 / (1 - optimizers.MOMENTUM), rel=0.03)
    assert model.layers[0].weight.detach().norm().item() == pytest.approx(math.sqrt(32), rel=1e-4)
