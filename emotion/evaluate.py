"""Accuracy, confusion and calibration of a network on a labelled split, and the temperature that calibrates it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from emotion.data import FaceDataset
from emotion.model import EmotionCNN
from emotion.transforms import get_enhanced_transforms_grayscale_48

ECE_BINS = 15
TTA_VIEWS = 2
"""Forward passes per face with test-time augmentation: the face and its mirror image."""


@torch.inference_mode()
def compute_logits(model: EmotionCNN, dataset: FaceDataset, tta: bool = False) -> Tensor:
    """Logits of every face of `dataset`, in eval mode, on the model's own device.

    Returns:
        Float32 (views, N, model classes) on the CPU, with two views (plain and mirrored) if `tta`, else one.
    """
    model.eval()
    device = next(model.parameters()).device
    normalise = get_enhanced_transforms_grayscale_48(training=False)
    batches = []
    for images in dataset.images[:, None].split(256):
        images = normalise(images.to(device))
        views = (images, images.flip(-1)) if tta else (images,)
        batches.append(torch.stack([model(view) for view in views]).float().cpu())
    return torch.cat(batches, dim=1)


def evaluate(model: EmotionCNN, dataset: FaceDataset, tta: bool = False) -> dict[str, Any]:
    """Measure calibrated predictions against the most probable class of each target.

    Classes are matched by name. What the data set has no name for (contempt on seven-class labels) is masked out of
    the model's answer; what the model has no name for gets probability 0, so those rows count as wrong.

    Args:
        model: any network of this package.
        dataset: faces and labels; one-hot targets or distributions, whose largest entry counts.
        tta: average the probabilities over the face and its mirror image.

    Returns:
        JSON-ready: `labels` (the data set's), `rows`, `views`, `temperature`; as fractions `accuracy` (top-1),
        `balanced_accuracy` (mean recall over the classes that occur) and `ece` (expected calibration error over 15
        equal-width bins of the top probability; Guo et al. 2017, arXiv 1706.04599); `nll` (mean negative log
        likelihood in nats, probabilities below 1e-12 counted as that); `per_class` with `rows`, `precision`, `recall`
        and `f1` (0 where undefined); `confusion` with a row per true and a column per predicted class.

    Raises:
        ValueError: if the data set is empty or shares no class name with the model.
    """
    known = [label for label in dataset.labels if label in model.labels]
    if not known or len(dataset) == 0:
        raise ValueError(
            f"The model knows {', '.join(model.labels)}, the data set has {len(dataset)} faces of "
            f"{', '.join(dataset.labels)}; give faces with classes that the model knows."
        )
    logits = compute_logits(model, dataset, tta)[:, :, [model.labels.index(label) for label in known]]
    views = torch.stack([model.calibrate(view) for view in logits]).double().mean(0).numpy()
    probabilities = np.zeros((len(dataset), len(dataset.labels)))
    probabilities[:, [dataset.labels.index(label) for label in known]] = views
    truth = dataset.class_indices.numpy()
    return {
        "labels": list(dataset.labels),
        "rows": len(dataset),
        "views": len(logits),
        "temperature": model.temperature,
        **_scores(probabilities, truth, dataset.labels),
    }


def _scores(probabilities: np.ndarray, truth: np.ndarray, labels: tuple[str, ...]) -> dict[str, Any]:
    predicted = probabilities.argmax(1)
    confusion = np.zeros((len(labels), len(labels)), dtype=int)
    np.add.at(confusion, (truth, predicted), 1)
    right, true, claimed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    recall, precision = right / np.maximum(true, 1), right / np.maximum(claimed, 1)
    f1 = 2 * right / np.maximum(true + claimed, 1)
    return {
        "accuracy": float((predicted == truth).mean()),
        "balanced_accuracy": float(recall[true > 0].mean()),
        "nll": float(-np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12)).mean()),
        "ece": expected_calibration_error(probabilities.max(1), predicted == truth),
        "per_class": {
            label: {"rows": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
            for label, n, p, r, f in zip(labels, true, precision, recall, f1, strict=True)
        },
        "confusion": confusion.tolist(),
    }


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over 15 equal-width bins, weighted by rows (Guo et al. 2017).

    Args:
        confidence: float (N,), the top probability of each row, in [0, 1].
        correct: bool (N,), whether the top class was the true one.

    Returns:
        A fraction in [0, 1].
    """
    # Bins are open on the left and closed on the right, as in the paper.
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def fit_temperature(logits: Tensor, classes: Tensor) -> float:
    """The divisor of the logits that minimises the negative log likelihood (Guo et al. 2017, arXiv 1706.04599).

    Args:
        logits: float (N, C), of data the network was not trained on.
        classes: long (N,), the true class indices.

    Returns:
        A temperature in [0.05, 20].
    """
    logits = logits.double()

    def slope(inverse: float) -> float:
        scaled = torch.softmax(logits * inverse, dim=1)
        expected, actual = (scaled * logits).sum(1), logits.gather(1, classes[:, None])[:, 0]
        return float((expected - actual).mean())

    # The likelihood is convex in the inverse temperature, so its slope has one zero: bisect.
    low, high = 0.05, 20.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / middle
