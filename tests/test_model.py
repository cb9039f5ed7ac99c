"""The network against the published description, and against formulas computed by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from emotion.model import EmotionCNN, create_enhanced_grayscale_model

DEPTHS, WIDTHS = (2, 2, 3, 3, 2), (32, 64, 128, 256, 512)


@pytest.fixture(scope="module")
def model() -> EmotionCNN:
    torch.manual_seed(0)
    return EmotionCNN()


def modules_of(model: nn.Module, *kinds: type) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kinds)]


def parameters_by_hand(num_classes: int) -> int:
    convolutions = batch_norms = 0
    channels_in = 1
    for depth, width in zip(DEPTHS, WIDTHS, strict=True):
        for _ in range(depth):
            convolutions += 9 * channels_in * width
            batch_norms += 2 * width
            channels_in = width
    widths = [512, 1024, 512, 256, 128, num_classes]
    dense = sum(a * b + b for a, b in pairwise(widths))
    return convolutions + batch_norms + dense + 2 * (1024 + 512 + 256 + 128)


@pytest.mark.parametrize(("num_classes", "published"), [(7, 6_670_759), (6, 6_670_630)])
def test_parameter_count_is_the_published_one(num_classes: int, published: int) -> None:
    counted = sum(parameter.numel() for parameter in EmotionCNN(num_classes).parameters())
    assert counted == published == parameters_by_hand(num_classes)


def test_layer_counts(model: EmotionCNN) -> None:
    assert len(modules_of(model, nn.Conv2d)) == 12
    assert len(modules_of(model, nn.MaxPool2d)) == 4
    assert len(modules_of(model, nn.AdaptiveAvgPool2d)) == 1
    assert len(modules_of(model, nn.Linear)) == 5
    assert len(modules_of(model, nn.Dropout, nn.Dropout2d)) == 10
    assert len(modules_of(model, nn.BatchNorm1d, nn.BatchNorm2d)) == 16


def test_layers_run_in_the_described_order(model: EmotionCNN) -> None:
    """Recorded while a batch runs, so that what executes counts, not what is declared."""
    ran: list[str] = []
    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(lambda module, *_: ran.append(type(module).__name__)) for leaf in leaves]
    model.eval()(torch.zeros(2, 1, 48, 48))
    for hook in hooks:
        hook.remove()
    expected: list[str] = []
    for depth in DEPTHS:
        expected += ["Conv2d", "BatchNorm2d", "ReLU"] * depth + ["MaxPool2d", "Dropout2d"]
    expected[-2] = "AdaptiveAvgPool2d"
    expected += ["Flatten", "Dropout"] + ["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 4 + ["Linear"]
    assert ran == expected


def test_map_sizes_and_widths(model: EmotionCNN) -> None:
    inputs: list[tuple[int, ...]] = []
    pools = modules_of(model, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    hooks = [
        pool.register_forward_hook(lambda _, args, out: inputs.append((*args[0].shape, *out.shape))) for pool in pools
    ]
    logits = model.eval()(torch.zeros(2, 1, 48, 48))
    for hook in hooks:
        hook.remove()
    sizes = (48, 24, 12, 6, 3, 1)
    assert inputs == [(2, c, a, a, 2, c, b, b) for c, a, b in zip(WIDTHS, sizes, sizes[1:], strict=False)]
    assert logits.shape == (2, 7)


def test_convolutions_are_3x3_padded_grey_and_without_bias(model: EmotionCNN) -> None:
    convolutions = modules_of(model, nn.Conv2d)
    assert {(conv.kernel_size, conv.padding, conv.stride, conv.bias) for conv in convolutions} == {
        ((3, 3), (1, 1), (1, 1), None)
    }
    assert convolutions[0].in_channels == 1
    widths = [width for depth, width in zip(DEPTHS, WIDTHS, strict=True) for _ in range(depth)]
    layers = [layer for block in model.features for layer in block]
    pairs = [(conv, norm) for conv, norm in pairwise(layers) if isinstance(conv, nn.Conv2d)]
    assert [(conv.out_channels, norm.num_features) for conv, norm in pairs] == [(w, w) for w in widths]


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0, 1.9])
def test_dropout_rates_scale_together(scale: float) -> None:
    model = EmotionCNN(dropout_rate=0.5 * scale)
    published = [0.1, 0.125, 0.15, 0.175, 0.2, 0.5, 0.35, 0.25, 0.15, 0.1]
    rates = [module.p for module in modules_of(model, nn.Dropout, nn.Dropout2d)]
    assert rates == pytest.approx([rate * scale for rate in published])


def test_initialisation_keeps_the_variance_of_relu_nets(model: EmotionCNN) -> None:
    """He et al. 2015, equation 14 (fan out) for convolutions and equation 10 (fan in) for hidden dense layers."""
    *hidden, output = modules_of(model, nn.Linear)
    expected = [(conv.weight, math.sqrt(2 / (9 * conv.out_channels))) for conv in modules_of(model, nn.Conv2d)]
    expected += [(dense.weight, math.sqrt(2 / dense.in_features)) for dense in hidden]
    expected += [(output.weight, 0.01)]
    for weight, std in expected:
        values, n = weight.detach().numpy().astype(np.float64).ravel(), weight.numel()
        # Five standard errors of the deviation and of the mean of n normal numbers.
        assert values.std() == pytest.approx(std, rel=5 / math.sqrt(2 * n))
        assert abs(values.mean()) < 5 * std / math.sqrt(n)
    assert all((dense.bias == 0).all() for dense in [*hidden, output])
    norms = modules_of(model, nn.BatchNorm1d, nn.BatchNorm2d)
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


def test_untrained_network_starts_undecided(model: EmotionCNN) -> None:
    """A fresh network's loss is that of guessing, ln 7."""
    logits = model.train()(torch.randn(64, 1, 48, 48))
    loss = nn.functional.cross_entropy(logits, torch.arange(64) % 7)
    assert loss.item() == pytest.approx(math.log(7), abs=0.1)


