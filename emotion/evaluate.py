"""Accuracy, confusion and calibration of a network on a labelled split, and what is fitted there.

The network sees each face once per view: everything else is computed from `compute_logits`.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from torch import Tensor

from emotion.checkpoint import atomic_write, to_json
from emotion.data import FaceDataset, not_in, photos_not_in, split_kind
from emotion.model import EmotionCNN
from emotion.transforms import get_enhanced_transforms_grayscale_48

RESULTS: Final = {
    "plain": "one view",
    "tta": "mean of the face and its mirror image",
    "unseen": "one view, without faces that also stand in the training data",
    "new_photos": "one view, without faces whose photo also stands in the training data, in whatever print",
}
"""The entries of `metrics.json` that measure accuracy, and what each one measures."""
ECE_BINS = 15
RESAMPLES = 10_000
"""Bootstrap samples of an interval, whose ends then scatter by about a hundredth of its width."""
BLUE, ORANGE = "#0072B2", "#D55E00"
"""Told apart with any colour vision (Okabe & Ito 2008, jfly.uni-koeln.de/color)."""


@torch.inference_mode()
def compute_logits(model: EmotionCNN, dataset: FaceDataset, tta: bool = False) -> Tensor:
    """Logits of every face of `dataset`, in eval mode, on the model's own device.

    Returns:
        Float32 (views, N, model classes) on the CPU, with two views (plain and mirrored) if `tta`, else one.

    Raises:
        ValueError: if the data set is empty or shares no class name with the model.
    """
    _known(model, dataset)  # refused before the work, not after it
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

    Args:
        model: any network of this package.
        dataset: faces and labels; one-hot targets or distributions, whose largest entry counts.
        tta: average the probabilities over the face and its mirror image.

    Returns:
        As `score`.

    Raises:
        ValueError: if the data set is empty or shares no class name with the model.
    """
    return score(model, compute_logits(model, dataset, tta), dataset)


def score(model: EmotionCNN, logits: Tensor, dataset: FaceDataset) -> dict[str, Any]:
    """What `evaluate` reports, from logits computed before.

    Classes are matched by name. What the data set has no name for (contempt on seven-class labels) is masked out of
    the model's answer; what the model has no name for gets probability 0, so those rows count as wrong.

    Args:
        model: the network that gave the logits; its labels and temperature count.
        logits: float (views, N, model classes) from `compute_logits`; probabilities are averaged over the views.
        dataset: the N faces.

    Returns:
        JSON-ready: `labels` (the data set's), `rows`, `views`, `temperature`; as fractions `accuracy` (top-1), its
        95% `interval` [low, high] (percentile bootstrap over rows; Efron 1979, doi.org/10.1214/aos/1176344552),
        `balanced_accuracy` (mean recall over the classes that occur) and `ece` (`expected_calibration_error`); `nll`
        (mean negative log likelihood in nats, probabilities below 1e-12 counted as that); `per_class` with `rows`,
        `precision`, `recall` and `f1` (0 where undefined); `confusion` with a row per true and a column per predicted
        class; `reliability` as the function of that name returns it.

    Raises:
        ValueError: if the data set is empty or shares no class name with the model.
    """
    probabilities = calibrated_probabilities(model, logits, dataset)
    truth = dataset.class_indices.numpy()
    predicted = probabilities.argmax(1)
    confusion = np.zeros((len(dataset.labels), len(dataset.labels)), dtype=int)
    np.add.at(confusion, (truth, predicted), 1)
    right, true, claimed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    recall, precision = right / np.maximum(true, 1), right / np.maximum(claimed, 1)
    f1 = 2 * right / np.maximum(true + claimed, 1)
    confidence, correct = probabilities.max(1), predicted == truth
    return {
        "labels": list(dataset.labels),
        "rows": len(dataset),
        "views": len(logits),
        "temperature": model.temperature,
        "accuracy": float(correct.mean()),
        "interval": bootstrap_interval(correct),
        "balanced_accuracy": float(recall[true > 0].mean()),
        "nll": float(-np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12)).mean()),
        "ece": expected_calibration_error(confidence, correct),
        "per_class": {
            label: {"rows": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
            for label, n, p, r, f in zip(dataset.labels, true, precision, recall, f1, strict=True)
        },
        "confusion": confusion.tolist(),
        "reliability": reliability(confidence, correct),
    }


