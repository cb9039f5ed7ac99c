"""Do ImageNet filters help? `python -m benchmarks.transfer --data fer2013.csv` answers as a reviewer would ask.

Three ways to start, each over the same seeds, with the same recipe, epochs and learning rates:

- scratch: random weights;
- adapted: the donor's filters, see `emotion.transfer`;
- shuffled: the same filters with the weights of each layer in random order, so that their size and spread stay and
  what they look for is lost. If this starts as well as `adapted`, it was never the filters that helped.

A run that is there is not repeated, one that was cut goes on: the same command may be given again. With other flags it
is refused, so that no figure is of other settings than those asked for.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

import torch
from torch import nn

from benchmarks.report import count
from emotion.checkpoint import save_checkpoint
from emotion.labels import LABEL_SETS
from emotion.model import EmotionCNN, create_enhanced_grayscale_model
from emotion.runs import compare_runs, table
from emotion.transfer import BACKBONES
from train import main as train

STARTS: Final = ("scratch", "adapted", "shuffled")


def starting_network(start: str, backbone: str, seed: int) -> EmotionCNN:
    """The network before its first step; whatever is not transferred is drawn by the seed, alike in all three.

    Raises:
        RuntimeError: if the ImageNet weights are neither cached nor downloadable.
    """
    torch.manual_seed(seed)
    model = create_enhanced_grayscale_model(
        use_transfer_adaptation=start != "scratch", pretrained_backbone=backbone, labels=LABEL_SETS["fer2013"]
    )
    if start == "shuffled":
        with torch.no_grad():
            for module in model.features.modules():
                if isinstance(module, nn.Conv2d):
                    order = torch.randperm(module.weight.numel())
                    module.weight.copy_(module.weight.flatten()[order].view_as(module.weight))
    return model


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing and print one row per start; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare training from scratch, from ImageNet filters, and shuffled.")
    parser.add_argument("--data", required=True, metavar="CSV", help="FER2013 CSV")
    parser.add_argument("--backbone", default="vgg16_bn", choices=BACKBONES, help="donor (default: %(default)s)")
    parser.add_argument("--seeds", type=count, default=3, help="runs per start (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"), help="folder (default: %(default)s)")
    parser.add_argument("recipe", nargs="*", help="flags of train.py, after --, such as -- --recipe single --epochs 12")
    options = parser.parse_args(arguments)
    names = {start: start if start == "scratch" else f"{options.backbone}-{start}" for start in STARTS}
    log = options.output / "log.jsonl"
    try:
        starting_network("adapted", options.backbone, 0)  # a missing donor shall not show after the first training
        for seed in range(options.seeds):
            for start, name in names.items():
                # The name of the start alone, so that the log tells the starts apart and not the seeds.
                before, after = options.output / name, options.output / f"{name}-{seed}"
                save_checkpoint(starting_network(start, options.backbone, seed), before)
                run = ["--data", options.data, "--output", after, "--start-from", before, "--log", log, "--seed", seed]
                # A run that is complete computes nothing more, but one with other flags is refused.
                status = train([*map(str, run), "--resume", *options.recipe])
                if status:
                    return status
        print(table(compare_runs([log])))
    except (RuntimeError, OSError, ValueError) as error:
        print(f"transfer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
