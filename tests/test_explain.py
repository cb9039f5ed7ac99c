"""The evidence map: where a network provably looks, and nothing else changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from emotion.checkpoint import load_checkpoint
from emotion.explain import evidence
from emotion.model import EmotionCNN
from emotion.predict import EmotionPredictor


class Linear(nn.Module):
    """Two classes; the first's logit is the weighted sum of the pixels, the second's is 0."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        logit = (images * self.weight).sum(dim=(1, 2, 3))
        return torch.stack([logit, torch.zeros_like(logit)], dim=1)


class Mirrored(nn.Module):
    """A network that looks at the mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.flip(-1))


@pytest.fixture
def model(checkpoint: Path) -> EmotionCNN:
    return load_checkpoint(checkpoint)


@pytest.fixture
def image(crops: np.ndarray) -> Tensor:
    return torch.from_numpy(crops[0] / np.float32(127.5) - 1)[None, None]


def test_the_map_of_a_linear_network_is_its_weighted_detail(image: Tensor) -> None:
    """There the gradient has the same direction everywhere on the way, so the map is known without integration."""
    weight = torch.randn(48, 48, generator=torch.Generator().manual_seed(0)) / 100
    pixels = image[0, 0].double().numpy()
    credits = weight.double().numpy() * (pixels - pixels.mean())
    expected = [gaussian_filter(sign * credits, 2, mode="mirror").clip(0) for sign in (1, -1)]
    for index, reference in enumerate(expected):
        result = evidence(Linear(weight), image, index)
        assert np.allclose(result, reference / reference.max(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("top", "left"), [(4, 4), (30, 8), (18, 34)])
def test_the_map_lights_up_where_the_network_looks(top: int, left: int) -> None:
    """A dark spot on a bright ground is what this network waits for; another spot elsewhere means nothing to it."""
    weight = torch.zeros(48, 48)
    weight[top : top + 10, left : left + 10] = -0.1
    image = torch.full((1, 1, 48, 48), 0.5)
    for y, x in ((top, left), (47 - top - 6, 47 - left - 6)):
        image[..., y + 3 : y + 7, x + 3 : x + 7] = -1
    result = evidence(Linear(weight), image, 0)
    inside = np.zeros((48, 48), bool)
    inside[max(top - 4, 0) : top + 14, max(left - 4, 0) : left + 14] = True
    assert np.unravel_index(result.argmax(), result.shape) in [(y, x) for y, x in np.argwhere(weight.numpy() < 0)]
    assert result[inside].sum() > 0.98 * result.sum()


def test_a_region_that_the_network_sees_only_through_a_nonlinearity_lights_up(image: Tensor) -> None:
    """The network counts pixels of the lower left quarter that are above a level, with weights no map could read."""

    class Counting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            count = torch.sigmoid(8 * images[..., 24:, :24]).sum(dim=(1, 2, 3)) / 100
            return torch.stack([torch.zeros_like(count), count, -count], dim=1)

    result = evidence(Counting(), image, 1)
    assert result[24:, :24].sum() > 0.85 * result.sum()
    assert result[:16].max() < 1e-3
    assert result[:, 32:].max() < 1e-3


@pytest.mark.parametrize("index", range(len(LABELS)))
def test_shape_type_and_range(index: int, model: EmotionCNN, image: Tensor) -> None:
    result = evidence(model, image, index)
    assert result.shape == (48, 48)
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() == pytest.approx(1)


def test_a_flat_picture_holds_no_evidence(model: EmotionCNN) -> None:
    assert not evidence(model, torch.full((1, 1, 48, 48), 0.25), 0).any()


def test_classes_have_their_own_maps(model: EmotionCNN, image: Tensor) -> None:
    first, second = (evidence(model, image, index) for index in (0, 1))
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.9


def test_the_mirror_image_seen_by_a_mirrored_network_has_the_mirrored_map(model: EmotionCNN, image: Tensor) -> None:
    result = evidence(Mirrored(model), image.flip(-1), 1)
    assert np.allclose(result[:, ::-1], evidence(model, image, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_as_it_is(training: bool, model: EmotionCNN, image: Tensor) -> None:
    model.unfreeze_blocks(2)
    model.train(training)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = evidence(model, image, 0)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not image.requires_grad
    with torch.no_grad():  # as a caller may have it
        assert np.array_equal(evidence(model, image, 0), first)


def test_an_error_leaves_the_mode_too(model: EmotionCNN, image: Tensor) -> None:
    model.train()
    with pytest.raises(ValueError, match="class_index is 3; give 0 to 2"):
        evidence(model, image, 3)
    assert model.training


@pytest.mark.parametrize("index", [-1, 3])
def test_classes_that_do_not_exist_are_refused(index: int, model: EmotionCNN, image: Tensor) -> None:
    with pytest.raises(ValueError, match=f"class_index is {index}; give 0 to 2"):
        evidence(model, image, index)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 1, 48, 48), torch.zeros(1, 48, 48), torch.zeros(1, 1, 48, 48).byte()])
def test_other_pictures_are_refused(wrong: Tensor, model: EmotionCNN) -> None:
    with pytest.raises(ValueError, match=r"give one float face of shape \(1, 1, 48, 48\)"):
        evidence(model, wrong, 0)


def test_the_predictor_maps_a_crop_for_any_of_its_classes(checkpoint: Path, crops: np.ndarray, image: Tensor) -> None:
    predictor = EmotionPredictor.from_checkpoint(checkpoint)
    for index, label in enumerate(LABELS):
        expected = evidence(predictor.model, image, index)
        assert np.allclose(predictor.evidence(crops[0], label), expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="emotion is 'happy'; give one of joy, anger, naïve calm"):
        predictor.evidence(crops[0], "happy")
    for wrong in (crops, crops[0] / 255):
        with pytest.raises(ValueError, match=r"give uint8 of shape \(48, 48\)"):
            predictor.evidence(wrong, "joy")