def _known(model: EmotionCNN, dataset: FaceDataset) -> list[str]:
    """The classes that the model and the data set both name."""
    known = [label for label in dataset.labels if label in model.labels]
    if not known or len(dataset) == 0:
        raise ValueError(
            f"The model knows {', '.join(model.labels)}, the data set has {len(dataset)} faces of "
            f"{', '.join(dataset.labels)}; give faces with classes that the model knows."
        )
    return known


def calibrated_probabilities(model: EmotionCNN, logits: Tensor, dataset: FaceDataset) -> np.ndarray:
    """What the model answers for each face, in the classes of the data set.

    Args:
        model: the network that gave the logits.
        logits: float (views, N, model classes) from `compute_logits`.
        dataset: the N faces.

    Returns:
        Float64 (N, classes of `dataset`), averaged over the views, rows summing to 1. Classes are matched by name, as
        in `score`.

    Raises:
        ValueError: if the data set is empty or shares no class name with the model.
    """
    known = _known(model, dataset)
    logits = logits[:, :, [model.labels.index(label) for label in known]]
    probabilities = np.zeros((len(dataset), len(dataset.labels)))
    views = torch.stack([model.calibrate(view) for view in logits]).double().mean(0)
    probabilities[:, [dataset.labels.index(label) for label in known]] = views.numpy()
    return probabilities


def report(
    model: EmotionCNN,
    logits: Tensor,
    dataset: FaceDataset,
    split: str,
    training: FaceDataset | None = None,
) -> dict[str, dict[str, Any]]:
    """The figures of a checkpoint, as its `metrics.json` has them.

    Args:
        model: the network.
        logits: float (views, N, model classes) from `compute_logits` with `tta`; the first view is the face itself.
        dataset: the N faces.
        split: what they are, such as "PublicTest".
        training: what the network has been trained on, if known.

    Returns:
        JSON-ready. `plain` (one view), `tta` (all views), `unseen` (one view, without the rows whose pixels stand in
        `training` too) and `new_photos` (nor those of which `photos_not_in` finds another print there) are what
        `score` returns, with `split` and `label_set`; the last two are left out if `training` is unknown or holds
        every row. `clear_answer` has `split`, `rows`, and as `clear_threshold` returns it `threshold`, then the
        `share` of rows with a top probability of at least that, and their `accuracy` (one view); left out on a training
        or test split, where nothing may be chosen.

    Raises:
        ValueError: if the data set is empty or shares no class name with the model.
    """
    about = {"split": split, "label_set": dataset.label_set}
    result = {"plain": about | score(model, logits[:1], dataset), "tta": about | score(model, logits, dataset)}
    for name, select in (("unseen", not_in), ("new_photos", photos_not_in)):
        if training is not None and (rows := select(dataset, training)).any():
            result[name] = about | score(model, logits[:1, rows], dataset.subset(rows))
    if split_kind(split) not in ("train", "test"):
        probabilities = calibrated_probabilities(model, logits[:1], dataset)
        confidence, correct = probabilities.max(1), probabilities.argmax(1) == dataset.class_indices.numpy()
        threshold = clear_threshold(confidence, correct)
        clear = confidence >= threshold
        result["clear_answer"] = {
            "split": split,
            "rows": len(dataset),
            "threshold": threshold,
            "share": float(clear.mean()),
            "accuracy": float(correct[clear].mean()),
        }
    return result


def bootstrap_interval(correct: np.ndarray) -> list[float]:
    """95% percentile bootstrap interval of an accuracy, [low, high] in [0, 1]; the same rows give the same interval.

    Args:
        correct: bool (N,), whether each row was answered right. With all or none right, the interval has no width.
    """
    # The number right among N rows drawn with replacement is binomial: no row need be drawn to resample exactly.
    resamples = np.random.default_rng(0).binomial(len(correct), correct.mean(), RESAMPLES) / len(correct)
    return np.quantile(resamples, (0.025, 0.975)).tolist()


