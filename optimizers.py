"""How the weights are moved: the optimisers, their state in a checkpoint, the schedule of the learning rate."""

import math

import torch

import runs
from recipe import Recipe

MOMENTUM = 0.6  # of Muon
ADAMW_FACTOR = 0.06  # the learning rate of what Muon leaves to AdamW, in that of the convolutions
WARM_UP = 0.05  # the share of all steps in which the cosine schedule rises


def make_optimizer(model, recipe: Recipe):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), one kernel for all parameters; or Muon."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    parts = {1.0: weights}  # by the learning rate in which they are trained, as a multiple of the recipe's
    if recipe.optimizer == "muon":
        kernels, rest = (
            [weight for weight in weights if (weight.ndim == 4) == of_kernels] for of_kernels in (True, False)
        )
        parts = {1.0: kernels, ADAMW_FACTOR: rest}
    groups = [
        {"params": part, "factor": factor, "lr": factor * recipe.learning_rate}
        for factor, part in parts.items()
        if part
    ]
    optimizer = Muon if recipe.optimizer == "muon" else torch.optim.AdamW
    return optimizer(groups, weight_decay=recipe.weight_decay, fused=True)


class Muon(torch.optim.AdamW):
    """AdamW, but with orthogonal steps for the kernels of convolutions (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/; PyTorch's own takes no convolutions).

    A layer's kernels are a matrix [out, in * height * width] of norm sqrt(out). The step is the learning rate times the
    matrix that the momentum becomes when all its singular values are set to about 1, so that no direction dominates.
    """

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim == 4 and weight.grad is not None:
                    state = self.state[weight]
                    if not state:
                        state["step"] = torch.zeros(())  # AdamW wants one when it is loaded
                        state["momentum_buffer"] = torch.zeros_like(weight)
                    momentum = state["momentum_buffer"]
                    momentum.mul_(MOMENTUM).add_(weight.grad)
                    step = orthogonalised(weight.grad.add(momentum, alpha=MOMENTUM).flatten(1)).reshape_as(weight)
                    weight.mul_(math.sqrt(len(weight)) / weight.norm()).sub_(step * group["lr"])
                    weight.grad = None  # AdamW leaves out what has no gradient
        super().step()


def orthogonalised(matrix):
    """A matrix with the singular vectors of a given one and singular values of about 1 (0.7 to 1.2), by three steps of
    the Newton-Schulz iteration with Jordan's coefficients."""
    wide = len(matrix) <= matrix.shape[1]
    result = (matrix if wide else matrix.T) / (matrix.norm() + 1e-7)
    for _ in range(3):
        square = result @ result.T
        result = 3.4445 * result + (-4.775 * square + 2.0315 * square @ square) @ result
    return result if wide else result.T


def load_optimizer(optimizer, saved, path):
    """Take over what it has gathered, not its settings, which are the recipe's; raises CheckpointError."""
    weights = dict(enumerate(weight for group in optimizer.param_groups for weight in group["params"]))
    states = saved.get("state")
    fits = isinstance(states, dict) and states.keys() == weights.keys()
    if not fits or not all(is_state_of(optimizer, weight, states[number]) for number, weight in weights.items()):
        raise runs.CheckpointError(f"{path} has an optimiser state that doesn't fit its model")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": states})


def is_state_of(optimizer, weight, state):
    """Whether a value is what an optimiser gathers for a weight."""
    if isinstance(optimizer, Muon) and weight.ndim == 4:
        shapes = {"step": (), "momentum_buffer": weight.shape}
    else:
        shapes = {"step": (), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}
    fits = isinstance(state, dict) and state.keys() == shapes.keys()
    return fits and all(runs.is_finite(part) and part.shape == shapes[name] for name, part in state.items())


def learning_rate_at(step, total_steps, recipe: Recipe):
    """The learning rate of a step, counted from 0 over all epochs: no state that a resume could lose."""
    if recipe.schedule == "constant":
        return recipe.learning_rate
    warm_up = math.ceil(WARM_UP * total_steps)
    if step < warm_up:
        return recipe.learning_rate * (step + 1) / warm_up
    return recipe.learning_rate * (1 + math.cos(math.pi * (step - warm_up) / (total_steps - warm_up))) / 2
