"""The optimisers, their state in a checkpoint, and the learning-rate schedule."""

import functools
import math

import torch
from torch import nn

import runs
from recipe import Recipe

MOMENTUM, KERNELS_MOMENTUM = 0.85, 0.6  # with --optimizer muon
# Learning rates with --optimizer muon, as multiples of the recipe's. "biases" and "rest" are trained with SGD, whose
# steps grow with the gradient, unlike Muon's: their factors are per image of the batch. "biases" are only those of
# batch normalisation: others would oscillate.
FACTORS = {"kernels": 1.0, "biases": 320 / 1024, "rest": 0.06 / 1024}


def make_optimizer(model, recipe: Recipe, capturable=False):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), fused for speed, or Muon.

    If `capturable`, the learning rates are tensors beside the weights: a CUDA graph would repeat a number for ever.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    rate = functools.partial(torch.tensor, device=weights[0].device) if capturable else float
    if recipe.optimizer == "adamw":
        groups = [{"params": weights, "factor": 1.0, "lr": rate(recipe.learning_rate)}]
        return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True, capturable=capturable)
    biases = {layer.bias for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)}
    parts = {part: [] for part in FACTORS}
    for weight in weights:
        parts["kernels" if weight.ndim == 4 else "biases" if weight in biases else "rest"].append(weight)
    groups = []
    for part, params in parts.items():
        factor = FACTORS[part] * (1 if part == "kernels" else recipe.batch_size)
        group = {"params": params, "factor": factor, "lr": rate(factor * recipe.learning_rate)}
        group["momentum"] = KERNELS_MOMENTUM if part == "kernels" else MOMENTUM
        # No weight decay for kernels, whose norm is fixed; the same for all others, whatever their learning rate.
        group["weight_decay"] = 0.0 if part == "kernels" else recipe.weight_decay / factor
        groups += [group] if params else []
    return Muon(groups, momentum=MOMENTUM, nesterov=True, fused=True)


class Muon(torch.optim.SGD):
    """SGD with Nesterov momentum, but with orthogonalised steps for convolution kernels (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/; PyTorch's own Muon doesn't support convolutions).

    A layer's kernels form a matrix [out, in * height * width], whose norm is set to sqrt(out) before each step. The
    step is the learning rate times the momentum with all its singular values set to about 1, so that no direction
    dominates.
    """

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim == 4 and weight.grad is not None:
                    state = self.state[weight]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(weight)
                    buffer = state["momentum_buffer"]
                    buffer.mul_(group["momentum"]).add_(weight.grad)
                    momentum = weight.grad.add(buffer, alpha=group["momentum"])
                    step = orthogonalised(momentum.flatten(1)).reshape_as(weight)
                    weight.mul_(math.sqrt(len(weight)) / weight.norm()).sub_(step * group["lr"])
                    weight.grad = None  # SGD skips weights without a gradient
        super().step()


def orthogonalised(matrix):
    """Set a matrix's singular values to about 1, except for tiny ones, and keep its singular vectors, by three steps of
    the Newton-Schulz iteration with Jordan's coefficients."""
    wide = len(matrix) <= matrix.shape[1]
    result = (matrix if wide else matrix.T) / (matrix.norm() + 1e-7)
    for _ in range(3):
        square = result @ result.T
        result = 3.4445 * result + (-4.775 * square + 2.0315 * square @ square) @ result
    return result if wide else result.T


def load_optimizer(optimizer, saved, path):
    """Restore an optimiser's state, but not its settings, which come from the recipe; raises CheckpointError.

    A weight that was never updated, because the network doesn't use it, has no state.
    """
    weights = dict(enumerate(weight for group in optimizer.param_groups for weight in group["params"]))
    states = saved.get("state")
    fits = isinstance(states, dict) and states and states.keys() <= weights.keys()
    if not fits or not all(is_state_of(optimizer, weights[number], state) for number, state in states.items()):
        raise runs.CheckpointError(f"{path} has an optimiser state that doesn't fit its model")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})


def is_state_of(optimizer, weight, state):
    """Whether a value is a valid optimiser state for a weight."""
    if isinstance(optimizer, Muon):
        shapes = {"momentum_buffer": weight.shape}
    else:
        shapes = {"step": (), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}
    fits = isinstance(state, dict) and state.keys() == shapes.keys()
    return fits and all(runs.is_plain_tensor(part) and part.shape == shapes[name] for name, part in state.items())


def set_learning_rate(optimizer, learning_rate):
    """Set the learning rate of the next steps, multiplied by the factor of each parameter group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(group["factor"] * learning_rate)
        else:
            group["lr"] = group["factor"] * learning_rate


def learning_rate_at(step, total_steps, recipe: Recipe):
    """The learning rate of a step, counted from 0, as if all epochs had as many steps as the current one. It is
    stateless, so that a resume loses nothing."""
    if recipe.schedule == "linear":
        return recipe.learning_rate * (1 - step / total_steps)
    return recipe.learning_rate
