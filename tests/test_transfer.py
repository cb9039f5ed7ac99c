"""Adapted ImageNet filters: exact algebra against a donor with random weights, cut to size independently."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import camera
from test_trainer import QUICK, fit_one_epoch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.transforms.functional import normalize

from emotion.demo import make_dataset
from emotion.model import EmotionCNN, create_enhanced_grayscale_model
from emotion.trainer import fit
from emotion.transfer import adapt_backbone, load_donor

WIDTHS = (32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512)
RESNET18_TABLE = {
    "1.0": ("layer1.0", 1),
    "1.3": ("layer1.0", 2),
    "2.0": ("layer2.0", 1),
    "2.3": ("layer2.0", 2),
    "2.6": ("layer2.1", 1),
    "3.0": ("layer3.0", 1),
    "3.3": ("layer3.0", 2),
    "3.6": ("layer3.1", 1),
    "4.0": ("layer4.0", 1),
    "4.3": ("layer4.0", 2),
}


def random_donor(backbone: str) -> nn.Module:
    """The donor in eval mode with random filters, biases and batch-norm statistics, and all dense layers zero."""
    with torch.device("meta"):
        donor = get_model(backbone).eval()
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, value in donor.state_dict().items():
        if value.ndim == 4:
            state[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif name.startswith(("classifier", "fc")) or value.ndim == 0:
            state[name] = torch.zeros((), dtype=value.dtype).expand(value.shape)  # one stored number, not 123 million
        elif name.endswith(("weight", "running_var")):
            state[name] = torch.rand(value.shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(value.shape, generator=generator) * 0.3
    donor.load_state_dict(state, assign=True)
    return donor


def grey_patches(count: int, side: int) -> Tensor:
    """Squares of a photograph as floats (count, 1, side, side) in [0, 1]."""
    photo = torch.from_numpy(camera()).float() / 255
    corners = np.random.default_rng(0).integers(0, 512 - side, (count, 2))
    return torch.stack([photo[None, y : y + side, x : x + side] for y, x in corners])


def as_the_donor_sees(grey: Tensor, backbone: str) -> Tensor:
    preset = get_model_weights(backbone)["IMAGENET1K_V1"].transforms()
    return normalize(grey.repeat(1, 3, 1, 1), preset.mean, preset.std)


def narrow_donor(donor: nn.Module) -> nn.Sequential:
    """VGG16 in colour up to its twelfth convolution, holding only the channels that our widths leave room for."""
    layers: list[nn.Module] = []
    chosen = np.arange(3)
    widths = iter(WIDTHS)
    for module in donor.features:
        if isinstance(module, nn.Conv2d):
            width = next(widths, None)
            if width is None:
                break
            before, chosen = chosen, np.array([i * module.out_channels // width for i in range(width)])
            layers.append(nn.Conv2d(len(before), width, 3, padding=1))
            layers[-1].weight.data = torch.from_numpy(module.weight.detach().numpy()[np.ix_(chosen, before)])
            layers[-1].bias.data = torch.from_numpy(module.bias.detach().numpy()[chosen])
        elif isinstance(module, nn.BatchNorm2d):
            layers.append(nn.BatchNorm2d(len(chosen)))
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(layers[-1], name).data = torch.from_numpy(getattr(module, name).detach().numpy()[chosen])
        else:
            layers.append(module)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module", params=["vgg16", "vgg16_bn"])
def adapted_vgg(request: pytest.FixtureRequest) -> tuple[str, nn.Module, EmotionCNN]:
    donor = random_donor(request.param)
    model = EmotionCNN(dropout_rate=0.0).eval()
    adapt_backbone(model.features, donor)
    return request.param, donor, model


@torch.no_grad()
def test_first_layer_answers_a_grey_image_as_the_colour_donor_does(adapted_vgg):
    backbone, donor, model = adapted_vgg
    grey = grey_patches(4, 48)
    expected = donor.features[: {"vgg16": 2, "vgg16_bn": 3}[backbone]](as_the_donor_sees(grey, backbone))[:, 0:64:2]
    ours = model.features[0][:3]((grey - 0.5) / 0.5)
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-5)
    # The two paddings mean different greys, so the border is where the docstring says it differs.
    assert (ours - expected)[..., 0, :].abs().max() > 0.01


@torch.no_grad()
def test_all_twelve_layers_answer_as_the_narrowed_donor_does(adapted_vgg):
    backbone, donor, model = adapted_vgg
    # The twelfth layer sees 164 pixels, so only the middle of a large image is free of the border.
    grey = grey_patches(1, 256)
    expected = narrow_donor(donor)(as_the_donor_sees(grey, backbone))[..., 5:-5, 5:-5]
    ours = nn.Sequential(*model.features[:4], model.features[4][:6])((grey - 0.5) / 0.5)[..., 5:-5, 5:-5]
    assert ours.shape == (1, 512, 6, 6)
    # Not a comparison of constants: the response varies over the images.
    assert expected.std((0, 2, 3)).mean() > 0.05 * expected.mean()
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


@torch.no_grad()
def test_plain_vgg16_starts_training_near_the_donors_function():
    donor = random_donor("vgg16")
    model = EmotionCNN(dropout_rate=0.0)
    adapt_backbone(model.features, donor)
    assert model.features.training
    training = evaluation = (grey_patches(32, 48) - 0.5) / 0.5
    for block in model.features:
        # Evaluation first: a training step moves the running statistics.
        evaluation, training = block.eval()(evaluation), block.train()(training)
        assert (training - evaluation).norm() < 0.5 * evaluation.norm()


@torch.no_grad()
def test_resnet18_layers_arrive_where_the_table_says():
    donor = random_donor("resnet18")
    model = EmotionCNN()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapt_backbone(model.features, donor)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("features.0."))
    theirs = donor.state_dict()
    for ours, (block, index) in RESNET18_TABLE.items():
        stage, position = ours.split(".")
        kernels = theirs[f"{block}.conv{index}.weight"]
        # Block 1 has 32 channels where the donor's first stage reads 64.
        expected = kernels[:, 0:64:2] if ours == "1.0" else kernels
        assert torch.equal(after[f"features.{ours}.weight"], expected)
        for name in ("weight", "bias", "running_mean", "running_var"):
            ours_norm = f"features.{stage}.{int(position) + 1}.{name}"
            assert torch.equal(after[ours_norm], theirs[f"{block}.bn{index}.{name}"])


@pytest.mark.parametrize(
    ("backbone", "layers"),
    # Inputs and outputs of each transferred convolution; its batch norm has two parameters an output.
    [(name, list(pairwise((1, *WIDTHS)))) for name in ("vgg16", "vgg16_bn")]
    + [("resnet18", list(pairwise(WIDTHS[1:])))],
)
def test_weights_in_the_cache_are_loaded_and_their_share_reported(
    backbone: str, layers: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = get_model_weights(backbone)["IMAGENET1K_V1"].url
    file = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    donor = random_donor(backbone)
    torch.save(donor.state_dict(), file)
    model = create_enhanced_grayscale_model(use_transfer_adaptation=True, pretrained_backbone=backbone)
    assert model.transferred_share == sum(9 * a * b + 2 * b for a, b in layers) / 6_670_759
    last = {"vgg16": "features.26", "vgg16_bn": "features.37", "resnet18": "layer4.0.conv2"}[backbone]
    assert torch.equal(model.features[4][3].weight, donor.state_dict()[f"{last}.weight"])
    assert create_enhanced_grayscale_model().transferred_share == 0.0


def test_a_run_goes_on_without_the_filters_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(random_donor("resnet18").state_dict(), file)
    config, faces = replace(QUICK, epochs=2, transfer="resnet18"), make_dataset(16)
    whole = fit(config, faces, faces, tmp_path / "whole").state_dict()
    fit_one_epoch(config, faces, faces, tmp_path / "cut")
    file.write_text("gone")
    resumed = fit(config, faces, faces, tmp_path / "cut", resume=True).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_damaged_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    file.write_text("<html>Please log in to this network.</html>")
    with pytest.raises(RuntimeError, match="intact copy") as error:
        load_donor("resnet18")
    assert str(file) in str(error.value)


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path):
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    code = (
        "from emotion.model import create_enhanced_grayscale_model as create\n"
        "try: create(use_transfer_adaptation=True, pretrained_backbone='vgg16')\n"
        "except RuntimeError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | proxy | {"TORCH_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    # Standard output holds the one sentence alone: torchvision's own announcement went to standard error.
    message = result.stdout.strip()
    assert "\n" not in message
    file = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    assert all(part in message for part in (str(file), "network", "copy", "without transfer"))


def test_unknown_backbone_is_answered_with_the_choices():
    with pytest.raises(ValueError, match="'vgg19'; choose one of vgg16, vgg16_bn, resnet18"):
        load_donor("vgg19")
