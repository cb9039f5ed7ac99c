"""What decides how a network is trained, and the recipes: values for it that were tried."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from emotion.labels import IMAGE_SIZE
from emotion.transfer import BACKBONES


def _option(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field of the configuration, with what documents it here and on the command line."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides how a network is trained; the defaults are the original recipe.

    Raises:
        ValueError: if a value is out of its range.
    """

    epochs: int = _option(25, "passes over the training faces")
    patience: int = _option(7, "epochs without a better validation accuracy after which training stops")
    batch_size: int = _option(32, "faces per step and process")
    optimizer: str = _option("adam", "Adam, or SGD with Nesterov momentum 0.9", ("adam", "sgd"))
    learning_rate: float = _option(1e-3, "peak learning rate")
    backbone_learning_rate: float = _option(1e-5, "peak learning rate of transferred feature blocks")
    weight_decay: float = _option(1e-4, "weight decay of convolution and dense weights")
    schedule: str = _option(
        "step",
        "halve the rate every 8 epochs, or warm up over a tenth of the steps and follow a half cosine to zero",
        ("step", "cosine"),
    )
    sam_rho: float = _option(
        0.0,
        "distance, over all weights, that each gradient is taken further up the loss (sharpness-aware minimisation, "
        "Foret et al. 2021, arXiv 2010.01412; twice the time); 0: where the weights are",
    )
    dropout_rate: float = _option(0.5, "first dropout of the classifier; the other nine scale with it")
    label_smoothing: float = _option(0.0, "share of each target that is spread over all classes")
    soft_targets: bool = _option(False, "learn from the distribution of the FER+ votes as well, where votes are given")
    drop_duplicates: bool = _option(False, "leave out training faces that also stand in the validation split")
    mixup: float = _option(
        0.0,
        "share of the faces that are mixed with another one, as are their targets, by any weights from 0 to 1 (mixup, "
        "Zhang et al. 2018, arXiv 1710.09412)",
    )
    teachers: tuple[str, ...] = _option(
        (),
        "learn from the mean answer of these checkpoints (folders, .pth files or Hub ids) as well, to each face as it "
        "is augmented and mixed (distillation as function matching, Beyer et al. 2022, arXiv 2106.05237)",
    )
    teacher_share: float = _option(0.7, "share of each target that is the teachers' answer, where there are teachers")
    hard_epochs: int = _option(
        0, "last epochs, which learn from the most probable class of each target alone, without mixup and teachers"
    )
    augmentation: tuple[float, float] = _option(
        (0.3, 1.0), "augmentation strength, 0 to 1, of the first epoch and, after a linear change, of the second half"
    )
    advanced_augmentation: bool = _option(
        True,
        "augment perspective, grey levels, sharpness and noise as well, not only flip, rotate, shift, scale and shear",
    )
    image_sizes: tuple[int, ...] = _option(
        (IMAGE_SIZE,),
        "sides of the training pictures in pixels, each for an equal share of the epochs (progressive resizing, Tan & "
        "Le 2021, arXiv 2104.00298); epochs compete only with those of the same size",
    )
    ema_decay: float = _option(0.0, "decay per step of the averaged weights that are validated and kept; 0: no average")
    start_from: str | None = _option(
        None,
        "start from the weights of this checkpoint (folder, .pth file or Hub id); classes it does not name are new",
    )
    transfer: str | None = _option(None, "start from ImageNet filters of this net (default: from scratch)", BACKBONES)
    unfreeze_every: int = _option(0, "epochs until one more feature block trains, from the last; 0: all from the start")
    precision: str = _option(
        "auto", "auto: bfloat16 where the processor computes in it", ("auto", "float32", "bfloat16")
    )
    seed: int = _option(0, "seed of weights, order, augmentation and dropout")

    def __post_init__(self) -> None:
        for name, low in (
            ("epochs", 1),
            ("patience", 1),
            ("batch_size", 2),
            ("unfreeze_every", 0),
            ("hard_epochs", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; give a whole number of at least {low}.")
        if self.seed >= 2**64:
            raise ValueError(f"seed is {self.seed}; give a whole number below 2**64, which generators take.")
        for name in ("learning_rate", "backbone_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a positive number.")
        if not 0 <= self.sam_rho < math.inf:
            raise ValueError(f"sam_rho is {self.sam_rho}; give a distance of at least 0.")
        for name in ("dropout_rate", "label_smoothing", "ema_decay", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 0 up to, not including, 1.")
        for name in ("mixup", "teacher_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a share from 0 to 1.")
        for option in fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices and value not in (*choices, option.default):
                raise ValueError(f"{option.name} is {value!r}; choose from {', '.join(choices)}.")
        if self.start_from and self.transfer:
            raise ValueError(f"start_from is {self.start_from}, transfer {self.transfer}; give one of the two.")
        if self.transfer == "resnet18" and self.unfreeze_every:
            raise ValueError("resnet18 leaves the first block untrained, which must not be frozen; use a VGG donor.")
        if self.hard_epochs > self.epochs or len(self.image_sizes) > self.epochs:
            raise ValueError(
                f"There are {self.epochs} epochs for {self.hard_epochs} hard_epochs and {len(self.image_sizes)} "
                "image_sizes; give at least as many epochs."
            )
        if len(self.augmentation) != 2 or not all(0 <= strength <= 1 for strength in self.augmentation):
            raise ValueError(f"augmentation is {self.augmentation}; give two strengths from 0 to 1.")
        if not self.image_sizes or min(self.image_sizes) < 16:
            raise ValueError(f"image_sizes are {self.image_sizes}; give sides of at least 16 pixels (four max-pools).")
        if list(self.image_sizes) != sorted(self.image_sizes):
            raise ValueError(f"image_sizes are {self.image_sizes}; give them in rising order.")


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration by name; one from before there was a flag did what leaving it out does now."""
    return {**asdict(TrainingConfig()), **config}


# Chosen on PublicTest; docs/experiments.md tells how.
_SINGLE = TrainingConfig(
    epochs=76,
    patience=24,
    batch_size=64,
    optimizer="sgd",
    learning_rate=0.05,
    weight_decay=5e-4,
    schedule="cosine",
    dropout_rate=0.2,
    soft_targets=True,
    augmentation=(0.5, 0.2),
    image_sizes=(32, 32, 40, 48),
    ema_decay=0.998,
)
_TEACHER = replace(
    _SINGLE,
    epochs=60,
    patience=60,
    batch_size=128,
    learning_rate=0.1,
    augmentation=(0.6, 0.3),
    image_sizes=(IMAGE_SIZE,),
    seed=1,
)

RECIPES: dict[str, tuple[TrainingConfig, ...]] = {
    "original": (TrainingConfig(),),
    "single": (_SINGLE,),
    # Labels that people often disagree with: sharpness-aware steps keep them from being learned by heart.
    "best": (
        replace(
            _TEACHER,
            epochs=80,
            patience=80,
            sam_rho=0.1,
            soft_targets=False,
            augmentation=(0.5, 0.5),
            advanced_augmentation=False,
            ema_decay=0.9995,
            seed=25,
        ),
    ),
}
"""By name, the networks that a recipe trains one after the other: the last one, after those that teach it, if any."""
FERPLUS_RECIPES = RECIPES | {
    "best": (
        _TEACHER,
        replace(_TEACHER, mixup=0.5, seed=2),
        replace(_TEACHER, epochs=87, patience=87, augmentation=(0.6, 0.2), mixup=0.5, seed=3),
    ),
}
"""The recipes for FER+'s labels, on whose votes teachers were worth their time."""


def plan(recipe: str, labels: str, output: Path, given: Mapping[str, Any]) -> dict[Path, TrainingConfig]:
    """The networks that a recipe trains, in this order, each by the folder that it goes to.

    The last one goes to `output`. Where there are others, in folders within that, it starts from the first of them and
    learns from all (born-again networks, Furlanello et al. 2018, arXiv 1805.04770).

    Args:
        recipe: one of `RECIPES`.
        labels: name of the label set.
        output: folder of the last network.
        given: values that replace those of every network, by their names in `TrainingConfig`; but the seed is that of
            the first, from which the others count on, and `start_from` that of all but the last of several.

    Raises:
        ValueError: if a value is out of its range, or teachers or ImageNet filters are given for several networks.
    """
    recipes = FERPLUS_RECIPES if labels == "ferplus" else RECIPES
    first, *others = (replace(config, **given) for config in recipes[recipe])
    if not others:
        return {output: first}
    if first.teachers or first.transfer:
        raise ValueError(
            f"The recipe {recipe} trains the networks that its last one starts from and learns from; give teachers and "
            "transfer with another recipe, such as single."
        )
    configs = [first, *(replace(config, seed=first.seed + number) for number, config in enumerate(others, 1))]
    folders = [output / f"teacher{number}" for number in range(1, len(configs))]
    configs[-1] = replace(configs[-1], start_from=str(folders[0]), teachers=tuple(map(str, folders)))
    return dict(zip([*folders, output], configs, strict=True))
