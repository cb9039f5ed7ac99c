"""Photo in, one prediction per face out."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from emotion.checkpoint import load_checkpoint
from emotion.explain import evidence
from emotion.faces import Box, FaceDetector, crop_face, crop_whole, open_image
from emotion.labels import IMAGE_SIZE
from emotion.model import EmotionCNN
from emotion.transforms import get_enhanced_transforms_grayscale_48

DEFAULT_CHECKPOINT: Final = Path(__file__).resolve().parents[1] / "checkpoints" / "ferplus"
"""The network that ships with the project, found from any working directory."""

Source = str | Path | bytes | Image.Image | np.ndarray
"""What is accepted as a photo; see `emotion.faces.open_image`."""


@dataclass(frozen=True)
class Prediction:
    """One face and its expression.

    Attributes:
        box: x, y, width and height of the detector's box in pixels of the upright photo; may reach beyond its edges.
        score: the detector's probability that this is a face, in [0, 1].
        emotion: the most probable class.
        confidence: its calibrated probability, in [0, 1].
        probabilities: calibrated probability of every class, in the model's order; they sum to 1.
        crop: what the network saw, grey uint8 (48, 48).
    """

    box: Box
    score: float
    emotion: str
    confidence: float
    probabilities: dict[str, float]
    crop: np.ndarray = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The face as the command line's `--json` and the page's `/predict` give it: everything but the crop."""
        return {name: value for name, value in vars(self).items() if name != "crop"}

    def __str__(self) -> str:
        """The class and a bar chart of all probabilities, as text of several lines."""
        width = max(map(len, self.probabilities))
        bars = [f"  {name:<{width}} {p:6.1%} {'#' * round(30 * p)}".rstrip() for name, p in self.probabilities.items()]
        return "\n".join([f"{self.emotion} ({self.confidence:.1%})", *bars])