def test_it_learns_a_batch_by_heart() -> None:
    torch.manual_seed(0)
    model = EmotionCNN(dropout_rate=0)
    images, targets = torch.randn(7, 1, 48, 48), torch.arange(7)
    optimizer = torch.optim.AdamW(model.get_transfer_learning_optimizer_groups(backbone_lr=1e-3))
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    assert (model(images).argmax(1) == targets).all()


def test_optimizer_groups_hold_every_parameter_once(model: EmotionCNN) -> None:
    groups = model.get_transfer_learning_optimizer_groups(backbone_lr=2e-5, classifier_lr=3e-3, weight_decay=0.07)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}

    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, module in model.named_modules():
        lr = 2e-5 if name.startswith("features") else 3e-3
        for kind, parameter in module.named_parameters(recurse=False):
            decayed = kind == "weight" and isinstance(module, (nn.Conv2d, nn.Linear))
            assert settings[id(parameter)] == (lr, 0.07 if decayed else 0.0), f"{name}.{kind}"
    defaults = model.get_transfer_learning_optimizer_groups()
    assert {group["lr"] for group in defaults} == {1e-5, 1e-3}
    torch.optim.SGD(defaults)


@pytest.mark.parametrize("count", range(6))
def test_unfreezing_trains_the_last_blocks_only(count: int) -> None:
    torch.manual_seed(count)
    model = EmotionCNN()
    model.eval()
    model.unfreeze_blocks(count)
    assert not any(module.training for module in model.modules())
    model.train()

    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(4, 1, 48, 48)).square().sum().backward()
    after = dict(model.named_buffers())
    for index, block in enumerate(model.features):
        trained = index >= 5 - count
        assert all(module.training == trained for module in block.modules())
        assert all((parameter.grad is not None) == trained for parameter in block.parameters())
        buffers = [name for name in before if name.startswith(f"features.{index}.")]
        assert buffers
        assert all(torch.equal(before[name], after[name]) != trained for name in buffers)
    assert all(parameter.grad is not None for parameter in model.classifier.parameters())
    assert all(module.training for module in model.classifier.modules())

    model.eval()
    assert not any(module.training for module in model.modules())
    model.train()
    model.unfreeze_blocks(5)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_calibration_is_softmax_of_divided_logits() -> None:
    model = EmotionCNN(temperature=1.7)
    logits = torch.tensor([[0.3, -2.0, 5.0, 1.0, 0.0, 0.0, 2.5], [900.0, 0.0, 898.0, 0.0, -900.0, 1.0, 2.0]])
    powers = np.exp((logits.numpy().astype(np.float64) - logits.numpy().max(1, keepdims=True)) / 1.7)
    np.testing.assert_allclose(model.calibrate(logits), powers / powers.sum(1, keepdims=True), rtol=1e-4, atol=1e-7)
    assert model.calibrate(logits.half()).dtype == torch.float32
    model.temperature = 0.6  # Fitted later: the new value counts.
    assert model.calibrate(logits)[0, 2] > 0.98


