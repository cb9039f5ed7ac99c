"""The command line: `python -m emotion predict, evaluate, compare, export, push, deploy, examples, demo`."""

import argparse
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emotion.labels import LABEL_SETS, OWN_LABELS

if TYPE_CHECKING:
    from emotion.data import FaceDataset
    from emotion.model import EmotionCNN

THREADS: Final = 4
"""Pictures that `predict` reads at once, at most: each may take a gigabyte."""

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
    checkpoint = {
        "metavar": "PATH_OR_HUB_ID",
        "help": "checkpoint folder, .pth file or Hub id such as user/name[@revision]",
    }

    predict = commands.add_parser("predict", help="find the faces in photos and name their expressions")
    predict.set_defaults(run=_predict)
    predict.add_argument(
        "images", nargs="+", metavar="IMAGE", help="photo, folder of them, or a face crop of exactly 48x48 pixels"
    )
    predict.add_argument("--checkpoint", **checkpoint | {"help": checkpoint["help"] + " (default: the shipped one)"})
    predict.add_argument("--json", action="store_true", help="print one JSON list, an item per image")

    evaluate = commands.add_parser("evaluate", help="measure accuracy and calibration on a labelled split")
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("--checkpoint", required=True, **checkpoint)
    evaluate.add_argument("--data", required=True, metavar="FILE_OR_FOLDER", help="FER2013 CSV or class folders")
    evaluate.add_argument("--votes", metavar="CSV", help="FER+ votes (fer2013new.csv), needed for ferplus")
    evaluate.add_argument(
        "--labels",
        required=True,
        choices=(*LABEL_SETS, OWN_LABELS),
        help="whose labels count as true; own: the names of the class folders",
    )
    evaluate.add_argument(
        "--split", required=True, metavar="NAME", help="such as PublicTest, or train, validation, test"
    )
    evaluate.add_argument("--tta", action="store_true", help="average over each face and its mirror image")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    full = evaluate.add_argument_group("full report")
    full.add_argument(
        "--full",
        action="store_true",
        help="also with --tta, without faces or photos seen in training, the threshold of a clear answer, and accuracy "
        "under seven corruptions (23 times the work)",
    )
    full.add_argument(
        "--train-data",
        metavar="FILE_OR_FOLDER",
        help="CSV or folder with the faces seen in training, its training split (default: that of --data, if any)",
    )
    full.add_argument(
        "--output",
        metavar="FOLDER",
        help="write metrics.json, confusion.png and reliability.png there, such as into the checkpoint's folder",
    )

    compare = commands.add_parser("compare", help="compare the training runs of a log, recipe by recipe")
    compare.set_defaults(run=_compare)
    compare.add_argument("logs", nargs="+", metavar="LOG", help="JSON lines that train.py has appended to")

    export = commands.add_parser("export", help="write a checkpoint in another format")
    export.set_defaults(run=_export)
    export.add_argument("checkpoint", **checkpoint | {"metavar": "CHECKPOINT"})
    export.add_argument("--pth", metavar="FILE", help="single file with weights, labels and history")
    export.add_argument("--onnx", metavar="FILE", help="ONNX file with labels, temperature and normalisation in it")
    export.add_argument("--int8", action="store_true", help="quantise the ONNX file: two fifths of the size, faster")

    dry_run = {"action": "store_true", "help": "list the files and their sizes; nothing is sent"}
    push = commands.add_parser("push", help="publish a checkpoint on the Hub, with ONNX and a model card")
    push.set_defaults(run=_push)
    push.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder, such as train.py writes")
    push.add_argument("hub_id", metavar="USER/NAME", help="model repository, created if it is not there")
    push.add_argument("--private", action="store_true", help="create a repository that only you can see")
    push.add_argument("--dry-run", **dry_run)

    deploy = commands.add_parser("deploy", help="create or update a Space on the Hub that serves the page")
    deploy.set_defaults(run=_deploy)
    deploy.add_argument("space_id", metavar="USER/SPACE", help="Space, created if it is not there")
    deploy.add_argument(
        "--checkpoint", metavar="FOLDER_OR_HUB_ID", help="network that the page serves (default: the shipped one)"
    )
    deploy.add_argument("--hardware", metavar="NAME", help="such as cpu-basic or t4-small (default: as it is)")
    deploy.add_argument("--dry-run", **dry_run)

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
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    from emotion.predict import DEFAULT_CHECKPOINT, EmotionPredictor, Prediction

    output = sys.stdout
    items = []
    names = [file for name in options.images for file in _pictures(name)]

    def look(name: str) -> tuple[list[Prediction], str | None]:
        try:
            return predictor.predict(name), None
        except (ValueError, OSError) as error:
            return [], str(error)

    # Whatever a library prints must not get between the results.
    with redirect_stdout(sys.stderr), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        predictor = EmotionPredictor.from_checkpoint(options.checkpoint or DEFAULT_CHECKPOINT)
        looks = [pool.submit(look, name) for name in names]
        looks.reverse()
        try:
            # None: only where somebody watches.
            for name in tqdm(names, unit=" pictures", disable=None if len(names) > 1 else True):
                # Taken off the list, so that the crops of a long folder do not pile up.
                faces, problem = looks.pop().result()
                items.append({"image": name, "faces": [face.to_json() for face in faces], "error": problem})
                if options.json:
                    continue
                if problem:
                    tqdm.write(f"error: {problem}", file=sys.stderr)
                elif not faces:
                    tqdm.write(f"{name}: no face found", file=output)
                for number, face in enumerate(faces, 1):
                    x, y, width, height = face.box
                    where = f"face {number} of {len(faces)}, {width:.0f}x{height:.0f} pixels at ({x:.0f}, {y:.0f})"
                    tqdm.write(f"{name}: {where}: {face}", file=output)
        finally:
            pool.shutdown(cancel_futures=True)
    if options.json:
        print(json.dumps(items, indent=2))
    return int(any(item["error"] for item in items))


