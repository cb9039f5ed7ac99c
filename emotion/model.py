"""The network: a 6.67-million-parameter CNN that reads 48x48 grey faces natively."""

from collections.abc import Sequence

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from emotion.labels import FER2013_LABELS, FERPLUS_LABELS

BLOCKS = ((32, 2), (64, 2), (128, 3), (256, 3), (512, 2))
"""Channels and number of 3x3 convolutions of each block."""
HIDDEN = (1024, 512, 256, 128)
"""Widths of the classifier's hidden layers."""
# The published rates, given for dropout_rate=0.5; all scale with it.
SPATIAL_DROPOUT = (0.1, 0.125, 0.15, 0.175, 0.2)
CLASSIFIER_DROPOUT = (0.5, 0.35, 0.25, 0.15, 0.1)


class EmotionCNN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="pytorch",
    pipeline_tag="image-classification",
    tags=["facial-expression-recognition", "grayscale", "fer2013"],
):
    """VGG-style network on one grey channel, from 48x48 down to 1x1.

    Five blocks of [3x3 convolution without bias, batch norm, ReLU] with 2, 2, 3, 3, 2 convolutions of 32 to 512
    channels, each followed by a pool (max-pool 2, the last one adaptive average to 1x1) and spatial dropout
    (Tompson et al. 2015, arXiv 1411.4280); then 512-1024-512-256-128-classes with batch norm, ReLU and dropout.

    Args:
        num_classes: number of outputs, 2 to 1000.
        dropout_rate: rate of the first classifier dropout, in [0, 1); the other nine scale with it.
        labels: class names in output order; by default FER2013's seven or FER+'s eight.
        temperature: divisor of the logits, 0.01 to 100, fitted on validation data (Guo et al. 2017, arXiv 1706.04599).

    Raises:
        ValueError: if an argument is outside its range or `labels` does not name `num_classes` different classes.
    """

    def __init__(
        self,
        num_classes: int = 7,
        dropout_rate: float = 0.5,
        labels: Sequence[str] | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        # Weights come from strangers too: a configuration must not be able to ask for a billion classes.
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or not 2 <= num_classes <= 1000:
            raise ValueError(f"num_classes is {num_classes!r}; give a whole number from 2 to 1000.")
        if not isinstance(dropout_rate, (int, float)) or not 0 <= dropout_rate < 1:
            raise ValueError(f"dropout_rate is {dropout_rate!r}; give a number from 0 up to, not including, 1.")
        # Beyond these bounds the softmax overflows or says nothing.
        if not isinstance(temperature, (int, float)) or not 0.01 <= temperature <= 100:
            raise ValueError(f"temperature is {temperature!r}; give a number from 0.01 to 100.")
        if labels is None:
            labels = _default_labels(num_classes)
        if (
            isinstance(labels, str)
            or not isinstance(labels, Sequence)
            or not all(isinstance(name, str) and name and name.isprintable() for name in labels)
            or len(set(labels)) != num_classes
            or len(labels) != num_classes
        ):
            raise ValueError(f"labels are {labels!r}; give {num_classes} different class names, in output order.")
        self.num_classes = num_classes
        self.dropout_rate = float(dropout_rate)
        self.labels = tuple(labels)
        self.temperature = float(temperature)
        self.transferred_share = 0.0

        scale = dropout_rate / CLASSIFIER_DROPOUT[0]
        blocks: list[nn.Module] = []
        channels_in = 1
        for index, (channels, depth) in enumerate(BLOCKS):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                ]
                channels_in = channels
            layers.append(nn.MaxPool2d(2) if index < len(BLOCKS) - 1 else nn.AdaptiveAvgPool2d(1))
            layers.append(nn.Dropout2d(SPATIAL_DROPOUT[index] * scale))
            blocks.append(nn.Sequential(*layers))
        self.features = nn.Sequential(*blocks)

        head: list[nn.Module] = [nn.Flatten(), nn.Dropout(CLASSIFIER_DROPOUT[0] * scale)]
        width_in = channels_in
        for width, rate in zip(HIDDEN, CLASSIFIER_DROPOUT[1:], strict=True):
            head += [
                nn.Linear(width_in, width),
                nn.BatchNorm1d(width),
                nn.ReLU(inplace=True),
                nn.Dropout(rate * scale),
            ]
            width_in = width
        head.append(nn.Linear(width_in, num_classes))
        self.classifier = nn.Sequential(*head)
        self._initialise()

    def _initialise(self) -> None:
        """He et al. 2015 (arXiv 1502.01852) for layers before a ReLU; small weights, hence near-uniform first
        probabilities, for the output layer."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier[-1].weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """Float images (N, 1, 48, 48), normalised to [-1, 1], to logits (N, num_classes)."""
        return self.classifier(self.features(images))

    def probabilities(self, images: Tensor) -> Tensor:
        """Float images (N, 1, 48, 48), normalised to [-1, 1], to calibrated probabilities (N, num_classes).

        Every probability that this project shows has passed through the temperature here or in `calibrate`.
        """
        return self.calibrate(self(images))

    def calibrate(self, logits: Tensor) -> Tensor:
        """Logits (N, num_classes) to float32 probabilities (N, num_classes) that sum to 1."""
        return torch.softmax(logits.float() / self.temperature, dim=1)

    def unfreeze_blocks(self, count: int) -> None:
        """Train the classifier and the last `count` (0 to 5) feature blocks; freeze the blocks before them.

        A frozen block keeps its batch-norm statistics only in eval mode, so `train()` leaves frozen blocks in eval
        mode. Raises ValueError if `count` is out of range.
        """
        if not 0 <= count <= len(BLOCKS):
            raise ValueError(f"count is {count}; give 0 to {len(BLOCKS)} feature blocks to train.")
        for index, block in enumerate(self.features):
            block.requires_grad_(index >= len(BLOCKS) - count)
        self.train(self.training)

    def train(self, mode: bool = True) -> "EmotionCNN":
        """Set training mode, except for frozen blocks: their batch-norm statistics stay as they are."""
        super().train(mode)
        for block in self.features:
            if mode and not any(parameter.requires_grad for parameter in block.parameters()):
                block.eval()
        return self

    def get_transfer_learning_optimizer_groups(
        self, backbone_lr: float = 1e-5, classifier_lr: float = 1e-3, weight_decay: float = 1e-4
    ) -> list[dict]:
        """Parameter groups for a `torch.optim` optimizer: features and classifier, with and without weight decay.

        Batch-norm parameters and biases get no decay (He et al. 2019, arXiv 1812.01187). Every parameter is in
        exactly one group; each group has the keys `name`, `params`, `lr` and `weight_decay`.
        """
        groups = []
        for part, module, lr in (
            ("features", self.features, backbone_lr),
            ("classifier", self.classifier, classifier_lr),
        ):
            # Weights of convolutions and dense layers are the only parameters with two or more dimensions.
            decay = [p for p in module.parameters() if p.ndim > 1]
            no_decay = [p for p in module.parameters() if p.ndim <= 1]
            groups.append({"name": part, "params": decay, "lr": lr, "weight_decay": weight_decay})
            groups.append({"name": f"{part} without decay", "params": no_decay, "lr": lr, "weight_decay": 0.0})
        return groups


def _default_labels(num_classes: int) -> tuple[str, ...]:
    for labels in (FER2013_LABELS, FERPLUS_LABELS):
        if len(labels) == num_classes:
            return labels
    return tuple(f"class {index}" for index in range(num_classes))


def create_enhanced_grayscale_model(
    num_classes: int = 7,
    dropout_rate: float = 0.5,
    use_transfer_adaptation: bool = False,
    pretrained_backbone: str = "vgg16",
    device: str | torch.device | None = None,
    labels: Sequence[str] | None = None,
) -> EmotionCNN:
    """Build the network, freshly initialised or with adapted ImageNet filters, on `device` (default: the CPU).

    With `use_transfer_adaptation`, the feature weights come from torchvision's `pretrained_backbone`
    ('vgg16', 'vgg16_bn' or 'resnet18'); see `emotion.transfer` for which donor layer feeds which.
    `model.transferred_share` says what share of all parameters was transferred.

    Raises:
        ValueError: for arguments out of range or an unknown backbone.
        RuntimeError: if the ImageNet weights are neither cached nor downloadable.
    """
    model = EmotionCNN(num_classes=num_classes, dropout_rate=dropout_rate, labels=labels)
    if use_transfer_adaptation:
        from emotion.transfer import adapt_backbone, load_donor

        transferred = adapt_backbone(model.features, load_donor(pretrained_backbone))
        model.transferred_share = transferred / sum(parameter.numel() for parameter in model.parameters())
    return model.to(device or "cpu")
