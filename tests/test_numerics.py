"""The first training losses must be the same as when the committed results were made.

Another version of PyTorch, NumPy or scikit-learn may change them silently, by other initial weights, another batch
order, or another optimiser. These are from torch 2.14.1 on a CPU in fp32; other instruction sets and thread counts stay
within the tolerance, a learning rate that is 10% higher doesn't. `python -m tests.test_numerics` prints them.
"""

import dataclasses

import pytest
import torch

import data
import models
import optimizers
import train

# Uses everything that draws random numbers, and both optimisers.
RECIPE = train.Recipe(augment=True, label_smoothing=0.1, schedule="linear", learning_rate=3e-4)
LOSSES = {
    "dense": [2.32055, 2.26239, 2.23355, 2.22487],
    "cnn1": [2.32004, 2.25292, 2.26947, 2.32733],
    "cnn2": [2.30892, 2.29939, 2.28931, 2.31893],
    "vgg": [2.42664, 2.49191],  # the third depends on the thread count almost as much as on the learning rate
    "vgg_fast": [2.295, 2.31982, 2.25424, 2.2598],
}


def first_losses(name):
    split = data.load_splits("digits", "", ["train"])["train"]
    recipe = dataclasses.replace(RECIPE, optimizer="muon", learning_rate=0.1) if name == "vgg_fast" else RECIPE
    torch.manual_seed(recipe.seed)
    model = models.build(name).train()
    model.fit_input(split.images)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0  # PyTorch 2.6 and 2.14 draw different masks, which is fine
    optimizer = optimizers.make_optimizer(model, recipe)
    losses = []
    order = data.epoch_order(torch.zeros(len(split.labels)), 0, recipe.seed, 1)
    batches = data.batches(split, order, 32, recipe.seed, 1, recipe.augment)
    for step, (_, images, labels) in zip(range(len(LOSSES[name])), batches):
        optimizers.set_learning_rate(optimizer, optimizers.learning_rate_at(step, 100, recipe))
        logits = train.train_step(model.logits, optimizer, images, labels, recipe.label_smoothing)
        losses.append(torch.nn.functional.cross_entropy(logits, labels).item())
    return losses


@pytest.mark.parametrize("name", LOSSES)
def test_first_losses_match_the_committed_results(name):
    assert first_losses(name) == pytest.approx(LOSSES[name], rel=3e-4)


if __name__ == "__main__":
    for name in LOSSES:
        print(name, [round(loss, 5) for loss in first_losses(name)])
