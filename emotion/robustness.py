"""How accuracy holds under corruption: seven corruptions of 48x48 crops at three severities each.

In the manner of Hendrycks & Dietterich 2019 (arXiv 1903.12261), with corruptions that a photo of a face and a face
detector bring about. Faces are corrupted as uint8, before the network's own normalisation.
"""

from collections.abc import Callable
from typing import Any, Final

import cv2
import numpy as np
import torch
from tqdm import tqdm

from emotion.data import FaceDataset
from emotion.evaluate import compute_logits, score
from emotion.labels import IMAGE_SIZE
from emotion.model import EmotionCNN

SEVERITIES: Final = {
    "blur": (0.5, 1.0, 2.0),
    "noise": (10.0, 20.0, 40.0),
    "brightness": (0.5, 1.0, 1.5),
    "jpeg": (50, 25, 10),
    "rotation": (10.0, 20.0, 30.0),
    "occlusion": (12, 18, 24),
    "framing": (0.05, 0.08, 0.16),
}
"""Mild to strong. blur: standard deviation of a Gaussian in pixels; noise: standard deviation of Gaussian noise in grey
levels (0-255); brightness: stops of exposure, up or down; jpeg: quality; rotation: degrees, either way; occlusion: side
of a black square anywhere in the picture, in pixels; framing: standard deviation of the frame's log size and of its
shift in both directions, in sides. A detector's boxes scatter by 5% (MTCNN) to 8% (dlib) in size; 16% is twice that."""
UNITS: Final = {
    "blur": "pixels",
    "noise": "grey levels",
    "brightness": "stops",
    "jpeg": "quality",
    "rotation": "degrees",
    "occlusion": "pixels",
    "framing": "sides",
}
"""Units of `SEVERITIES`."""


def corrupt(image: np.ndarray, corruption: str, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Corrupt one face.

    Where a turned or shifted frame reaches beyond the picture, the outermost pixels are repeated: like the surroundings
    in a photo, and unlike the flat grey that the network may have met in training.

    Args:
        image: grey uint8 (48, 48), 0-255.
        corruption: a key of `SEVERITIES`.
        severity: in the unit given there.
        rng: source of the draws; the same state gives the same draws at every severity.

    Returns:
        Grey uint8 (48, 48), 0-255.

    Raises:
        ValueError: if there is no such corruption.
    """
    if corruption not in _CORRUPTIONS:
        raise ValueError(f"corruption is {corruption!r}; give one of {', '.join(SEVERITIES)}.")
    return _CORRUPTIONS[corruption](image, severity, rng)


def measure_robustness(model: EmotionCNN, dataset: FaceDataset, split: str) -> dict[str, Any]:
    """Accuracy under each corruption and severity, one view; shows a progress bar on standard error.

    The draws are seeded, and the same for each severity of a corruption, so that only the severity differs.

    Args:
        model: any network of this package.
        dataset: faces and labels.
        split: what they are, such as "PublicTest".

    Returns:
        JSON-ready: `split`, `label_set`, `rows`; `severities` as in `SEVERITIES`, and `accuracy` (fractions) likewise.

    Raises:
        ValueError: if the data set is empty or shares no class name with the model.
    """
    accuracy: dict[str, list[float]] = {name: [] for name in SEVERITIES}
    cells = [(name, severity) for name, severities in SEVERITIES.items() for severity in severities]
    for name, severity in tqdm(cells, desc="robustness", leave=False, disable=None):
        rng = np.random.default_rng(0)
        images = np.stack([corrupt(image, name, severity, rng) for image in dataset.images.numpy()])
        corrupted = FaceDataset(torch.from_numpy(images), dataset.targets, dataset.labels)
        accuracy[name].append(score(model, compute_logits(model, corrupted), dataset)["accuracy"])
    return {
        "split": split,
        "label_set": dataset.label_set,
        "rows": len(dataset),
        "severities": {name: list(severities) for name, severities in SEVERITIES.items()},
        "accuracy": accuracy,
    }


def _blur(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def _noise(image: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    return _to_uint8(image + std * rng.standard_normal(image.shape))


def _brightness(image: np.ndarray, stops: float, rng: np.random.Generator) -> np.ndarray:
    return _to_uint8(image * 2.0 ** (stops * rng.choice((-1, 1))))


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    _, encoded = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, int(quality)))
    return cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)


def _rotation(image: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    return _framed(image, angle=degrees * rng.choice((-1, 1)))


def _occlusion(image: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    top, left = (rng.random(2) * (IMAGE_SIZE - side + 1)).astype(int)
    result = image.copy()
    result[top : top + int(side), left : left + int(side)] = 0
    return result


def _framing(image: np.ndarray, scatter: float, rng: np.random.Generator) -> np.ndarray:
    size, right, down = scatter * rng.standard_normal(3)
    return _framed(image, size=np.exp(size), right=right, down=down)


def _framed(image: np.ndarray, angle: float = 0, size: float = 1, right: float = 0, down: float = 0) -> np.ndarray:
    """What a frame of another size (factor), place (shift in sides) and angle (degrees) shows of the picture."""
    centre = (IMAGE_SIZE - 1) / 2
    # From the frame's pixels to the picture's: a frame turned clockwise shows a picture turned counter-clockwise.
    matrix = cv2.getRotationMatrix2D((centre, centre), -angle, size)
    matrix[:, 2] += IMAGE_SIZE * np.array([right, down])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, image.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return image.round().clip(0, 255).astype(np.uint8)


_CORRUPTIONS: Final[dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]]] = {
    "blur": _blur,
    "noise": _noise,
    "brightness": _brightness,
    "jpeg": _jpeg,
    "rotation": _rotation,
    "occlusion": _occlusion,
    "framing": _framing,
}
