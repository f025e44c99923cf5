"""The networks, by name, and how they are built and loaded.

Every network takes uint8 images [N, 3, 32, 32] and contains its normalisation, so that a checkpoint alone is enough to
predict. `model(images)` returns softmax probabilities; `model.logits(images)` returns the logits, which
`torch.nn.functional.cross_entropy` expects, because it applies log-softmax itself.
"""

import torch
from torch import nn
from torch.nn.functional import unfold
from torch.utils.flop_counter import FlopCounterMode

import command
import runs


class Network(nn.Module):
    """Base of all networks: per-channel normalisation, then `self.layers`, then softmax.

    `mean` and `std` are buffers, float32 [3, 1, 1] in pixel units (0 to 255).
    """

    layers: nn.Sequential

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))

    def fit_input(self, images):
        """Compute what isn't learned, here mean and standard deviation, from training images, uint8 [N, 3, 32, 32].

        Call this before training a new network; a loaded one has these values from its checkpoint.
        """
        mean, std = channel_statistics(images)
        self.mean.copy_(torch.tensor(mean).view(3, 1, 1))
        self.std.copy_(torch.tensor(std).view(3, 1, 1))

    def normalised(self, images):
        """uint8 images [N, 3, 32, 32] -> the input of the layers, float32 [N, 3, 32, 32]."""
        return (images - self.mean) / self.std

    def logits(self, images):
        """uint8 images [N, 3, 32, 32] -> logits [N, 10], float32 (bfloat16 under autocast)."""
        return self.layers(self.normalised(images))

    def forward(self, images):
        """uint8 images [N, 3, 32, 32] -> class probabilities, float32 [N, 10], rows summing to 1."""
        return self.logits(images).float().softmax(dim=1)


def channel_statistics(images):
    """Per-channel mean and standard deviation of uint8 images [N, 3, H, W]: two lists of 3, in pixel units."""
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for chunk in images.split(1000):  # in chunks, because all images in float64 would take a gigabyte
        pixels = chunk.double()
        total += pixels.sum(dim=(0, 2, 3))
        squares += pixels.square().sum(dim=(0, 2, 3))
    count = images.numel() / 3
    mean = total / count
    return mean.tolist(), (squares / count - mean.square()).sqrt().tolist()


class Flatten(nn.Module):
    """[N, C, H, W] -> [N, H * W * C], with the channels last, as they are in memory.

    This makes it a view, whose gradient has the memory format of the preceding layers. nn.Flatten would copy, and the
    ReLU and max pooling before it would be several times slower in the backward pass.
    """

    def forward(self, images):
        return images.permute(0, 2, 3, 1).flatten(1)


class Dense(Network):
    """Two hidden fully connected layers, which see an image as 3,072 unrelated numbers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            Flatten(), nn.Linear(3 * 32 * 32, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
        )


def convolution_block(channels_in, channels_out):
    """Convolution, 2x2 max pooling, ReLU: halves height and width.

    ReLU is monotonic, so it commutes with max pooling; after pooling, it has a quarter of the work.
    """
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1), nn.MaxPool2d(2), nn.ReLU()


class CNN1(Network):
    """One convolution block and a hidden fully connected layer: CNN2 without its second block."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *convolution_block(3, 32), Flatten(), nn.Linear(32 * 16 * 16, 128), nn.ReLU(), nn.Linear(128, 10)
        )


