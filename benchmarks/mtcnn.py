"""The face detector as one writes it first, in plain PyTorch: the yardstick of `emotion.faces.FaceDetector`.

The same networks, thresholds and mirror images; every level of the pyramid comes from the whole picture, every patch
is judged twice, and NumPy suppresses the overlapping boxes.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import cv2
import joblib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from emotion.faces import MIN_FACE, PYRAMID_STEP, SEARCH_SIDE, THRESHOLDS, Face, _brighten, _cut


class PlainNetwork(nn.Module):
    """One of the three networks.

    Args:
        layers: channels, kernel and pooling (0 for none) of each layer.
        heads: number of outputs of each head.
        arrays: the Keras weights in the order of the layers, then the heads.
    """

    def __init__(self, layers: Sequence[tuple[int, int, int]], heads: Sequence[int], arrays: list[np.ndarray]) -> None:
        super().__init__()
        trunk: list[nn.Module] = []
        channels_in = 3
        for channels, kernel, pool in layers:
            trunk += [nn.Conv2d(channels_in, channels, kernel), nn.PReLU(channels)]
            if pool:
                trunk.append(nn.MaxPool2d(pool, 2, ceil_mode=True))
            channels_in = channels
        self.trunk = nn.Sequential(*trunk)
        self.heads = nn.ModuleList(nn.Conv2d(channels_in, outputs, 1) for outputs in heads)
        for parameter, array in zip(self.parameters(), arrays, strict=True):
            weights = torch.from_numpy(array)
            if array.ndim == 4:
                weights = weights.permute(3, 2, 0, 1)
            elif array.ndim == 2:
                side = parameter.shape[-1]
                weights = weights.view(side, side, -1, array.shape[1]).permute(3, 2, 1, 0)
            parameter.data.copy_(weights.reshape(parameter.shape))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Float RGB images (N, 3, H, W) in [-1, 1] to the heads' outputs, and the probability of a face (N, h, w)."""
        features = self.trunk(images)
        *outputs, logits = [head(features) for head in self.heads]
        return [*outputs, logits.softmax(dim=1)[:, 1]]


class PlainDetector:
    """Finds the faces that `emotion.faces.FaceDetector` finds."""

    def __init__(self) -> None:
        folder = Path(importlib.util.find_spec("mtcnn").origin).parent / "assets" / "weights"
        arrays = [joblib.load(folder / f"{name}.lz4") for name in ("pnet", "rnet", "onet")]
        self.proposal = PlainNetwork([(10, 3, 2), (16, 3, 0), (32, 3, 0)], (4, 2), arrays[0])
        self.refinement = PlainNetwork([(28, 3, 3), (48, 3, 3), (64, 2, 0), (128, 3, 0)], (4, 2), arrays[1])
        layers = [(32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0), (256, 3, 0)]
        self.output = PlainNetwork(layers, (4, 10, 2), arrays[2])

    @torch.inference_mode()
    def detect(self, image: Image.Image) -> list[Face]:
        """Find the faces in an upright 8-bit RGB photo, the largest first."""
        scale = min(1.0, SEARCH_SIDE / max(image.size))
        size = tuple(max(1, round(side * scale)) for side in image.size)
        pixels = _brighten(np.array(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)))
        boxes, scores = self._propose(pixels)
        boxes = boxes[_suppress(boxes, scores, 0.7)]
        boxes, scores, _ = _refine(self.refinement, pixels, boxes, 24, THRESHOLDS[1])
        boxes = boxes[_suppress(boxes, scores, 0.7)]
        boxes, scores, points = _refine(self.output, pixels, boxes, 48, THRESHOLDS[2])
        faces = []
        for index in _suppress(boxes, scores, 0.7, of_smaller=True):
            x, y, right, bottom = (boxes[index] / scale).tolist()
            landmarks = tuple(map(tuple, (points[index].reshape(2, 5).T / scale).tolist()))
            faces.append(Face((x, y, right - x, bottom - y), float(scores[index]), landmarks))
        return sorted(faces, key=lambda face: face.box[2] * face.box[3], reverse=True)

    def _propose(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().sub_(127.5).div_(128)
        found, found_scores = [np.empty((0, 4))], [np.empty(0)]
        scale = 12 / MIN_FACE
        while min(pixels.shape[:2]) * scale >= 12 * PYRAMID_STEP:
            size = [max(1, round(side * scale)) for side in pixels.shape[:2]]
            level = F.interpolate(picture, size, mode="bilinear", antialias=True, align_corners=False)
            offsets, probability = self.proposal(F.pad(level, (6,) * 4))
            rows, columns = torch.nonzero(probability[0] > THRESHOLDS[0], as_tuple=True)
            corners = torch.stack([columns, rows], dim=1).double() * 2 - 6
            windows = torch.cat([corners, corners + 12], dim=1) + 12 * offsets[0, :, rows, columns].T
            boxes = windows.numpy() * np.tile(np.array(pixels.shape[1::-1]) / size[::-1], 2)
            scores = probability[0, rows, columns].numpy()
            kept = _suppress(boxes, scores, 0.5)
            found.append(boxes[kept])
            found_scores.append(scores[kept])
            scale *= PYRAMID_STEP
        return np.concatenate(found), np.concatenate(found_scores)


def _refine(
    net: PlainNetwork, pixels: np.ndarray, boxes: np.ndarray, size: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not len(boxes):
        return boxes, np.empty(0), np.empty((0, 10))
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    corners = (boxes[:, :2] + boxes[:, 2:] - sides[:, None]) / 2
    patches = [
        _cut(pixels, complex(*corner) + side * (0.5 + 0.5j), side, size, cv2.BORDER_CONSTANT)
        for corner, side in zip(corners, sides, strict=True)
    ]
    images = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float().sub_(127.5).div_(128)
    outputs = [output.flatten(1).double().numpy() for output in net(torch.cat([images, images.flip(3)]))]
    offsets, *landmarks, probability = [output.reshape(2, len(boxes), -1) for output in outputs]
    offsets[1] = offsets[1][:, [2, 1, 0, 3]] * (-1, 1, -1, 1)
    boxes = np.concatenate([corners, corners + sides[:, None]], axis=1) + sides[:, None] * offsets.mean(axis=0)
    points = np.empty((len(boxes), 10))
    if landmarks:
        landmarks[0][1, :, :5] = 1 - landmarks[0][1, :, :5]
        landmarks[0][1] = landmarks[0][1][:, [1, 0, 2, 4, 3, 6, 5, 7, 9, 8]]
        points = corners.repeat(5, axis=1) + sides[:, None] * landmarks[0].mean(axis=0)
    probability = probability.mean(axis=(0, 2))
    kept = (probability > threshold) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    return boxes[kept], probability[kept], points[kept]


def _suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float, of_smaller: bool = False) -> np.ndarray:
    """Greedy non-maximum suppression by the overlap with the union, or with the smaller box; best score first."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        start = np.maximum(boxes[best, :2], boxes[order, :2])
        end = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = (end - start).clip(0).prod(axis=1)
        whole = np.minimum(areas[best], areas[order]) if of_smaller else areas[best] + areas[order] - common
        order = order[common <= threshold * whole]
    return np.array(kept, dtype=int)
