"""Write what can be generated into README and guide, and draw their pictures: `python -m docs.make`.

Between `<!-- generated: NAME -->` and `<!-- end -->` a page holds what `SECTIONS[NAME]` returns. Run in the project's
folder after a change of the network, the steps, the recipes or `benchmarks/results/`.
"""

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import live, load, others, page, prediction, traditional, training
from benchmarks.measure import milliseconds
from emotion.checkpoint import atomic_write, load_metadata
from emotion.evaluate import RESULTS
from emotion.labels import IMAGE_SIZE
from emotion.model import EmotionCNN
from emotion.predict import DEFAULT_CHECKPOINT
from emotion.recipes import RECIPES, TrainingConfig, plan
from emotion.robustness import UNITS
from emotion.transforms import GrayscaleNoise, Normalize, ToTensor, get_enhanced_transforms_grayscale_48
from emotion.ui.live import FRAME_SECONDS

IMAGES: Final = Path("docs/images")
FACE: Final = Path("examples/happy.png")
"""What the steps are shown on: the face of nobody."""
NOTES: Final[dict[type[nn.Module], str]] = {
    nn.Conv2d: "conv {0.kernel_size[0]}x{0.kernel_size[1]}, {0.in_channels} to {0.out_channels}",
    nn.Linear: "dense, {0.in_features} to {0.out_features}",
    nn.MaxPool2d: "max-pool {0.kernel_size}x{0.kernel_size}",
    nn.AdaptiveAvgPool2d: "average pool to 1x1",
    nn.BatchNorm2d: "batch norm",
    nn.BatchNorm1d: "batch norm",
    nn.ReLU: "ReLU",
    nn.Dropout2d: "spatial dropout {0.p:.3g}",
    nn.Dropout: "dropout {0.p:.3g}",
}
"""How a layer is called; one that is missing here fails."""
ROW_STARTS: Final = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
"""The other layers stand in the row of the last of these."""

REMARKS: Final = {"plain": " (what the page and the command line use)", "tta": " (`--tta`, twice the work)"}
"""What README says of these `RESULTS` besides."""
BENCHMARKS: Final[dict[str, ModuleType]] = {
    "comparison": traditional,
    "prediction": prediction,
    "others": others,
    "page": page,
    "live": live,
    "training": training,
    "load": load,
}
"""What measures, by the section that its table goes to."""


@dataclasses.dataclass
class Row:
    """Consecutive layers of the network: where they stand, what they are, and their numbers for one face."""

    block: str
    layers: list[str]
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def rows(model: EmotionCNN) -> list[Row]:
    """The layers in the order in which one face passes them."""
    found: list[Row] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if isinstance(layer, nn.Flatten):
                return
            if isinstance(layer, ROW_STARTS):
                part, index = name.split(".")[:2]
                block = f"block {int(index) + 1}" if part == "features" else part
                found.append(Row(block, [], tuple(output.shape[1:]), 0, 0))
            row = found[-1]
            row.layers.append(NOTES[type(layer)].format(layer))
            row.parameters += sum(parameter.numel() for parameter in layer.parameters())
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                # Each output value needs one filter, and a bias is added, not multiplied.
                row.multiply_adds += output[0].numel() * layer.weight[0].numel()

        return hook

    leaves = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(note(name)) for name, layer in leaves]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))
    for handle in handles:
        handle.remove()
    return found


def layer_table() -> str:
    """The network's layers as a Markdown table."""
    found = rows(EmotionCNN())
    lines = ["| part | layers | output | parameters | multiply-adds |", "|---|---|---:|---:|---:|"]
    for index, row in enumerate(found):
        block = row.block if not index or found[index - 1].block != row.block else ""
        shape = " x ".join(map(str, row.shape))
        lines.append(f"| {block} | {', '.join(row.layers)} | {shape} | {row.parameters:,} | {row.multiply_adds:,} |")
    parameters, multiply_adds = (sum(getattr(row, name) for row in found) for name in ("parameters", "multiply_adds"))
    return "\n".join([*lines, f"| **sum** | | | **{parameters:,}** | **{multiply_adds:,}** |"])


