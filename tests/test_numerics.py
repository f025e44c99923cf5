"""The first losses of a training, as they were when the committed results were made.

Another PyTorch, NumPy or scikit-learn may compute something else without an error: other initial weights, another order
of the batches, another optimiser. Made with torch 2.14.1 on a CPU in fp32; other instruction sets and thread counts
stay within the tolerance, a learning rate that is 10 % higher doesn't. `python -m tests.test_numerics` prints them.
"""

import pytest
import torch

import data
import models
import train

# The improved recipe in small: everything that draws random numbers.
RECIPE = train.Recipe(augment=True, cutout=8, label_smoothing=0.1, schedule="cosine", learning_rate=3e-4)
LOSSES = {
    "dense": [2.31761, 2.2909, 2.26024, 2.25227],
    "cnn1": [2.32287, 2.28993, 2.29605, 2.2916],
    "cnn2": [2.31215, 2.30189, 2.30258, 2.30962],
    "vgg": [2.37579, 2.32198, 2.28961],  # the fourth depends more on the number of threads than on the learning rate
}


def first_losses(name):
    split = data.load_splits("digits", "", ["train"])["train"]
    torch.manual_seed(RECIPE.seed)
    model = models.build(name).train()
    model.adapt(split.images)
    for layer in model.layers:
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0  # PyTorch 2.6 and 2.14 draw different masks, which is no mistake
    optimizer = train.make_optimizer(model, RECIPE)
    autocast = train.make_autocast(torch.device("cpu"), "fp32")
    losses = []
    batches = data.batches(split, 32, RECIPE.seed, 1, RECIPE.augment, RECIPE.cutout)
    for step, batch in zip(range(len(LOSSES[name])), batches):
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate_at(step, 100, RECIPE)
        losses.append(train.train_step(model.logits, optimizer, *batch, autocast, RECIPE.label_smoothing)[0].item())
    return losses


@pytest.mark.parametrize("name", models.MODELS)
def test_first_losses_are_those_of_the_committed_results(name):
    assert first_losses(name) == pytest.approx(LOSSES[name], rel=3e-4)


if __name__ == "__main__":
    for name in models.MODELS:
        print(name, [round(loss, 5) for loss in first_losses(name)])
