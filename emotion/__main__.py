"""The command line: `python -m emotion predict, evaluate, export, examples, demo`."""

import argparse
import json
import sys
from contextlib import redirect_stdout
from typing import Any

from emotion.labels import LABEL_SETS

# Each command imports what it needs, so that --help and wrong usage answer at once.


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows `python -m emotion`; by default the process's own.

    Returns:
        The exit status: 0, 1 if an image of `predict` failed, or 2 if the user has to correct something.

    Raises:
        SystemExit: with 2 for wrong usage, with 0 after `--help`.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m emotion", description="Recognise facial expressions in photos.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    checkpoint = {"metavar": "PATH_OR_HUB_ID", "help": "checkpoint folder, .pth file or Hub id such as user/name"}

    predict = commands.add_parser("predict", help="find the faces in photos and name their expressions")
    predict.set_defaults(run=_predict)
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="photo, or a face crop of exactly 48x48 pixels")
    predict.add_argument("--checkpoint", **checkpoint | {"help": checkpoint["help"] + " (default: the shipped one)"})
    predict.add_argument("--json", action="store_true", help="print one JSON list, an item per image")

    evaluate = commands.add_parser("evaluate", help="measure accuracy and calibration on a labelled split")
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("--checkpoint", required=True, **checkpoint)
    evaluate.add_argument("--data", required=True, metavar="FILE_OR_FOLDER", help="FER2013 CSV or class folders")
    evaluate.add_argument("--votes", metavar="CSV", help="FER+ votes (fer2013new.csv), needed for ferplus")
    evaluate.add_argument("--labels", required=True, choices=LABEL_SETS, help="whose labels count as true")
    evaluate.add_argument(
        "--split", required=True, metavar="NAME", help="such as PublicTest, or train, validation, test"
    )
    evaluate.add_argument("--tta", action="store_true", help="average over each face and its mirror image")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    export = commands.add_parser("export", help="write a checkpoint in another format")
    export.set_defaults(run=_export)
    export.add_argument("checkpoint", **checkpoint | {"metavar": "CHECKPOINT"})
    export.add_argument("--pth", required=True, metavar="FILE", help="single file with weights, labels and history")

    examples = commands.add_parser(
        "examples", help="make the example faces, means of many faces, from FER2013 and FER+"
    )
    examples.set_defaults(run=_examples)
    examples.add_argument("--data", required=True, metavar="CSV", help="FER2013 CSV")
    examples.add_argument("--votes", required=True, metavar="CSV", help="FER+ votes (fer2013new.csv)")
    examples.add_argument("--output", default="examples", metavar="FOLDER", help="(default: examples)")

    demo = commands.add_parser("demo", help="draw faces, train on them, evaluate and predict, in under a minute")
    demo.set_defaults(run=_demo)
    return parser


def _predict(options: argparse.Namespace) -> int:
    from emotion.predict import DEFAULT_CHECKPOINT, EmotionPredictor

    output = sys.stdout
    items = []
    # Whatever a library prints must not get between the results.
    with redirect_stdout(sys.stderr):
        predictor = EmotionPredictor.from_checkpoint(options.checkpoint or DEFAULT_CHECKPOINT)
        for name in options.images:
            faces, problem = [], None
            try:
                faces = predictor.predict(name)
            except (ValueError, OSError) as error:
                problem = str(error)
            items.append({"image": name, "faces": [face.to_json() for face in faces], "error": problem})
            if options.json:
                continue
            if problem:
                print(f"error: {problem}", file=sys.stderr)
            elif not faces:
                print(f"{name}: no face found", file=output)
            for number, face in enumerate(faces, 1):
                x, y, width, height = face.box
                where = f"face {number} of {len(faces)}, {width:.0f}x{height:.0f} pixels at ({x:.0f}, {y:.0f})"
                print(f"{name}: {where}: {face}", file=output)
    if options.json:
        print(json.dumps(items, indent=2))
    return int(any(item["error"] for item in items))


def _evaluate(options: argparse.Namespace) -> int:
    from emotion.checkpoint import load_checkpoint
    from emotion.data import load_dataset
    from emotion.evaluate import evaluate

    with redirect_stdout(sys.stderr):
        model = load_checkpoint(options.checkpoint)
        # FER2013's labels need no votes; given all the same, they are ignored.
        votes = options.votes if options.labels == "ferplus" else None
        dataset = load_dataset(options.data, options.split, options.labels, votes)
        metrics = evaluate(model, dataset, options.tta)
    print(json.dumps(metrics, indent=2) if options.json else _table(metrics))
    return 0


def _table(metrics: dict[str, Any]) -> str:
    """The result of `emotion.evaluate.evaluate` for people."""
    labels = metrics["labels"]
    name, cell = max(map(len, labels)), max(9, *map(len, labels))
    lines = [
        f"faces              {metrics['rows']:,}",
        f"accuracy           {metrics['accuracy']:.2%}",
        f"balanced accuracy  {metrics['balanced_accuracy']:.2%}",
        f"log loss           {metrics['nll']:.4f}",
        f"calibration error  {metrics['ece']:.2%}",
        "",
        " " * name + "".join(f"  {title:>9}" for title in ("faces", "precision", "recall", "F1")),
    ]
    for label, row in metrics["per_class"].items():
        shares = "".join(f"  {row[key]:9.1%}" for key in ("precision", "recall", "f1"))
        lines.append(f"{label:<{name}}  {row['rows']:9,}{shares}")
    lines += ["", "Predicted (columns) for each true class (rows):", " " * name]
    lines[-1] += "".join(f"  {label:>{cell}}" for label in labels)
    for label, counts in zip(labels, metrics["confusion"], strict=True):
        lines.append(f"{label:<{name}}" + "".join(f"  {count:{cell},}" for count in counts))
    return "\n".join(lines)


def _export(options: argparse.Namespace) -> int:
    from emotion.checkpoint import load_checkpoint, load_metadata, save_pth

    def stored(name: str) -> Any:
        try:
            return load_metadata(options.checkpoint, name)
        except FileNotFoundError:
            return None

    with redirect_stdout(sys.stderr):
        model = load_checkpoint(options.checkpoint)
        history, metrics = stored("history"), stored("metrics")
        try:  # other tools may have written other metrics
            best_val_acc = 100 * metrics["validation"]["accuracy"]
        except (KeyError, TypeError):
            best_val_acc = None
        save_pth(
            model,
            options.pth,
            history=history,
            training_config=stored("training_config"),
            best_val_acc=best_val_acc,
        )
    print(f"{options.checkpoint} is written to {options.pth}.")
    return 0


def _examples(options: argparse.Namespace) -> int:
    from emotion.examples import write_examples

    print("              faces  lowest share of votes  nearest face in it  nearest other face")
    for label, (composite, share) in write_examples(options.data, options.votes, options.output).items():
        nearest = f"{composite.nearest_member:18.2f}  {composite.nearest_other:18.2f}"
        print(f"{label:<12}  {len(composite.members):5}  {share:21.0%}  {nearest}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from emotion.demo import run

    run()
    return 0


if __name__ == "__main__":
    # File names may hold what the terminal's encoding lacks.
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
