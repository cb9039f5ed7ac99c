"""The network as an ONNX graph, and as one file that explains itself, for whatever reads ONNX.

What was written is compared with PyTorch before it replaces anything.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from onnx import helper
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from emotion.checkpoint import atomic_write
from emotion.labels import IMAGE_SIZE
from emotion.model import EmotionCNN
from emotion.runtime import Graph, session
from emotion.transforms import Normalize, get_enhanced_transforms_grayscale_48

TOLERANCE: Final = 1e-4
"""How far a float32 network's probabilities may be from PyTorch's."""
INT8_TOLERANCE: Final = 0.2
"""How far an int8 network's probabilities may be from PyTorch's on the faces that it was calibrated with: it catches
a broken file; what int8 costs in accuracy is measured on real faces (`docs/experiments.md`)."""
BATCH: Final = 16
"""Faces per calibration batch; the comparison with PyTorch has batches of at most this many, and one of one."""


def export_onnx(model: EmotionCNN, file: str | Path, calibration: np.ndarray | None = None) -> Path:
    """Write the network, its temperature and what one must know to use it as an ONNX file.

    Its input `faces` is float32 (N, 1, 48, 48), normalised as the metadata say; its output `probabilities` is float32
    (N, num_classes), calibrated. Batch norms are folded into the layers before them. The metadata are `labels` (a JSON
    list in output order), `temperature` (already applied), `image_size`, `mean`, `std`, and the sentences `input` and
    `output`.

    With `calibration`, convolutions and max-pools are quantised to int8, weights per channel (Jacob et al. 2018,
    arXiv 1712.05877); dense layers stay float32, since they lose the most and save the least. Weights use seven bits:
    with eight, processors without VNNI overflow.

    Args:
        model: the network, on any device; it is not changed.
        file: where to write; folders on the way are created.
        calibration: grey faces, uint8 (N, 48, 48), from which the ranges of int8 are taken; without them the network
            stays float32.

    Returns:
        The file.

    Raises:
        ValueError: if the calibration faces have another shape or dtype, or the probabilities of seeded noise (float32)
            or of the calibration faces (int8) differ from PyTorch's by more than `TOLERANCE` or `INT8_TOLERANCE`; an
            existing file stays then.
        OSError: if the file cannot be written.
    """
    file, int8 = Path(file), calibration is not None
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; give the name of a file, such as {file / 'emotion.onnx'}.")
    model = copy.deepcopy(model).cpu().eval()
    network = build_graph(model)
    if int8:
        if calibration.dtype != np.uint8 or calibration.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE) or not len(calibration):
            raise ValueError(
                f"calibration faces are {calibration.dtype} {calibration.shape}; give uint8 of shape (N, 48, 48)."
            )
        normalise = get_enhanced_transforms_grayscale_48(training=False)
        images, tolerance = normalise(torch.from_numpy(calibration)[:, None]), INT8_TOLERANCE
    else:
        generator = torch.Generator().manual_seed(0)
        images, tolerance = 2 * torch.rand(4, 1, IMAGE_SIZE, IMAGE_SIZE, generator=generator) - 1, TOLERANCE
    with atomic_write(file) as temporary:
        if int8:
            _quantise(network, images, temporary)
        else:
            temporary.write_bytes(network.SerializeToString())
        difference = _difference(model, temporary, images)
        # NaN is no difference that could be accepted.
        if not difference <= tolerance:
            raise ValueError(
                f"{file} is not written, since the ONNX network's probabilities are up to {difference:.2g} from "
                f"PyTorch's, more than {tolerance}; use another checkpoint{' or float32' if int8 else ''}."
            )
    return file


def build_graph(model: EmotionCNN) -> onnx.ModelProto:
    """The graph that `export_onnx` describes, with its metadata, in float32.

    Args:
        model: the network, on the CPU and in eval mode.
    """
    side = IMAGE_SIZE
    graph = Graph("faces", np.float32, ["N", 1, side, side])
    for layer in folded(model):
        if isinstance(layer, nn.Conv2d):
            graph.add("Conv", layer.weight.detach().numpy(), layer.bias.detach().numpy(), pads=[1, 1, 1, 1])
        elif isinstance(layer, nn.Linear):
            graph.add("Gemm", layer.weight.detach().numpy(), layer.bias.detach().numpy(), transB=1)
        elif isinstance(layer, nn.ReLU):
            graph.add("Relu")
        elif isinstance(layer, nn.MaxPool2d):
            graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            graph.add("GlobalAveragePool")
        elif isinstance(layer, nn.Flatten):
            graph.add("Flatten")
        else:
            assert isinstance(layer, (nn.Dropout, nn.Dropout2d)), f"{layer} has no ONNX node yet"
    graph.add("Div", np.array(model.temperature, np.float32))
    graph.add("Softmax", name="probabilities", axis=1)
    network = graph.give(probabilities=["N", model.num_classes])
    normalise = Normalize()
    metadata = {
        "labels": json.dumps(model.labels, ensure_ascii=False),
        "temperature": str(model.temperature),
        "image_size": str(side),
        "mean": str(normalise.mean),
        "std": str(normalise.std),
        "input": f"faces: float32 (N, 1, {side}, {side}), grey face crops as (pixel / 255 - mean) / std",
        "output": f"probabilities: float32 (N, {model.num_classes}), softmax(logits / temperature), in label order",
    }
    helper.set_model_props(network, metadata)
    return network


def folded(model: EmotionCNN) -> Iterator[nn.Module]:
    """The layers of `model`, which is in eval mode, in order, each batch norm folded into the layer before it."""
    layers = [*(layer for block in model.features for layer in block), *model.classifier]
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(following, nn.BatchNorm2d):
            yield fuse_conv_bn_eval(layer, following)
        elif isinstance(following, nn.BatchNorm1d):
            yield fuse_linear_bn_eval(layer, following)
        elif not isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            yield layer


class _Batches:
    """Batches of normalised faces, as ONNX Runtime's calibration asks for them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.batches = iter(images.split(BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"faces": batch.numpy()}


def _quantise(network: onnx.ModelProto, images: torch.Tensor, file: Path) -> None:
    """Write `network` with int8 convolutions; the ranges are those that it has on `images`."""
    # Not above: a page that only predicts need not wait for it.
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    # Its pre-processing would fold batch norms; they are folded, and saying so spares a warning.
    add_pre_process_metadata(network)
    quantize_static(
        network,
        file,
        _Batches(images),
        op_types_to_quantize=["Conv", "MaxPool"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


@torch.inference_mode()
def _difference(model: EmotionCNN, file: Path, images: torch.Tensor) -> float:
    """The largest difference between the probabilities of ONNX Runtime and PyTorch, for one image and for batches."""
    runtime = session(onnx.load(file))
    differences = [
        runtime.run(None, {"faces": batch.numpy()})[0] - model.probabilities(batch).numpy()
        for batch in (images[:1], *images.split(BATCH))
    ]
    return float(np.abs(np.concatenate(differences)).max())