def diagram() -> str:
    """The network as an SVG: a box per part, as high as its pictures, with what happens in it below."""
    boxes: list[tuple[str, str, int]] = [("face", f"1 x {IMAGE_SIZE} x {IMAGE_SIZE}", IMAGE_SIZE)]
    found = rows(EmotionCNN())
    for block in dict.fromkeys(row.block for row in found):
        members = [row for row in found if row.block == block]
        if block == "classifier":
            # A dense layer has no picture; its box is as high as a small one.
            boxes += [(row.layers[0].split(",")[0], str(row.shape[0]), 3) for row in members]
        else:
            convs = [row for row in members if row.multiply_adds]
            boxes.append((f"{len(convs)} conv", " x ".join(map(str, convs[-1].shape)), convs[-1].shape[-1]))
    step, middle, height = 88, 110, 250
    width = step * len(boxes)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" text-anchor="middle">',
        "<title>The network, from a 48x48 grey face to seven logits</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<line x1="{step // 2}" y1="{middle}" x2="{width - step // 2}" y2="{middle}" stroke="#94a3b8"/>',
    ]
    for index, (title, shape, side) in enumerate(boxes):
        x, tall = step * index + step // 2, 4 * side
        colour = "#94a3b8" if not index else "#0d9488" if title.startswith("dense") else "#4f46e5"
        parts += [
            f'<rect x="{x - 16}" y="{middle - tall // 2}" width="32" height="{tall}" rx="2" fill="{colour}"/>',
            f'<text x="{x}" y="224">{title}</text>',
            f'<text x="{x}" y="240" fill="#475569">{shape}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def step_table() -> str:
    """The training pipeline's steps, with their values at full strength."""
    lines = ["| step | values | what it does |", "|---|---|---|"]
    for number, step in enumerate(get_enhanced_transforms_grayscale_48(training=True).steps, 1):
        name, values = repr(step)[:-1].split("(", 1)
        lines.append(f"| {number}. `{name}` | {values} | {inspect.getdoc(step).splitlines()[0]} |")
    return "\n".join(lines)


def recipe_table() -> str:
    """Every value of the recipes, with its flag; where the networks of one differ, those of each in turn."""

    def cell(name: str, configs: Sequence[TrainingConfig]) -> str:
        values = ["none" if getattr(c, name) in (None, ()) else getattr(c, name) for c in configs]
        shown = [" ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values]
        return shown[0] if len(set(shown)) == 1 else ", ".join(shown)

    networks = {name: [*plan(name, "fer2013", Path("OUTPUT"), {}).values()] for name in RECIPES}
    networks["best, FER+'s labels"] = [*plan("best", "ferplus", Path("OUTPUT"), {}).values()]
    lines = [f"| flag | what it is | {' | '.join(networks)} |", "|---|---|" + "---|" * len(networks)]
    for field in dataclasses.fields(TrainingConfig):
        cells = (cell(field.name, configs) for configs in networks.values())
        lines.append(f"| `--{field.name.replace('_', '-')}` | {field.metadata['help']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(name: str) -> dict[str, Any]:
    """What a benchmark has written, by the section that its table goes to."""
    return json.loads(BENCHMARKS[name].RESULTS.read_text())


def speed_table() -> str:
    """The most important of what `python -m benchmarks --write` has measured."""
    traditional_way, ours = (measured("comparison")[name] for name in ("traditional", "ours"))
    face, photo, folder = (measured("prediction")[name] for name in ("face", "photo", "folder"))
    cameras, first, beside = measured("live")["cameras"], measured("page"), measured("others")

    def compared(title: str, before: Sequence[float], now: Sequence[float]) -> str:
        times = median(before) / median(now)
        return f"| {title} | {milliseconds(before)} | {milliseconds(now)} | {times:.1f} times |"

    found = beside["faces"]["upright"]
    (camera,) = zip(*cameras["1"], strict=True)
    rate = median(len(answers) / sum(answers) for answers in camera)
    slow = median(float(np.percentile(answers, 95)) for answers in camera)
    return "\n".join(
        [
            "| on two cores | alternative | this project | speed-up |",
            "|---|---:|---:|---:|",
            compared(
                "a training step of 8 faces, per face: VGG16 on upsampled faces, this network",
                *(way["training"]["seconds"] for way in (traditional_way, ours)),
            ),
            compared(
                "one face: the network in plain PyTorch, all of `predict`",
                face["idle"]["eager"],
                face["idle"]["predict"],
            ),
            compared(
                f"one photo of {prediction.PHOTO_SIDE} pixels: the detector in plain PyTorch, as it runs",
                photo["seconds"]["plain"],
                photo["seconds"]["ours"],
            ),
            compared(
                f"one photo of {prediction.PHOTO_SIDE} pixels: the package `fer`, this one",
                *(beside["seconds"]["photo"][name] for name in ("fer", "ours")),
            ),
            "",
            "Both sides of a row were measured in the same run: medians (smallest to largest) on "
            f"{measured('prediction')['machine']}. A folder's pictures are read at {prediction.folder_rate(folder)}. "
            f"One camera could get {rate:.0f} answers a second, 95% of them within {1000 * slow:.0f} ms; the page asks "
            f"for {1 / FRAME_SECONDS:.0f}. It answers its first photo {median(first['first']):.1f} s after its start "
            f"and takes {median(first['memory']) / 1e6:,.0f} MB. In {prediction.PICTURES} pictures made of "
            f"PublicTest's faces, of {found['large']} upright ones of {others.LARGE} pixels and more, `fer` finds "
            f"{found['found']['fer']['large']}, this project {found['found']['ours']['large']}.",
        ]
    )


def figures() -> str:
    """What `python -m emotion evaluate --full` has written into the shipped checkpoints."""
    parts = []
    for name, metrics in _shipped().items():
        plain, clear = metrics["plain"], metrics["clear_answer"]
        lines = [
            f"| `{name}`, {plain['split']} | rows | top-1 accuracy | 95% interval | calibration error (ECE) |",
            "|---|---|---|---|---|",
        ]
        for key, view in RESULTS.items():
            row, view = metrics[key], view + REMARKS.get(key, "")
            between = "{:.1%} to {:.1%}".format(*row["interval"])
            lines.append(f"| {view} | {row['rows']:,} | {row['accuracy']:.1%} | {between} | {row['ece']:.1%} |")
        recall = sorted(((row["recall"], label) for label, row in plain["per_class"].items()), reverse=True)
        lines += [
            "",
            f"Recall, one view: {', '.join(f'{label} {share:.0%}' for share, label in recall)}. An answer is called "
            f"clear from a probability of {clear['threshold']:.0%} on: that is {clear['share']:.0%} of the faces, of "
            f"which {clear['accuracy']:.0%} are right.",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def robustness_table() -> str:
    """Accuracy of the shipped checkpoints under corruption, with the severities."""
    parts = []
    for name, metrics in _shipped().items():
        robustness = metrics["robustness"]
        lines = [f"| `{name}`: corruption, unit of its severity | mild | middle | strong |", "|---|---|---|---|"]
        for corruption, shares in robustness["accuracy"].items():
            cells = zip(shares, robustness["severities"][corruption], strict=True)
            shown = " | ".join(f"{share:.1%} ({severity:g})" for share, severity in cells)
            lines.append(f"| {corruption}, {UNITS[corruption]} | {shown} |")
        lines += ["", f"Top-1 accuracy on {robustness['rows']:,} rows of {robustness['split']}, one view (severity)."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _shipped() -> dict[str, dict]:
    """Metrics of the shipped checkpoints by name, those of the default one first."""
    folders = [file.parent for file in DEFAULT_CHECKPOINT.parent.glob("*/metrics.json")]
    folders.sort(key=lambda folder: (folder != DEFAULT_CHECKPOINT, folder))
    return {folder.name: load_metadata(folder, "metrics") for folder in folders}


SECTIONS: Final[dict[str, Callable[[], str]]] = {
    "layers": layer_table,
    "steps": step_table,
    "recipes": recipe_table,
    "speed": speed_table,
    "figures": figures,
    "robustness": robustness_table,
    **{name: lambda name=name: BENCHMARKS[name].table(measured(name)) for name in BENCHMARKS},
}


def fill(text: str) -> str:
    """A page with its generated sections renewed.

    Raises:
        ValueError: if it asks for a section that does not exist.
    """

    def renew(section: re.Match) -> str:
        if section[2] not in SECTIONS:
            raise ValueError(f"There is no section {section[2]!r}; choose from {', '.join(SECTIONS)}.")
        return f"{section[1]}\n{SECTIONS[section[2]]()}\n{section[3]}"

    return re.sub(r"(<!-- generated: (.+?) -->)\n.*?(<!-- end -->)", renew, text, flags=re.DOTALL)


def draw_steps(file: Path) -> None:
    """Draw three random results of each training step, applied alone to one example face, as a PNG."""
    from matplotlib.figure import Figure

    face = ToTensor()(Image.open(FACE)).repeat(3, 1, 1, 1)
    # With this seed, what is done to some faces only is done to one of the three, or two.
    generator = torch.Generator().manual_seed(1)
    shown = [("the face", face)]
    for step in get_enhanced_transforms_grayscale_48(training=True).steps:
        # Noise is added to the normalised picture; all are shown in [0, 1].
        result = step(Normalize()(face) if isinstance(step, GrayscaleNoise) else face, generator=generator)
        normalised = isinstance(step, (Normalize, GrayscaleNoise))
        shown.append((type(step).__name__, result / 2 + 0.5 if normalised else result))
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(4, 3).flat, shown, strict=True):
        framed = torch.nn.functional.pad(images[:, 0], (2, 2), value=1)
        axes.imshow(np.hstack(framed.numpy()), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    figure.savefig(file, format="png", dpi=100)


def main() -> int:
    """Renew pages and pictures in the working directory; returns the exit code."""
    for document in (Path("README.md"), *sorted(Path("docs").rglob("*.md"))):
        old = document.read_text("utf-8")
        if (new := fill(old)) != old:
            with atomic_write(document) as file:
                file.write_text(new, "utf-8")
            print(f"{document} is renewed.")
    with atomic_write(IMAGES / "network.svg") as file:
        file.write_text(diagram())
    with atomic_write(IMAGES / "steps.png") as file:
        draw_steps(file)
    with atomic_write(IMAGES / "comparison.png") as file:
        traditional.plot(measured("comparison"), file)
    with atomic_write(IMAGES / "speed.png") as file:
        prediction.plot(measured("prediction"), file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
