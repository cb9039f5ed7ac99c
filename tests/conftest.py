"""What several test files share: a small stand-in for a trained checkpoint, and pictures."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import nn

from emotion.checkpoint import save_checkpoint
from emotion.model import EmotionCNN

# On a machine with many cores, more threads make networks this small slower.
torch.set_num_threads(2)

LABELS = ("joy", "anger", "naïve calm")
HISTORY = [{"epoch": 1, "validation_accuracy": 0.25}, {"epoch": 2, "validation_accuracy": 0.75}]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network that has never seen a face but has opinions, a temperature and names of its own."""
    torch.manual_seed(0)
    model = EmotionCNN(3, dropout_rate=0.0, labels=LABELS, temperature=1.7)
    nn.init.normal_(model.classifier[-1].weight, std=0.1)
    # With the statistics of real pictures in its batch norms, it tells pictures apart.
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    patches = skimage.data.camera()[:480, :480].reshape(10, 48, 10, 48).transpose(0, 2, 1, 3).reshape(100, 1, 48, 48)
    with torch.no_grad():
        model.train()(torch.tensor(patches / 127.5 - 1, dtype=torch.float32))
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    metrics = {"plain": {"accuracy": 0.75}}
    return save_checkpoint(model, folder, history=HISTORY, metrics=metrics, training_config={"epochs": 2})


@pytest.fixture(scope="session")
def portrait() -> Image.Image:
    """A photo of one person, 512x512."""
    return Image.fromarray(skimage.data.astronaut())


@pytest.fixture(scope="session")
def group(portrait: Image.Image) -> Image.Image:
    """A picture of three people: the smallest on the left, the largest on the right."""
    person = portrait.crop((80, 0, 400, 320))
    picture = Image.new("RGB", (640, 320), (90, 110, 100))
    for left, side in ((0, 160), (160, 200), (360, 280)):
        picture.paste(person.resize((side, side), Image.Resampling.LANCZOS), (left, 20))
    return picture


@pytest.fixture(scope="session")
def scenery() -> Image.Image:
    """A photo without a face: a cup of coffee."""
    return Image.fromarray(skimage.data.coffee())


@pytest.fixture(scope="session")
def crops() -> np.ndarray:
    """Nine different grey pictures, uint8 (9, 48, 48)."""
    camera = skimage.data.camera()[:432, :432]
    return np.ascontiguousarray(camera.reshape(3, 144, 3, 144).transpose(0, 2, 1, 3).reshape(9, 144, 144)[:, ::3, ::3])