class CNN2(Network):
    """Two convolution blocks and a hidden fully connected layer: the main network."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *convolution_block(3, 32),
            *convolution_block(32, 64),
            Flatten(),
            nn.Linear(64 * 8 * 8, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )


class VGG(Network):
    """VGG (Simonyan & Zisserman 2015, arXiv:1409.1556) adapted to 32x32: three blocks of two 3x3 convolutions.

    Batch normalisation (Ioffe & Szegedy 2015) follows each convolution, whose bias it makes redundant; dropout
    (Srivastava et al. 2014) precedes the last layer.
    """

    widths = (64, 64, "pool", 128, 128, "pool", 256, 256, "pool")

    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width in self.widths:
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.layers = nn.Sequential(
            *layers, Flatten(), nn.Linear(256 * 4 * 4, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10)
        )


class FastVGG(Network):
    """A VGG that trains to a higher accuracy with less computation, after airbench94 (Jordan 2024, arXiv:2404.00498).

    The first layer is not trained: it whitens patches of 2x2 pixels (fit_input). Each block pools after its first
    convolution, so that the second has a quarter of the work. Convolutions are initialised as identities (Dirac), and
    global pooling replaces the hidden fully connected layer.
    """

    def __init__(self):
        super().__init__()
        layers, channels = [nn.Conv2d(3, 24, 2, bias=False), nn.GELU()], 24
        for width in (96, 320, 320):
            for number in range(2):
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                nn.init.dirac_(convolution.weight[:channels])
                pooling = [nn.MaxPool2d(2)] if number == 0 else []
                normalisation = nn.BatchNorm2d(width, momentum=0.4)
                normalisation.weight.requires_grad_(False)  # stays 1: the next convolution makes it redundant
                layers += [convolution, *pooling, normalisation, nn.GELU()]
                channels = width
        self.layers = nn.Sequential(*layers, nn.MaxPool2d(3), Flatten(), nn.Linear(channels, 10, bias=False))
        self.layers[0].weight.requires_grad_(False)
        nn.init.normal_(self.layers[-1].weight, std=1 / channels)  # classes start about equally probable

    def fit_input(self, images):
        """Also set up the whitening layer: its 24 filters are the principal components of patches of 2x2 normalised
        pixels, each scaled to unit variance, and their negatives."""
        super().fit_input(images)
        patches = unfold(self.normalised(images[:5000]), kernel_size=2).transpose(1, 2).flatten(0, 1).double()
        variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (components / (variances + 5e-4).sqrt()).T.view(-1, 3, 2, 2).float()
        weight = self.layers[0].weight.data
        # Grey images have only four components. The other filters stay random: a constant channel's gradient explodes.
        varying = variances > 1e-6
        weight[torch.cat([varying, varying])] = torch.cat([filters[varying], -filters[varying]])


MODELS = {"dense": Dense, "cnn1": CNN1, "cnn2": CNN2, "vgg": VGG, "vgg_fast": FastVGG}


class ModelError(command.UserError):
    """A network that doesn't work; the message says where it fails."""


def build(network):
    """Build a network, given by name or class, in channels_last format, with weights from torch's global generator.

    A forward pass with two images gives lazy layers their sizes; raises ModelError if it doesn't return logits.
    """
    if isinstance(network, str):
        network = MODELS[network]
    model = network()
    check(model)
    return model.to(memory_format=torch.channels_last)


def check(model):
    """Raise ModelError unless a network returns logits [2, 10] for two images."""
    name, entered, left = type(model).__name__, [], []

    def enter(layer, inputs):
        entered.append((layer, [list(value.shape) for value in inputs if isinstance(value, torch.Tensor)]))

    def leave(layer, inputs, output):
        left.append(layer)

    layers = {layer: path for path, layer in model.named_modules() if not [*layer.children()]}
    hooks = [layer.register_forward_pre_hook(enter) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    model.eval()
    try:
        with torch.no_grad():
            logits = model.logits(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    except Exception as error:
        place = f"after {layers[left[-1]]}" if left else "before its first layer"
        if len(entered) > len(left):
            layer, shapes = entered[-1]
            place = f"in {layers[layer]}, {layer}, given {', '.join(map(str, shapes))}"
        raise ModelError(f"{name} fails {place}: {error}") from error
    finally:
        model.train()
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, 10):
        shape = list(getattr(logits, "shape", ()))
        raise ModelError(f"{name}.logits gives {shape} for two images, not [2, 10]: one number per image and class")


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model):
    """The multiply-adds in convolutions and matrix products that it takes to predict one image."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=model.mean.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval().logits(image)
    return counter.get_total_flops() // 2


def load_weights(model, weights, path):
    """Copy saved weights into a network; raises runs.CheckpointError if names or shapes differ."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:
        raise runs.CheckpointError(f"{path} has weights that don't fit its model") from error


def load_model(path):
    """Load a checkpoint and its network, ready to predict: (Network in eval mode, Checkpoint).

    Raises CheckpointError or OSError.
    """
    checkpoint = runs.load_checkpoint(path)
    if checkpoint.model not in MODELS:
        raise runs.CheckpointError(f"{path} holds an unknown model: {checkpoint.model}")
    model = build(checkpoint.model)
    load_weights(model, checkpoint.weights, path)
    return model.eval(), checkpoint