def test_probabilities_are_calibrated_and_independent_of_the_batch(model: EmotionCNN) -> None:
    images = torch.randn(3, 1, 48, 48)
    model.eval()
    with torch.inference_mode():
        together, logits = model.probabilities(images), model(images)
        alone = torch.cat([model.probabilities(image[None]) for image in images])
    torch.testing.assert_close(together, model.calibrate(logits))
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_labels_follow_the_number_of_classes() -> None:
    fer2013 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert EmotionCNN().labels == fer2013
    assert EmotionCNN(8).labels == (*fer2013, "contempt")
    assert len(set(EmotionCNN(6).labels)) == 6
    assert EmotionCNN(2, labels=["cat", "dog"]).labels == ("cat", "dog")


@pytest.mark.parametrize(
    "arguments",
    [
        *({"num_classes": value} for value in (10**9, 1, 0, -7, 7.0, True, "7", None)),
        *({"dropout_rate": value} for value in (1.0, -0.1, math.nan, math.inf, "0.5", None)),
        *({"temperature": value} for value in (0.0, -1.0, 1e-300, 1e300, math.nan, math.inf, 10**400, "1", None)),
        *(
            {"num_classes": 2, "labels": value}
            for value in (
                ("sad", "sad"),
                ("sad",),
                ("sad", "happy", "fear"),
                ("sad", ""),
                ("sad", 3),
                "ab",
                5,
                {},
                {"a", "b"},
            )
        ),
    ],
    # Workers must give a set the same name, whose order differs between them.
    ids=lambda arguments: ",".join(
        f"{key}={str(sorted(value) if isinstance(value, set) else value)[:20]}" for key, value in arguments.items()
    ),
)
def test_bad_arguments_get_one_sentence(arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"^{list(arguments)[-1]} (is|are) .*; give .*[.]$") as caught:
        EmotionCNN(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [-1, 6])
def test_unfreezing_too_many_blocks_is_refused(model: EmotionCNN, count: int) -> None:
    with pytest.raises(ValueError, match=f"count is {count}; give 0 to 5 "):
        model.unfreeze_blocks(count)


def test_factory_builds_the_network_from_its_arguments() -> None:
    torch.manual_seed(3)
    made = create_enhanced_grayscale_model(num_classes=3, dropout_rate=0.25, labels=["a", "b", "c"])
    assert (made.labels, made.dropout_rate) == (("a", "b", "c"), 0.25)
    assert {parameter.device.type for parameter in made.parameters()} == {"cpu"}
    moved = create_enhanced_grayscale_model(device="meta")
    assert {parameter.device.type for parameter in moved.parameters()} == {"meta"}
    with pytest.raises(ValueError, match="num_classes is 1"):
        create_enhanced_grayscale_model(num_classes=1)
