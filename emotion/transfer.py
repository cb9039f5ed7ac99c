"""ImageNet filters as starting weights: one grey channel instead of three colours, half the width."""

import pickle
import socket
import sys
from contextlib import redirect_stdout
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.models import VGG, ResNet, get_model, get_model_weights

from emotion.labels import IMAGE_SIZE

BACKBONES: Final = ("vgg16", "vgg16_bn", "resnet18")
"""The torchvision networks that can donate their filters."""

RESNET18_LAYERS: Final = (
    *("layer1.0.conv1", "layer1.0.conv2"),
    *("layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv1"),
    *("layer3.0.conv1", "layer3.0.conv2", "layer3.1.conv1"),
    *("layer4.0.conv1", "layer4.0.conv2"),
)
"""The donors of our blocks 2 to 5, a line each; the batch norm of `conv1` is `bn1`."""

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""Red, green and blue of torchvision's input normalisation, for pixels in [0, 1]."""

CONNECT_TIMEOUT: Final = 10.0
"""Seconds without an answer after which a download counts as impossible."""


def load_donor(backbone: str) -> VGG | ResNet:
    """torchvision's `backbone` ('vgg16', 'vgg16_bn' or 'resnet18') with its ImageNet weights, on the CPU.

    The weights come from torch's cache (`$TORCH_HOME/hub/checkpoints`) or, the first time, from the network: 528 MB
    for either VGG, 45 MB for ResNet18. Progress goes to standard error.

    Raises:
        ValueError: for an unknown backbone.
        RuntimeError: if the weights are neither in the cache nor downloadable, or if the file there is damaged.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"The backbone is {backbone!r}; choose one of {', '.join(BACKBONES)}.")
    # Named, not DEFAULT: a later torchvision must not change where training starts.
    weights = get_model_weights(backbone)["IMAGENET1K_V1"]
    file = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(weights.url).name)
    # Every value is about to be loaded, so none needs memory or an initialisation.
    with torch.device("meta"):
        donor = get_model(backbone)
    timeout = socket.getdefaulttimeout()
    # torchvision offers no timeout, and waits for minutes where a firewall drops packets.
    socket.setdefaulttimeout(CONNECT_TIMEOUT)
    try:
        # torchvision announces a download on standard output, which may be carrying JSON.
        with redirect_stdout(sys.stderr):
            state = weights.get_state_dict(check_hash=True, weights_only=True)
        donor.load_state_dict(state, assign=True)
    except (OSError, HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RuntimeError(
            f"The ImageNet weights of {backbone} could not be read from {file} or downloaded from {weights.url} "
            f"({getattr(error, 'reason', type(error).__name__)}); run once with a network, put an intact copy of the "
            "file there, or train without transfer."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return donor


def adapt_backbone(features: nn.Sequential, donor: VGG | ResNet) -> int:
    """Give our feature blocks the donor's filters, in place; the number of parameters that were set is returned.

    Of a donor layer that is wider than ours, evenly spaced channels are kept (uniform weight selection, Xu et al.
    2023, arXiv 2311.18823): every second one where the width is halved, the same ones for a layer's filters, its
    batch norm and the next layer's inputs.

    =============  ========  ===========  ===========  ==============
    our layer      channels  vgg16        vgg16_bn     resnet18
    =============  ========  ===========  ===========  ==============
    features.0.0         32  features.0   features.0   freshly initialised
    features.0.3         32  features.2   features.3   freshly initialised
    features.1.0         64  features.5   features.7   layer1.0.conv1
    features.1.3         64  features.7   features.10  layer1.0.conv2
    features.2.0        128  features.10  features.14  layer2.0.conv1
    features.2.3        128  features.12  features.17  layer2.0.conv2
    features.2.6        128  features.14  features.20  layer2.1.conv1
    features.3.0        256  features.17  features.24  layer3.0.conv1
    features.3.3        256  features.19  features.27  layer3.0.conv2
    features.3.6        256  features.21  features.30  layer3.1.conv1
    features.4.0        512  features.24  features.34  layer4.0.conv1
    features.4.3        512  features.26  features.37  layer4.0.conv2
    =============  ========  ===========  ===========  ==============

    VGG16 matches layer for layer at half its width; only its last convolution has no place here, and our last block
    keeps all 512 outputs. Its first kernels are summed over colour, and the input normalisations (ours and
    ImageNet's) and the donor's convolution bias are folded into kernels and batch norm. In eval mode the blocks
    then compute exactly what the donor's chosen channels, cut out of it, compute for a grey image, except near the
    border: zero padding means mid-grey to us and ImageNet's mean colour to the donor.

    ResNet18's 7x7 stem with stride 2 fits no 3x3 layer, so our first block stays as it is. Stages 1 to 4 feed
    blocks 2 to 5 at full width (of `layer1.0.conv1`, every second input), and the pools stand in for strides. There
    are no residual connections here, so the donor's filters and batch norms arrive but its function does not: train
    the first block along with the rest before using or freezing any of it.

    Plain VGG16 has no batch norm, and in eval mode any mean m and deviation s leave its response unchanged when the
    scale is s and the offset is bias + m. In training mode, m and s give way to the batch's, so they are set to
    what the adapted layers show for noise with the 1/f spectrum of natural images: training starts close to the
    donor's function instead of thresholding every channel near its mean.

    Args:
        features: the five blocks of our network, on the CPU.
        donor: torchvision's VGG16, with or without batch norm, or ResNet18, on the CPU.
    """
    targets = _layers(features)
    if isinstance(donor, VGG):
        sources = _layers(donor.features)[: len(targets)]
    else:
        targets = targets[2:]
        sources = [
            (donor.get_submodule(name), donor.get_submodule(name.replace("conv", "bn"))) for name in RESNET18_LAYERS
        ]
    with torch.no_grad():
        for (conv, norm), (donor_conv, donor_norm) in zip(targets, sources, strict=True):
            _adapt_layer(conv, norm, donor_conv, donor_norm)
        if sources[0][1] is None:
            _match_statistics(features)
    return sum(parameter.numel() for layer in targets for module in layer for parameter in module.parameters())


def _layers(features: nn.Sequential) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """The convolutions in order, each with its batch norm (None throughout for a network that has none)."""
    convs = [module for module in features.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in features.modules() if isinstance(module, nn.BatchNorm2d)]
    return list(zip(convs, norms or [None] * len(convs), strict=True))


def _adapt_layer(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, donor_conv: nn.Conv2d, donor_norm: nn.BatchNorm2d | None
) -> None:
    every = donor_conv.out_channels // conv.out_channels
    kernels = donor_conv.weight[::every]
    # What the donor's convolution adds to ours before its batch norm.
    shift = torch.zeros(conv.out_channels) if donor_conv.bias is None else donor_conv.bias[::every]
    if donor_conv.in_channels == 3:
        # The donor sees (g - mean) / std of the grey g, we see x = (g - 0.5) / 0.5, so g is 0.5 x + 0.5.
        kernels = kernels / torch.tensor(IMAGENET_STD).view(3, 1, 1)
        shift = shift + (kernels * (0.5 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1))).sum((1, 2, 3))
        kernels = 0.5 * kernels.sum(1, keepdim=True)
    else:
        kernels = kernels[:, :: donor_conv.in_channels // conv.in_channels]
    conv.weight.copy_(kernels)
    if donor_norm is None:
        norm.bias.copy_(shift)
    else:
        norm.weight.copy_(donor_norm.weight[::every])
        norm.bias.copy_(donor_norm.bias[::every])
        norm.running_mean.copy_(donor_norm.running_mean[::every] - shift)
        norm.running_var.copy_(donor_norm.running_var[::every])


def _match_statistics(features: nn.Sequential) -> None:
    """Turn each batch norm into the addition of its bias, in eval mode exactly and in training mode nearly."""
    training = features.training
    features.eval()
    layers = [layer for block in features for layer in block]
    maps = _natural_noise(64)
    for layer, following in pairwise(layers):
        maps = layer(maps)
        if isinstance(layer, nn.Conv2d):
            variance, mean = torch.var_mean(maps, (0, 2, 3))
            following.running_mean.copy_(mean)
            following.running_var.copy_(variance)
            following.weight.copy_((variance + following.eps).sqrt())
            following.bias += mean
    features.train(training)


def _natural_noise(count: int) -> Tensor:
    """The same float images (count, 1, 48, 48) in [-1, 1] every time: noise whose amplitude falls with 1/frequency
    as in natural images (Field 1987, doi 10.1364/JOSAA.4.002379), with FER2013's mean and contrast."""
    white = torch.randn(count, 1, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    frequency = torch.hypot(torch.fft.fftfreq(IMAGE_SIZE)[:, None], torch.fft.rfftfreq(IMAGE_SIZE))
    # The clamp spares the mean brightness a division by zero and lets it vary from image to image.
    noise = torch.fft.irfft2(torch.fft.rfft2(white) / frequency.clamp(min=1 / IMAGE_SIZE))
    return (0.5 * noise / noise.std()).clamp(-1, 1)