def clear_threshold(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The top probability from which on an answer counts as clear, learned from labelled rows.

    It minimises the number of wrong answers called clear plus right answers called unclear, both mistakes weighing the
    same. For a calibrated network that is near 0.5: an answer is clear if it is more likely right than wrong. Of
    equally good thresholds the highest is taken, and at least the surest row is clear.

    Args:
        confidence: float (N,), the top probability of each row.
        correct: bool (N,), whether the top class was the true one.

    Returns:
        One of `confidence`.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence, correct = confidence[order], correct[order]
    # What calling the k surest rows clear gains over calling none clear, for k from 1 to N.
    gain = np.cumsum(np.where(correct, 1, -1))
    # Rows of the same confidence are clear together or not at all.
    possible = np.append(confidence[1:] != confidence[:-1], True)
    return float(confidence[np.where(possible, gain, gain.min() - 1).argmax()])


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Mean confidence and accuracy in 15 equal-width bins of the top probability (Guo et al. 2017, arXiv 1706.04599).

    Args:
        confidence: float (N,), the top probability of each row, in [0, 1].
        correct: bool (N,), whether the top class was the true one.

    Returns:
        `confidence`, `accuracy` and `rows` of each bin that has rows, from low to high.
    """
    # Bins are open on the left and closed on the right, as in the paper.
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    rows, confidences, rights = (np.bincount(bins, weights, ECE_BINS) for weights in (None, confidence, correct))
    return [
        {"confidence": float(c / n), "accuracy": float(r / n), "rows": int(n)}
        for c, r, n in zip(confidences, rights, rows, strict=True)
        if n
    ]


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over the bins of `reliability`, weighted by rows; arguments as there.

    Returns:
        A fraction in [0, 1].
    """
    bins = reliability(confidence, correct)
    return sum(b["rows"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(confidence)


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


def save_report(metrics: dict[str, Any], folder: str | Path) -> None:
    """Write `metrics.json`, `confusion.png` and `reliability.png` (of its `plain` figures), replacing what is there.

    Args:
        metrics: as from `report`, to which more may have been added.
        folder: a checkpoint's, for instance; made if missing.

    Raises:
        ValueError: if a number is not finite.
        OSError: if a file cannot be written; then none is replaced.
    """
    folder = Path(folder)
    with ExitStack() as stack:  # no file is replaced before all are written
        file = stack.enter_context(atomic_write(folder / "metrics.json"))
        file.write_bytes(to_json("metrics", metrics))
        plot_confusion(metrics["plain"], stack.enter_context(atomic_write(folder / "confusion.png")))
        plot_reliability(metrics["plain"], stack.enter_context(atomic_write(folder / "reliability.png")))


def plot_confusion(result: dict[str, Any], file: str | Path | BinaryIO) -> None:
    """Draw the confusion matrix as a PNG: the share of each true class (row) that was given each answer (column).

    Args:
        result: as from `score`, with `split` and `label_set`.
        file: where the PNG goes, whatever its extension, or a binary stream.
    """
    # Imported here because inference and the command line's other uses do without it.
    from matplotlib.figure import Figure

    confusion, labels = np.array(result["confusion"]), result["labels"]
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = max(4.5, 0.75 * len(labels) + 1.2)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(share):
        if confusion[row, column]:
            colour = "white" if value > 0.65 else "black"
            axes.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour)
    rows = [f"{label} ({n:,})" for label, n in zip(labels, confusion.sum(1), strict=True)]
    # Names are no formulas, also those with a dollar sign.
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(labels)), rows, parse_math=False)
    axes.set_title(_title(result), parse_math=False)
    axes.set(xlabel="predicted", ylabel="true class (rows)")
    figure.savefig(file, format="png", dpi=100)


def plot_reliability(result: dict[str, Any], file: str | Path | BinaryIO) -> None:
    """Draw the reliability diagram as a PNG: accuracy over confidence, and below it the rows of each bin.

    Args:
        result: as from `score`, with `split` and `label_set`.
        file: where the PNG goes, whatever its extension, or a binary stream.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    confidence, accuracy, rows = (
        np.array([b[key] for b in result["reliability"]]) for key in ("confidence", "accuracy", "rows")
    )
    figure = Figure(figsize=(5.2, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color="grey", linestyle="--", label="perfect calibration")
    upper.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=3, label="gap")
    upper.plot(confidence, accuracy, color=BLUE, marker="o", label=f"this network (ECE {result['ece']:.1%})")
    upper.set_title(_title(result), parse_math=False)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="upper left")
    lower.bar((np.ceil(confidence * ECE_BINS) - 0.5) / ECE_BINS, rows, 0.9 / ECE_BINS, color=BLUE)
    lower.set(xlabel="confidence (top probability)", ylabel="rows")
    for axis in (upper.xaxis, upper.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=100)


def _title(result: dict[str, Any]) -> str:
    split = result["split"]
    kind = split_kind(split)
    if kind and kind not in split.lower():  # FER2013's PublicTest is none
        split = f"{split} ({kind})"
    return f"{split}\n{result['rows']:,} rows, {result['label_set']} labels, {result['accuracy']:.1%} right"