def _pictures(name: str) -> list[str]:
    """The pictures in a folder and the folders below it, in the order of their names; what is no folder, as it is."""
    from PIL import Image

    from emotion.faces import FORMATS

    if not os.path.isdir(name):
        return [name]
    suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS}
    found = (file for file in Path(name).rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    # What starts with a dot is a system's own.
    files = sorted(str(file) for file in found if not file.name.startswith("."))
    if not files:
        raise ValueError(f"'{name}' holds no picture; give a folder of {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    return files


def _evaluate(options: argparse.Namespace) -> int:
    from emotion.checkpoint import load_checkpoint
    from emotion.data import load_dataset
    from emotion.evaluate import compute_logits, evaluate, report, save_report
    from emotion.robustness import measure_robustness

    if not options.full and (options.train_data or options.output):
        raise ValueError("--train-data and --output belong to the full report; add --full, or leave them out.")
    with redirect_stdout(sys.stderr):
        model = load_checkpoint(options.checkpoint)
        # FER2013's labels need no votes; given all the same, they are ignored.
        votes = options.votes if options.labels == "ferplus" else None
        dataset = load_dataset(options.data, options.split, options.labels, votes)
        if not options.full:
            metrics = evaluate(model, dataset, options.tta)
            text = _table(metrics)
        else:
            training = _training_faces(options)
            if options.output:
                _check_output(options.output)
            logits = compute_logits(model, dataset, tta=True)
            full = report(model, logits, dataset, options.split, training)
            full["robustness"] = measure_robustness(model, dataset, options.split)
            if options.output:
                save_report(full, options.output)
            # With the keys that there are without --full, too.
            metrics = full["tta" if options.tta else "plain"] | full
            text = _full_table(metrics)
    print(json.dumps(metrics, indent=2) if options.json else text)
    return 0


def _check_output(folder: str) -> None:
    """Raise OSError if nothing can be written to a folder, which shall not show after minutes of measuring."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"Cannot write to {folder}: {error.strerror}. Give another --output.") from error


def _training_faces(options: argparse.Namespace) -> "FaceDataset | None":
    """Every face of the training split of --train-data, else of --data; None if the latter has no such split.

    Those that the network was trained without, since they stand in the validation split, too, are left out.
    """
    from emotion.checkpoint import find_metadata
    from emotion.data import available_splits, load_dataset, split_kind, without_duplicates_of

    path = options.train_data or options.data
    splits = {split_kind(name): name for name in reversed(available_splits(path))}  # the first of a kind
    if not options.train_data and "train" not in splits:
        return None
    # Whatever their labels: a folder's own class names, and of a CSV all rows, also those that FER+ leaves out.
    labels = OWN_LABELS if os.path.isdir(path) else "fer2013"
    training = load_dataset(path, "train", labels)
    config = find_metadata(options.checkpoint, "training_config")
    try:
        dropped = config["config"]["drop_duplicates"] is True and not config["origins"]
    except (KeyError, TypeError):  # older, or of another tool
        dropped = False
    if dropped and "validation" in splits:
        training = without_duplicates_of(training, load_dataset(path, splits["validation"], labels))
    return training


def _full_table(metrics: dict[str, Any]) -> str:
    """The full report for people, which begins with one of its results in detail."""
    from emotion.robustness import UNITS

    robustness = metrics["robustness"]
    lines = [
        f"{metrics['split']}, {metrics['label_set']} labels",
        "",
        _table(metrics),
        "",
        f"{'':<24}  {'faces':>6}  {'accuracy':>8}  {'95% interval':>14}  {'calibration error':>17}",
    ]
    names = {
        "plain": "one view",
        "tta": "with the mirror image",
        "unseen": "not seen in training",
        "new_photos": "nor another print of it",
    }
    for key, name in names.items():
        if row := metrics.get(key):
            interval = "{:.1%} - {:.1%}".format(*row["interval"])
            lines.append(f"{name:<24}  {row['rows']:6,}  {row['accuracy']:8.2%}  {interval:>14}  {row['ece']:17.2%}")
    if clear := metrics.get("clear_answer"):
        lines += [
            "",
            f"An answer is clear from {clear['threshold']:.1%} on: {clear['share']:.1%} of the faces, of which "
            f"{clear['accuracy']:.1%} are right.",
        ]
    lines += ["", "Accuracy under corruption, by severity:"]
    for name, accuracies in robustness["accuracy"].items():
        cells = zip(robustness["severities"][name], accuracies, strict=True)
        lines.append(
            f"{f'{name}, {UNITS[name]}':<18}"
            + "".join(f"  {severity:>6g}: {accuracy:6.1%}" for severity, accuracy in cells)
        )
    return "\n".join(lines)


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


def _compare(options: argparse.Namespace) -> int:
    from emotion.runs import compare_runs, table

    print(table(compare_runs(options.logs)))
    return 0


def _export(options: argparse.Namespace) -> int:
    if options.pth is None and options.onnx is None:
        raise ValueError("nothing to write; give --pth FILE, --onnx FILE or both.")
    if options.int8 and options.onnx is None:
        raise ValueError("--int8 is for ONNX only; give --onnx FILE with it.")

    from emotion.checkpoint import load_checkpoint

    with redirect_stdout(sys.stderr):
        model = load_checkpoint(options.checkpoint)
        if options.pth is not None:
            _export_pth(model, options.checkpoint, options.pth)
        if options.onnx is not None:
            from emotion.demo import make_dataset
            from emotion.export import export_onnx

            export_onnx(model, options.onnx, make_dataset(64).images.numpy() if options.int8 else None)
    for file in filter(None, (options.pth, options.onnx)):
        print(f"{options.checkpoint} is written to {file}.")
    return 0


def _export_pth(model: "EmotionCNN", checkpoint: str, file: str) -> None:
    from emotion.checkpoint import find_metadata, save_pth

    history, metrics, training_config = (
        find_metadata(checkpoint, name) for name in ("history", "metrics", "training_config")
    )
    try:  # other tools may have written other metrics
        accuracy = metrics["plain"]["accuracy"]
    except (KeyError, TypeError):
        accuracy = None
    best_val_acc = 100 * accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 1 else None
    save_pth(model, file, history=history, training_config=training_config, best_val_acc=best_val_acc)


def _push(options: argparse.Namespace) -> int:
    from emotion.hub import push

    with redirect_stdout(sys.stderr):
        report = push(options.checkpoint, options.hub_id, options.private, options.dry_run)
    print(report)
    return 0


def _deploy(options: argparse.Namespace) -> int:
    from emotion.hub import deploy
    from emotion.predict import DEFAULT_CHECKPOINT

    with redirect_stdout(sys.stderr):
        report = deploy(options.space_id, options.checkpoint or DEFAULT_CHECKPOINT, options.hardware, options.dry_run)
    print(report)
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
