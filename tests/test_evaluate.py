"""Figures against scikit-learn, SciPy and sums written out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from emotion.data import FaceDataset
from emotion.evaluate import (
    bootstrap_interval,
    clear_threshold,
    compute_logits,
    evaluate,
    expected_calibration_error,
    fit_temperature,
    reliability,
    report,
    save_report,
)
from emotion.labels import FER2013_LABELS, FERPLUS_LABELS
from emotion.model import EmotionCNN


def network(num_classes: int = 7, temperature: float = 1.0) -> EmotionCNN:
    """Random weights whose answers differ from face to face, thanks to batch norms that know such faces."""
    torch.manual_seed(num_classes)
    model = EmotionCNN(num_classes, dropout_rate=0.0, temperature=temperature)
    torch.nn.init.normal_(model.classifier[-1].weight, std=0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model(random_faces(FER2013_LABELS).images[:, None].float() / 127.5 - 1)
    return model.eval()


def random_faces(labels: tuple[str, ...], count: int = 60) -> FaceDataset:
    generator = torch.Generator().manual_seed(0)
    # Smoothed noise of changing contrast: pure noise looks the same to a network of random weights.
    coarse = torch.rand(count, 1, 6, 6, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)
    images = (torch.nn.functional.interpolate(coarse, 48, mode="bicubic").clamp(0, 1) * 255).byte()[:, 0]
    classes = torch.randint(len(labels), (count,), generator=generator)
    return FaceDataset(images, torch.eye(len(labels))[classes], labels)


def logits_of(model: EmotionCNN, faces: FaceDataset) -> np.ndarray:
    with torch.no_grad():
        return model((faces.images[:, None].float() / 255 - 0.5) / 0.5).double().numpy()


def test_figures_are_scikit_learns() -> None:
    model, faces = network(temperature=1.7), random_faces(FER2013_LABELS)
    result = evaluate(model, faces)
    probabilities = softmax(logits_of(model, faces) / 1.7, axis=1)
    truth, predicted = faces.class_indices.numpy(), probabilities.argmax(1)
    assert len(set(predicted.tolist())) > 1
    assert result["rows"] == 60
    assert result["views"] == 1
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert result["nll"] == pytest.approx(sk.log_loss(truth, probabilities, labels=range(7)), rel=1e-4)
    assert result["confusion"] == sk.confusion_matrix(truth, predicted, labels=range(7)).tolist()
    scores = sk.precision_recall_fscore_support(truth, predicted, labels=range(7), zero_division=0)
    for label, precision, recall, f1, rows in zip(FER2013_LABELS, *scores, strict=True):
        expected = {"precision": precision, "recall": recall, "f1": f1, "rows": rows}
        assert result["per_class"][label] == pytest.approx(expected)


def test_ece_is_the_papers_sum() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(500) ** 0.5, rng.random(500) < 0.6
    total = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, correct) == pytest.approx(total)


def test_ece_of_known_cases() -> None:
    assert expected_calibration_error(np.ones(4), np.array([True, True, True, True])) == 0
    assert expected_calibration_error(np.ones(4), np.array([True, True, False, False])) == 0.5
    assert expected_calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)


def test_mirror_view_is_averaged_in_probability() -> None:
    model, faces = network(), random_faces(FER2013_LABELS)
    mirrored = FaceDataset(faces.images.flip(-1), faces.targets, faces.labels)
    mean = (softmax(logits_of(model, faces), axis=1) + softmax(logits_of(model, mirrored), axis=1)) / 2
    result = evaluate(model, faces, tta=True)
    assert result["views"] == 2
    assert result["nll"] == pytest.approx(sk.log_loss(faces.class_indices.numpy(), mean, labels=range(7)), rel=1e-4)


def test_contempt_is_masked_on_seven_class_labels() -> None:
    model, faces = network(8), random_faces(FER2013_LABELS)
    logits = logits_of(model, faces)
    assert (logits.argmax(1) == 7).any()
    expected = (logits[:, :7].argmax(1) == faces.class_indices.numpy()).mean()
    result = evaluate(model, faces)
    assert result["accuracy"] == pytest.approx(expected)
    masked = softmax(logits[:, :7], axis=1)
    assert result["nll"] == pytest.approx(sk.log_loss(faces.class_indices.numpy(), masked, labels=range(7)), rel=1e-4)


def test_a_seven_class_model_gets_contempt_wrong() -> None:
    model, faces = network(7), random_faces(FERPLUS_LABELS)
    truth = faces.class_indices.numpy()
    assert (truth == 7).any()
    predicted = logits_of(model, faces).argmax(1)
    result = evaluate(model, faces)
    assert result["accuracy"] == pytest.approx(((predicted == truth) & (truth < 7)).mean())
    assert result["per_class"]["contempt"]["recall"] == 0
    assert np.isfinite(result["nll"])


def test_classes_are_matched_by_name_not_by_position() -> None:
    faces = random_faces(FER2013_LABELS)
    model = network()
    expected = evaluate(model, faces)["accuracy"]
    shuffled = list(reversed(range(7)))
    other = FaceDataset(faces.images, faces.targets[:, shuffled], tuple(FER2013_LABELS[i] for i in shuffled))
    assert evaluate(model, other)["accuracy"] == pytest.approx(expected)


def test_foreign_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="give faces with classes that the model knows"):
        evaluate(network(), random_faces(("cat", "dog")))


def test_logits_do_not_depend_on_the_batch() -> None:
    model, faces = network(), random_faces(FER2013_LABELS, 20)
    alone = torch.cat([compute_logits(model, faces.subset([row]))[0] for row in range(20)])
    torch.testing.assert_close(compute_logits(model, faces)[0], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_temperature_minimises_the_likelihood(scale: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (400, 7))
    # Labels drawn from the softmax of the logits, so that the true temperature is the scale put on them.
    classes = np.array([rng.choice(7, p=row) for row in softmax(logits, axis=1)])
    scaled = logits * scale

    def likelihood(temperature: float) -> float:
        return -log_softmax(scaled / temperature, axis=1)[np.arange(400), classes].mean()

    best = minimize_scalar(likelihood, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6}).x
    assert fit_temperature(torch.from_numpy(scaled), torch.from_numpy(classes)) == pytest.approx(best, rel=1e-3)
    assert best == pytest.approx(scale, rel=0.15)


@pytest.mark.parametrize(("rows", "accuracy"), [(3589, 0.646), (200, 0.9)])
def test_the_interval_is_that_of_resampled_rows(rows: int, accuracy: float) -> None:
    correct = np.arange(rows) < round(accuracy * rows)
    low, high = bootstrap_interval(correct)
    # SciPy draws the rows themselves.
    drawn = stats.bootstrap((correct,), np.mean, n_resamples=2000, method="percentile", rng=1).confidence_interval
    error = (accuracy * (1 - accuracy) / rows) ** 0.5
    assert (low, high) == pytest.approx((drawn.low, drawn.high), abs=0.1 * error + 1 / rows)
    assert (low, high) == pytest.approx((accuracy - 1.96 * error, accuracy + 1.96 * error), abs=0.1 * error + 1 / rows)
    assert bootstrap_interval(correct) == [low, high]
    assert bootstrap_interval(np.ones(rows, bool)) == [1, 1]


def test_reliability_bins_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    # No confidence below 0.2: the first three bins are empty. scikit-learn's bins are closed on the other side.
    confidence, correct = rng.uniform(0.2, 1, 500), rng.random(500) < 0.6
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    bins = reliability(confidence, correct)
    assert [b["accuracy"] for b in bins] == pytest.approx(accuracy)
    assert [b["confidence"] for b in bins] == pytest.approx(mean)
    assert [b["rows"] for b in bins] == np.histogram(confidence, 15, (0, 1))[0][3:].tolist()


def test_bins_are_closed_on_the_right() -> None:
    bins = reliability(np.array([0.2, 0.2 + 1e-9, 1.0]), np.array([True, False, True]))
    assert [(b["rows"], b["accuracy"]) for b in bins] == [(1, 1), (1, 0), (1, 1)]


def test_the_clear_threshold_of_a_hand_made_case() -> None:
    confidence = np.array([0.3, 0.9, 0.5, 0.4, 0.8, 0.6])
    correct = np.array([False, True, True, False, True, False])
    # From .8: one right answer (.5) is called unclear. From .5: one wrong one (.6) clear. The higher one is taken.
    assert clear_threshold(confidence, correct) == 0.8
    correct[5] = True
    assert clear_threshold(confidence, correct) == 0.5
    assert clear_threshold(confidence, np.ones(6, bool)) == 0.3
    assert clear_threshold(confidence, np.zeros(6, bool)) == 0.9  # the surest row is always clear
    # Equal confidences cannot be told apart: two right rows outweigh the wrong one beside them.
    assert clear_threshold(np.array([0.7, 0.7, 0.7, 0.2]), np.array([False, True, True, False])) == 0.7


def test_no_other_threshold_makes_fewer_mistakes() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 30_000).round(2)
    correct = rng.random(30_000) < confidence  # calibrated, so about 0.5 is best

    def mistakes(threshold: float) -> int:
        return int((~correct & (confidence >= threshold)).sum() + (correct & (confidence < threshold)).sum())

    learned = clear_threshold(confidence, correct)
    assert mistakes(learned) == min(mistakes(threshold) for threshold in np.arange(0.2, 1.01, 0.005))
    assert learned == pytest.approx(0.5, abs=0.05)


def test_the_report_is_what_evaluate_says_of_each_part() -> None:
    model, faces = network(temperature=1.7), random_faces(FER2013_LABELS)
    # Training has seen rows 5 to 9 of these faces, darker prints of the next two, and others.
    images = torch.cat([faces.images[5:10], faces.images[10:12] // 2, 255 - faces.images])
    seen = FaceDataset(images, torch.eye(7)[[0] * 67], faces.labels)
    logits = compute_logits(model, faces, tta=True)
    result = report(model, logits, faces, "PublicTest", seen)
    assert list(result) == ["plain", "tta", "unseen", "new_photos", "clear_answer"]
    about = {"split": "PublicTest", "label_set": "fer2013"}
    assert_same(result["plain"], about | evaluate(model, faces))
    assert_same(result["tta"], about | evaluate(model, faces, tta=True))
    unseen = faces.subset([*range(5), *range(10, 60)])
    assert result["unseen"]["rows"] == 55
    assert_same(result["unseen"], about | evaluate(model, unseen))
    new_photos = faces.subset([*range(5), *range(12, 60)])
    assert_same(result["new_photos"], about | evaluate(model, new_photos))
    assert len({json.dumps(result[key]) for key in ("plain", "tta", "unseen", "new_photos")}) == 4

    probabilities = softmax(logits_of(model, faces) / 1.7, axis=1)
    clear = result["clear_answer"]
    chosen = probabilities.max(1) >= clear["threshold"] - 1e-6
    right = probabilities.argmax(1) == faces.class_indices.numpy()
    assert (clear["split"], clear["rows"]) == ("PublicTest", 60)
    assert clear["share"] == pytest.approx(chosen.mean())
    assert clear["accuracy"] == pytest.approx(right[chosen].mean())


def assert_same(first: dict, second: dict) -> None:
    """Equal but for what the size of a batch does to the last digits."""
    assert first.keys() == second.keys()
    for key in first.keys() - {"reliability", "per_class"}:
        assert first[key] == (pytest.approx(second[key], rel=1e-4) if isinstance(second[key], float) else second[key])
    assert first["per_class"] == second["per_class"]
    for one, other in zip(first["reliability"], second["reliability"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_without_unseen_rows_there_is_no_such_figure() -> None:
    model, faces = network(), random_faces(FER2013_LABELS)
    logits = compute_logits(model, faces, tta=True)
    assert "unseen" not in report(model, logits, faces, "PublicTest")
    known = report(model, logits, faces, "PublicTest", faces)
    assert "unseen" not in known and "new_photos" not in known


@pytest.mark.parametrize("split", ["PrivateTest", "test", "Training"])
def test_no_threshold_is_chosen_on_test_or_training_faces(split: str) -> None:
    model, faces = network(), random_faces(FER2013_LABELS)
    assert list(report(model, compute_logits(model, faces, tta=True), faces, split)) == ["plain", "tta"]


def test_a_saved_report_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    model, faces = network(), random_faces(FER2013_LABELS)
    metrics = report(model, compute_logits(model, faces, tta=True), faces, "PublicTest")
    save_report(metrics, tmp_path / "new")
    assert json.loads((tmp_path / "new/metrics.json").read_text("utf-8")) == metrics
    for name in ("confusion.png", "reliability.png"):
        with Image.open(tmp_path / "new" / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 400
            assert len(picture.convert("L").getcolors()) > 20
    before = {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}
    assert before.keys() == {"metrics.json", "confusion.png", "reliability.png"}
    # Names are what they are: an unclosed formula is none.
    names = {"labels": ["cost $^$", *metrics["plain"]["labels"][1:]], "split": "a $\\frac$"}
    save_report({"plain": metrics["plain"] | names}, tmp_path / "named")
    assert (tmp_path / "named/confusion.png").read_bytes() != before["confusion.png"]
    with pytest.raises(KeyError):
        save_report({"plain": metrics["plain"] | {"accuracy": 0, "reliability": [{}]}}, tmp_path / "new")
    assert {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()} == before