class EmotionPredictor:
    """A network and a face detector, built once and used for any number of photos, also from several threads.

    On the CPU, ONNX Runtime classifies, with the weights and the temperature that the network has now: that is more
    than twice as fast as PyTorch and the same within 1e-4. Evidence maps, and everything on other devices, are
    PyTorch's.

    Args:
        model: the network; it is put in eval mode and stays on its device.

    Raises:
        FileNotFoundError: if the face detector's weights are not installed.
        ValueError: if they are not those of `mtcnn` 1.0.0.
    """

    def __init__(self, model: EmotionCNN) -> None:
        self.model = model.eval()
        self.detector = FaceDetector()
        self._device = next(model.parameters()).device
        self._to_input = get_enhanced_transforms_grayscale_48(training=False)
        if self._device.type == "cpu":
            # Here and not above: whoever only trains or evaluates need not wait for them.
            from emotion.export import build_graph
            from emotion.runtime import session

            self._session = session(build_graph(self.model))

    @classmethod
    def from_checkpoint(
        cls,
        path_or_hub_id: str | Path = DEFAULT_CHECKPOINT,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> "EmotionPredictor":
        """Load the network from a checkpoint folder, a `.pth` file or the Hub; by default the one that ships.

        Arguments and errors are those of `emotion.checkpoint.load_checkpoint`.
        """
        return cls(load_checkpoint(path_or_hub_id, device=device, revision=revision))

    def predict(self, image: Source, near: Sequence[Box] | None = None) -> list[Prediction]:
        """Find and classify every face of a photo, the largest first; none gives an empty list.

        A picture of exactly 48x48 pixels is a face crop already: it is used as it is, as in `predict_whole`.

        Args:
            image: path or bytes of a picture, PIL image, or array; see `emotion.faces.open_image`.
            near: boxes of the faces a moment ago; others are not looked for, see `emotion.faces.FaceDetector.detect`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a picture, is damaged or too large.
        """
        photo = open_image(image)
        if photo.size == (IMAGE_SIZE, IMAGE_SIZE):
            return [self.predict_whole(photo)]
        faces = self.detector.detect(photo, near)
        crops = [crop_face(photo, face) for face in faces]
        return self._predictions([face.box for face in faces], [face.score for face in faces], crops)

    def predict_whole(self, image: Source) -> Prediction:
        """Take the whole picture for one face, without detection; the box is its centre square, the score 1.

        Arguments and errors are those of `predict`.
        """
        photo = open_image(image)
        side = min(photo.size)
        box = ((photo.width - side) / 2, (photo.height - side) / 2, float(side), float(side))
        return self._predictions([box], [1.0], [crop_whole(photo)])[0]

    @torch.inference_mode()
    def classify(self, crops: np.ndarray) -> list[dict[str, float]]:
        """Classify face crops in one batch.

        Args:
            crops: grey uint8 (N, 48, 48), framed as `emotion.faces.crop_face` does.

        Returns:
            For each crop, the calibrated probability of every class, in the model's order.

        Raises:
            ValueError: if the crops have another shape or dtype.
        """
        if crops.dtype != np.uint8 or crops.ndim != 3 or crops.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"crops are {crops.dtype} {crops.shape}; give uint8 of shape (N, 48, 48), in 0 to 255.")
        images = self._to_input(torch.from_numpy(np.array(crops))[:, None].to(self._device))
        if self._device.type == "cpu":
            (rows,) = self._session.run(None, {"faces": images.numpy()})
        else:
            rows = self.model.probabilities(images)
        return [dict(zip(self.model.labels, row, strict=True)) for row in rows.tolist()]

    def evidence(self, crop: np.ndarray, emotion: str) -> np.ndarray:
        """Map of what in a face speaks for an emotion; see `emotion.explain.evidence`.

        Args:
            crop: grey uint8 (48, 48), such as `Prediction.crop`.
            emotion: any class of the model, not only the most probable.

        Returns:
            Float32 (48, 48) in [0, 1]; the strongest pixel is 1.

        Raises:
            ValueError: if the crop has another shape or dtype, or the model has no such class.
        """
        if crop.dtype != np.uint8 or crop.shape != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"crop is {crop.dtype} {crop.shape}; give uint8 of shape (48, 48), in 0 to 255.")
        if emotion not in self.model.labels:
            raise ValueError(f"emotion is {emotion!r}; give one of {', '.join(self.model.labels)}.")
        image = self._to_input(torch.from_numpy(np.array(crop))[None, None].to(self._device))
        return evidence(self.model, image, self.model.labels.index(emotion))

    def _predictions(
        self, boxes: Sequence[Box], scores: Sequence[float], crops: Sequence[np.ndarray]
    ) -> list[Prediction]:
        if not crops:
            return []
        predictions = []
        for box, score, probabilities, crop in zip(boxes, scores, self.classify(np.stack(crops)), crops, strict=True):
            emotion = max(probabilities, key=probabilities.__getitem__)
            predictions.append(Prediction(box, score, emotion, probabilities[emotion], probabilities, crop))
        return predictions


def load_and_predict_48x48_grayscale(checkpoint: str | Path, image: Source) -> tuple[str, float, dict[str, float]]:
    """Load a network and classify the most prominent face of one picture.

    Without a face in it the whole picture is taken for one, with a warning. For more than one picture,
    `EmotionPredictor` loads once.

    Args:
        checkpoint: checkpoint folder, `.pth` file or Hub id.
        image: path or bytes of a picture, PIL image, or array; exactly 48x48 pixels are used as they are.

    Returns:
        The most probable class, its calibrated probability, and the probability of every class in the model's order.

    Raises:
        FileNotFoundError: if the checkpoint or the picture does not exist.
        ValueError: if either is damaged or not what it should be.
    """
    photo = open_image(image)
    predictor = EmotionPredictor.from_checkpoint(checkpoint)
    predictions = predictor.predict(photo)
    if not predictions:
        warnings.warn("No face was found; the whole picture is taken for one.", stacklevel=2)
        predictions = [predictor.predict_whole(photo)]
    best = predictions[0]
    return best.emotion, best.confidence, best.probabilities
