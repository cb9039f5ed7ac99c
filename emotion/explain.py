"""Where in a face the evidence for a class lies."""

from typing import Final

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from emotion.labels import IMAGE_SIZE

STEPS: Final = 8
"""Pictures on the way from flat grey to the face; twice as many give no better map."""
SMOOTHING: Final = 2.0
"""Standard deviation in pixels of the blur of the map; without it, neighbouring pixels' evidence cancels visibly."""


def evidence(model: nn.Module, image: Tensor, class_index: int) -> np.ndarray:
    """Map of what in a face speaks for a class: integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365).

    Going from flat grey of the face's mean, which shows no expression, to the face itself, each pixel is credited with
    what it adds to the log probability of the class. The credits are smoothed; what speaks against the class is 0.
    `docs/experiments.md` compares this with other methods. Mode, parameters and gradients of the model stay as they
    are, and the same arguments give the same map.

    Args:
        model: any network from float (N, 1, 48, 48) to logits (N, C), on any device.
        image: float (1, 1, 48, 48), normalised to [-1, 1], on the same device.
        class_index: position of the class in the logits, 0 to C - 1.

    Returns:
        Float32 (48, 48) in [0, 1], on the CPU; the strongest pixel is 1, and without any evidence all are 0.

    Raises:
        ValueError: if `image` has another shape or `class_index` is out of range.
    """
    if image.shape != (1, 1, IMAGE_SIZE, IMAGE_SIZE) or not image.is_floating_point():
        raise ValueError(f"image is {image.dtype} {tuple(image.shape)}; give one float face of shape (1, 1, 48, 48).")
    image = image.detach().float()
    # In float64, so that a flat picture is exactly its mean; Apple's GPUs have none.
    grey = image.cpu().double().mean().float().to(image.device)
    detail = image - grey
    share = (torch.arange(STEPS, device=image.device) + 0.5) / STEPS
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.enable_grad():
            pictures = (grey + share.view(-1, 1, 1, 1) * detail).requires_grad_()
            scores = torch.log_softmax(model(pictures), dim=1)
            if not 0 <= class_index < scores.shape[1]:
                raise ValueError(f"class_index is {class_index}; give 0 to {scores.shape[1] - 1}.")
            (gradients,) = torch.autograd.grad(scores[:, class_index].sum(), pictures)
    finally:
        for module, training in modes:
            module.training = training
    credits = (gradients.mean(dim=0) * detail[0])[0].cpu().numpy()
    supporting = np.maximum(cv2.GaussianBlur(credits, (0, 0), SMOOTHING), 0)
    return supporting / max(supporting.max(), np.finfo(np.float32).tiny)
