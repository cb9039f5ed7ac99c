"""Figures against scikit-learn, SciPy and sums written out by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn import metrics as sk

from emotion.data import FaceDataset
from emotion.evaluate import compute_logits, evaluate, expected_calibration_error, fit_temperature
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
