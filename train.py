"""Train the network on FER2013, FER+ or class folders; see `python train.py --help`."""

import argparse
import dataclasses
import os
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch.distributed as dist

from emotion.checkpoint import load_metadata, save_checkpoint
from emotion.data import FaceDataset, available_splits, hold_out, load_dataset, split_kind, without_duplicates_of
from emotion.evaluate import RESULTS, compute_logits, fit_temperature, report, save_report
from emotion.hub import check_target, push
from emotion.labels import LABEL_SETS, OWN_LABELS
from emotion.model import EmotionCNN
from emotion.recipes import RECIPES, TrainingConfig, plan
from emotion.runs import append, log_run
from emotion.trainer import STATE_FILE, TrainingDiverged, fit, saved_state

HELD_OUT = 0.1


def parse_arguments(arguments: list[str] | None) -> tuple[argparse.Namespace, dict[Path, TrainingConfig]]:
    """Command line to data and output options, and the networks to train; exits with 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        description="Train the 48x48 grey expression network and keep the epoch with the best validation accuracy.",
        epilog="example: python train.py --data fer2013.csv --votes fer2013new.csv --labels ferplus --recipe best "
        "--output runs/best",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", required=True, metavar="FILE_OR_FOLDER", help="FER2013 CSV (or .xz ...), or class folders"
    )
    data.add_argument("--votes", metavar="CSV", help="FER+ votes (fer2013new.csv) of the same rows")
    data.add_argument(
        "--labels",
        default="fer2013",
        choices=(*LABEL_SETS, OWN_LABELS),
        help="label set; own: the names of the class folders, which are also taken where none is of a known emotion "
        "(default: %(default)s)",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--output", required=True, metavar="FOLDER", type=Path, help="checkpoint folder to write")
    run.add_argument("--resume", action="store_true", help="go on with the interrupted run in --output")
    run.add_argument(
        "--log",
        metavar="FILE",
        type=Path,
        help="append the result to these JSON lines, which `python -m emotion compare` reads (default: log.jsonl "
        "beside the output folder)",
    )
    run.add_argument("--push-to-hub", metavar="USER/NAME", help="publish the result as this model repository")
    recipe = parser.add_argument_group("recipe", "what is given here replaces the value of the recipe")
    recipe.add_argument(
        "--recipe",
        default="original",
        choices=RECIPES,
        help="original: that of the notebook this grew out of; single: ours for one network; best, in more time: on "
        "FER+'s labels two networks, in teacher1 and teacher2 of the output folder, and one that learns from both, on "
        "others one from faces that are only moved, by sharpness-aware steps (default: %(default)s)",
    )
    for field in dataclasses.fields(TrainingConfig):
        recipe.add_argument(f"--{field.name.replace('_', '-')}", help=field.metadata["help"], **_option(field))
    options = parser.parse_args(arguments)
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(TrainingConfig)}
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}
    if not options.votes:
        given.setdefault("soft_targets", False)  # a recipe only offers to learn from votes
    try:
        return options, plan(options.recipe, options.labels, options.output, given)
    except ValueError as error:
        parser.error(str(error))


def _option(field: dataclasses.Field) -> dict[str, Any]:
    """How argparse reads one value of the configuration; left out, it is None."""
    if isinstance(field.default, bool):
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(field.default, tuple):
        # One default value or none stands for any number of them; only text has none.
        kind = type(field.default[0]) if field.default else str
        return {"type": kind, "nargs": len(field.default) if len(field.default) > 1 else "+"}
    if isinstance(field.default, (int, float)):
        return {"type": type(field.default)}
    return {"choices": field.metadata["choices"]}


def load_splits(options: argparse.Namespace, config: TrainingConfig) -> tuple[FaceDataset, FaceDataset, str]:
    """Training faces, validation faces, and what the latter are called; the test split is never touched."""
    training = load_dataset(options.data, "train", options.labels, options.votes, config.soft_targets)
    split = next((name for name in available_splits(options.data) if split_kind(name) == "validation"), None)
    if split is None:
        (training, held_out), split = hold_out(training, HELD_OUT), f"{HELD_OUT:.0%} held out of the training split"
    else:
        held_out = load_dataset(options.data, split, options.labels, options.votes)
    if config.drop_duplicates:
        training = without_duplicates_of(training, held_out)
    return training, held_out, split


def check_folders(networks: dict[Path, TrainingConfig], output: Path, resume: bool) -> None:
    """Raise FileExistsError or ValueError if `output`, or a folder within, holds another run than is to go to it."""
    begun = {folder: saved_state(folder, config, resume) is not None for folder, config in networks.items()}
    for teacher, pupil in pairwise(begun):
        if begun[pupil] and not begun[teacher]:
            raise ValueError(
                f"{pupil} holds a run, but {teacher}, which comes before it, does not; bring that back, or give "
                "another --output."
            )
    teacher = output / "teacher1"
    if len(begun) == 1 and not begun[output] and (teacher / STATE_FILE).exists():
        raise FileExistsError(
            f"{teacher} belongs to a run of several networks; repeat its --recipe and --labels, or give another "
            "--output."
        )


def finish(
    model: EmotionCNN, training: FaceDataset, validation: FaceDataset, split: str, output: Path, log: Path
) -> None:
    """Calibrate a trained network and measure it on the validation faces; its folder and the log get the result.

    Raises:
        OSError: if a file cannot be written.
    """
    logits = compute_logits(model, validation, tta=True)
    model.temperature = fit_temperature(logits[0], validation.class_indices)
    save_checkpoint(model, output)
    metrics = report(model, logits, validation, split, training)
    log_run(log, output, metrics)
    save_report(metrics, output)  # last: where it is, all is done


def main(arguments: list[str] | None = None) -> int:
    """Train the networks of a recipe; returns the exit code."""
    options, networks = parse_arguments(arguments)
    first_process = int(os.environ.get("RANK", 0)) == 0  # with several, the others only train
    try:
        # What is wrong with the Hub's id, a folder or the log shall not show after hours of training.
        if options.push_to_hub:
            check_target(options.push_to_hub)
        check_folders(networks, options.output, options.resume)
        config = networks[options.output]
        if options.votes and options.labels == "fer2013" and not config.soft_targets and first_process:
            print("Note: on FER2013's labels, --votes are not used without --soft-targets.", file=sys.stderr)
        training, validation, split = load_splits(options, config)
        log = options.log or options.output.parent / "log.jsonl"
        append(log, "")
        for number, (output, config) in enumerate(networks.items(), 1):
            if number > 1 and dist.is_initialized():
                dist.barrier()  # until the first process has calibrated the network before
            if len(networks) > 1 and first_process:
                print(f"{output}: network {number} of {len(networks)}", flush=True)
            model = fit(config, training, validation, output, options.resume)
            if not first_process:
                continue
            # Calibrated again, on another processor, a teacher would be another one to a pupil that goes on.
            if model.temperature == 1 or not (output / "metrics.json").exists():
                finish(model, training, validation, split, output, log)
            metrics = load_metadata(output, "metrics")
            for name in filter(metrics.get, RESULTS):
                accuracy, ece, rows = (metrics[name][key] for key in ("accuracy", "ece", "rows"))
                print(f"{name}: accuracy {accuracy:.4f}, ECE {ece:.4f}, {rows} rows of {split}")
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except TrainingDiverged as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:  # no ImageNet weights, or what the other processes leave behind when one of them ends
        hint = " If a process has ended, the same command with --resume goes on." if dist.is_initialized() else ""
        print(f"train.py: {error}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command with --resume goes on.", file=sys.stderr)
        return 130
    if options.push_to_hub and first_process:
        try:
            print(push(options.output, options.push_to_hub))
        except (ValueError, OSError) as error:
            again = shlex.join(["python", "-m", "emotion", "push", str(options.output), options.push_to_hub])
            print(f"train.py: the network is in {options.output}, but {error} Repeat: {again}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
