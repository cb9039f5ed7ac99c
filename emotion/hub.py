"""Publishing: a checkpoint folder becomes a model repository with a card, this project becomes a Space that runs.

What a repository holds changes in one commit, so that a push that was cut half-way leaves the previous state, and a
repeated one sends only what the Hub has not yet.
"""

import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    SpaceCard,
    SpaceHardware,
    get_token,
)
from huggingface_hub.utils import filter_repo_objects

from emotion.checkpoint import METADATA, find, hub_problem, is_hub_id, load_checkpoint, load_metadata, locate
from emotion.data import split_kind
from emotion.evaluate import RESULTS
from emotion.labels import IMAGE_SIZE, OWN_LABELS
from emotion.model import EmotionCNN
from emotion.predict import DEFAULT_CHECKPOINT

ROOT: Final = Path(__file__).resolve().parents[1]
"""The copy of this project that `deploy` sends."""
PICTURES: Final = ("curves.png", "confusion.png", "reliability.png")
CHECKPOINT_FILES: Final = (
    "config.json",
    "model.safetensors",
    *(f"{name}.json" for name in METADATA),
    *PICTURES,
)
"""What is taken from a checkpoint folder, where it is there; the first two must be."""
GENERATED_FILES: Final = ("model.onnx", "README.md")

SPACE_FILES: Final = ("app.py", "requirements.txt", "README.md", "LICENSE", "SECURITY.md")
SPACE_FOLDERS: Final = ("emotion", "examples", "docs")
"""What a Space gets of this project: what the page runs on, and what the README shows and links to."""

LICENCE: Final = "mit"
TAGS: Final = ("facial-expression-recognition", "emotion-recognition", "grayscale")
NOT_MEASURED: Final = "not measured"
KAGGLE_SPLITS: Final = ("publictest", "privatetest")
"""Names that only FER2013's own file gives to its splits."""

Files = dict[str, Path | bytes]
"""Path in the repository -> what it shall hold."""


def push(checkpoint: str | Path, hub_id: str, private: bool = False, dry_run: bool = False) -> str:
    """Publish a checkpoint as a model repository: weights, metadata, pictures, ONNX and a model card.

    The repository is created if it is not there. Of these files, what the checkpoint has no longer is deleted; all
    other files stay. The model card is written anew each time; the Hub's history keeps the previous one.

    Args:
        checkpoint: folder as `train.py` writes it, or the Hub id of another repository.
        hub_id: "user/name" of the repository.
        private: create a repository that only its owner sees.
        dry_run: only say what would be published; nothing is sent.

    Returns:
        What the repository holds now, or would hold, in lines for people.

    Raises:
        FileNotFoundError: if the checkpoint is missing.
        ValueError: if the id or the checkpoint is unusable, or a public repository was to be private.
        OSError: if there is no token, or the Hub refuses or fails.
    """
    from emotion.export import export_onnx  # here, because `deploy` need not wait for what it loads

    check_target(hub_id, dry_run)
    model = load_checkpoint(checkpoint)
    files = _checkpoint_files(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        files["model.onnx"] = export_onnx(model, Path(folder) / "model.onnx").read_bytes()
    metadata = {name: load_metadata(checkpoint, name) for name in METADATA if f"{name}.json" in files}
    card = model_card(model, hub_id, pictures=[name for name in PICTURES if name in files], **metadata)
    files["README.md"] = str(card).encode()
    if dry_run:
        return _listing(hub_id, "would hold", files)
    otherwise = "leave out --private" if private else None
    return _publish(files, hub_id, "model", (*CHECKPOINT_FILES, *GENERATED_FILES), otherwise)


def deploy(
    space_id: str,
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
    hardware: str | None = None,
    dry_run: bool = False,
) -> str:
    """Create or update a Gradio Space that serves the page with a checkpoint of one's choice.

    It gets the page, the package, its examples, this checkpoint alone, the requirements, the documents, and the README
    with a front matter that names this Space. In the folders that belong to the project (`SPACE_FOLDERS` and
    checkpoints/), files of an earlier deployment are deleted; what someone added elsewhere stays. With a checkpoint
    that not everybody can get from the Hub, because it is private or gated, the Space is private, too.

    Args:
        space_id: "user/space".
        checkpoint: folder or Hub id; the page offers it by its name, and a Hub id is linked from the Space.
        hardware: one of `huggingface_hub.SpaceHardware`; by default the Space's hardware stays as it is, and a new
            Space gets the free one.
        dry_run: only say what would be sent; nothing is.

    Returns:
        What the Space holds now, or would hold, in lines for people.

    Raises:
        FileNotFoundError: if the checkpoint or a file of this project is missing.
        ValueError: if the id, the checkpoint or the hardware is unusable, or a public Space would show weights that
            are private or gated.
        OSError: if there is no token, or the Hub refuses or fails.
    """
    choices = [choice.value for choice in SpaceHardware]
    if hardware is not None and hardware not in choices:
        raise ValueError(f"hardware is {hardware!r}; give one of {', '.join(choices)}.")
    check_target(space_id, dry_run)
    load_checkpoint(checkpoint)  # A Space that cannot load its network would only fail later, and out of sight.
    files = _space_files(space_id, checkpoint)
    otherwise = None
    if not Path(checkpoint).is_dir() and _is_restricted(str(checkpoint)):
        otherwise = f"give a --checkpoint that everybody can get, which {checkpoint} is not"
    if dry_run:
        return _listing(f"spaces/{space_id}", f"would {'be private and ' if otherwise else ''}hold", files)
    mirrored = [f"{folder}/*" for folder in (*SPACE_FOLDERS, "checkpoints")]
    report = _publish(files, space_id, "space", mirrored, otherwise)
    if otherwise:
        report += f"\nprivate, because {checkpoint} is private or gated"
    if hardware is not None:
        try:
            HfApi().request_space_hardware(space_id, SpaceHardware(hardware))
        except Exception as error:
            raise OSError(
                f"{space_id} is up to date but did not get {hardware}: on the Hub {hub_problem(error)}."
            ) from error
    return report


def check_target(hub_id: str, dry_run: bool = False) -> None:
    """Refuse, without asking the Hub, what could not be published to later.

    Args:
        hub_id: "user/name" of the repository.
        dry_run: do without a token.

    Raises:
        ValueError: if that can be no repository, or the token can be none.
        OSError: if there is no token.
    """
    if not is_hub_id(hub_id):
        raise ValueError(
            f"{hub_id!r} can be no Hub repository; give USER/NAME of letters, digits, '-', '_' and '.', such as "
            "'anna/expressions'."
        )
    token = None if dry_run else get_token()
    if token is None and not dry_run:
        raise OSError(
            f"there is no token to publish {hub_id} with; make one with write access on "
            "huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN."
        )
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(
            "the token holds characters that no token has; run `hf auth login` again, or correct HF_TOKEN."
        )


def model_card(
    model: EmotionCNN,
    hub_id: str,
    metrics: Any = None,
    history: Any = None,
    training_config: Any = None,
    pictures: Collection[str] = (),
) -> ModelCard:
    """The card of a network, from what its checkpoint knows; what is missing there is called not measured.

    Args:
        model: the network.
        hub_id: where it will be loaded from.
        metrics: content of `metrics.json`, whoever wrote it.
        history: content of `history.json`.
        training_config: content of `training_config.json`.
        pictures: which of `PICTURES` will lie beside the card.

    Returns:
        Metadata with licence, tags, task, data sets and `model-index`, and the text; see `emotion/model_card.md`.
    """
    results = {key: _dict(metrics, key) for key in RESULTS if _dict(metrics, key)}
    plain = results.get("plain", {})
    config = _dict(training_config, "config")
    teachers = config.get("teachers")
    fer2013 = str(plain.get("split")).lower() in KAGGLE_SPLITS
    majority = fer2013 and plain.get("label_set") == "ferplus"
    ferplus = majority or (fer2013 and _learned_votes(training_config))
    datasets = ["fer2013"] * fer2013 + ["ferplus"] * ferplus
    # The Hub shows these figures without the card's text, beside others on FER2013's own labels.
    dataset = ("unknown", "faces that the checkpoint does not name")
    if plain.get("label_set") == OWN_LABELS:  # which nothing else has
        dataset = ("imagefolder", "class folders")
    elif fer2013:
        dataset = ("ferplus", "FER+, the majority of the votes") if majority else ("fer2013", "FER2013")
    kind = split_kind(str(plain.get("split"))) or "validation"
    figures = _eval_results(results, *dataset, {"train": "training"}.get(kind, kind))
    name = hub_id.split("/")[1]
    data = ModelCardData(
        license=LICENCE,
        library_name="pytorch",
        pipeline_tag="image-classification",
        tags=[*TAGS, *datasets],
        datasets=datasets or None,
        metrics=["accuracy"],
        model_name=name if figures else None,
        eval_results=figures or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("model_card.md")),
        name=name,
        hub_id=hub_id,
        labels=", ".join(model.labels),
        parameters=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        side=IMAGE_SIZE,
        fer2013=fer2013,
        ferplus=ferplus,
        majority=majority,
        epochs=len(history) if isinstance(history, list) else 0,
        start_from=_cell(config.get("start_from") or ""),
        teachers=_cell(", ".join(map(str, teachers)) if isinstance(teachers, list) else ""),
        settings=_table(("setting", "value"), config.items(), "The checkpoint does not say how it was trained."),
        measured=bool(results),
        mirrored="tta" in results,
        split_kind=kind,
        figures=_figures(results),
        per_class=_per_class(plain),
        confusion=_confusion(plain),
        temperature=f"{model.temperature:.3f}",
        ece=_percent(plain.get("ece")),
        clear_answer=_clear_answer(_dict(metrics, "clear_answer")),
        robustness=_robustness(_dict(metrics, "robustness")),
        pictures=pictures,
    )


def _eval_results(results: Mapping[str, dict[str, Any]], dataset: str, called: str, kind: str) -> list[EvalResult]:
    """The figures in the form of the Hub's model-index, as fractions."""
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=called,
            dataset_config=str(result.get("label_set", "unknown")),
            dataset_split=str(result.get("split", "unknown")),
            metric_type=metric,
            metric_name=f"{kind} {title}, {RESULTS[key]}",
            metric_value=round(result[metric], 4),
        )
        for key, result in results.items()
        for metric, title in (("accuracy", "accuracy"), ("ece", "expected calibration error"))
        if _is_number(result.get(metric))
    ]


def _figures(results: Mapping[str, dict[str, Any]]) -> str:
    header = ("measured on", "split", "labels", "rows", "accuracy", "95% interval", "balanced accuracy", "ECE")
    rows = []
    for key, result in results.items():
        interval = result.get("interval")
        low, high = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
        about = (RESULTS[key], *(result.get(name, "unknown") for name in ("split", "label_set")))
        between = f"{_percent(low)} to {_percent(high)}" if _is_number(low) and _is_number(high) else NOT_MEASURED
        accuracy, balanced, ece = (_percent(result.get(name)) for name in ("accuracy", "balanced_accuracy", "ece"))
        rows.append((*about, _count(result.get("rows")), accuracy, between, balanced, ece))
    return _table(header, rows)


def _per_class(result: Mapping[str, Any]) -> str:
    classes = {label: row for label, row in _dict(result, "per_class").items() if isinstance(row, dict)}
    return _table(
        ("class", "rows", "precision", "recall", "F1"),
        [
            (label, _count(row.get("rows")), *(_percent(row.get(key)) for key in ("precision", "recall", "f1")))
            for label, row in classes.items()
        ],
    )


def _confusion(result: Mapping[str, Any]) -> str:
    labels, matrix = result.get("labels"), result.get("confusion")
    lists = isinstance(labels, list) and isinstance(matrix, list) and all(isinstance(row, list) for row in matrix)
    if not lists or [len(row) for row in matrix] != [len(labels)] * len(labels):
        return _table((), ())
    table = _table(("", *labels), [(label, *map(_count, counts)) for label, counts in zip(labels, matrix, strict=True)])
    return f"Rows are true classes, columns are answers, cells are faces, one view.\n\n{table}"


def _clear_answer(clear: Mapping[str, Any]) -> str:
    threshold, share, accuracy = (clear.get(key) for key in ("threshold", "share", "accuracy"))
    if not all(map(_is_number, (threshold, share, accuracy))):
        return "How often a confident answer is right: not measured."
    return (
        f"On {_count(clear.get('rows'))} rows of {_cell(clear.get('split', 'an unknown split'))}, {_percent(share)} of "
        f"the faces get a probability of at least {_percent(threshold)}; of those answers {_percent(accuracy)} are "
        "right."
    )


def _robustness(robustness: Mapping[str, Any]) -> str:
    corruptions = {name: row for name, row in _dict(robustness, "accuracy").items() if isinstance(row, list) and row}
    if not corruptions:
        return _table((), ())
    severities = range(max(map(len, corruptions.values())))
    table = _table(
        ("corruption", *(f"severity {severity + 1}" for severity in severities)),
        [
            (name, *(_percent(row[severity] if severity < len(row) else None) for severity in severities))
            for name, row in corruptions.items()
        ],
    )
    rows, split = _count(robustness.get("rows")), _cell(robustness.get("split", "an unknown split"))
    return f"Top-1 accuracy on {rows} corrupted rows of {split}, one view.\n\n{table}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], otherwise: str = "Not measured.") -> str:
    """A Markdown table, or a sentence where there are no rows."""
    rows = list(rows)
    if not rows:
        return otherwise
    lines = [[_cell(value) for value in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _dict(content: Any, key: str) -> dict[str, Any]:
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, dict) else {}


def _learned_votes(training_config: Any) -> bool:
    """Whether the network, or one that it learned from, was trained on the votes of FER+."""
    origins = _dict(training_config, "origins").values()
    return _dict(training_config, "config").get("soft_targets") is True or any(map(_learned_votes, origins))


def _is_number(value: Any) -> bool:
    # Python's JSON also has NaN, Infinity and whole numbers of any length.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _percent(value: Any) -> str:
    return f"{value:.1%}" if _is_number(value) else NOT_MEASURED


def _count(value: Any) -> str:
    return f"{value:,}" if _is_number(value) else "unknown"


def _cell(value: Any) -> str:
    """Text that stays in its cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _checkpoint_files(checkpoint: str | Path) -> Files:
    files: Files = {name: locate(checkpoint, name) for name in CHECKPOINT_FILES[:2]}
    return files | {name: file for name in CHECKPOINT_FILES[2:] if (file := find(checkpoint, name))}


def _space_files(space_id: str, checkpoint: str | Path) -> Files:
    weights = _checkpoint_files(checkpoint)
    published = None if Path(checkpoint).is_dir() else str(checkpoint).partition("@")[0]
    # The page offers what lies in checkpoints/, by the name of the folder.
    name = published.split("/")[1] if published else Path(checkpoint).resolve().name
    files: Files = {f"checkpoints/{name}/{file}": content for file, content in weights.items()}
    files |= {file: ROOT / file for file in SPACE_FILES}
    for file in sorted(path for folder in SPACE_FOLDERS for path in (ROOT / folder).rglob("*")):
        parts = file.relative_to(ROOT).parts
        if file.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            files["/".join(parts)] = file
    missing = [name for name in SPACE_FILES if not (ROOT / name).is_file()]
    missing += [name for name in SPACE_FOLDERS if not (ROOT / name).is_dir()]
    if missing:
        raise FileNotFoundError(f"{ROOT} has no {missing[0]}; deploy from a whole copy of the project.")
    try:
        card = SpaceCard((ROOT / "README.md").read_text("utf-8"))
    except Exception as error:  # what broken YAML raises is the Hub library's affair
        raise ValueError(
            f"{ROOT / 'README.md'} has no settings of a Space between its first two lines of '---' "
            f"({' '.join(str(error).split())}); restore them."
        ) from error
    thumbnail = card.data.get("thumbnail")
    if thumbnail in files:  # the Hub wants an address instead
        card.data["thumbnail"] = f"{HfApi().endpoint}/spaces/{space_id}/resolve/main/{thumbnail}"
    if published:
        card.data["models"] = [published]
    files["README.md"] = str(card).encode()
    return files


def _is_restricted(hub_id: str) -> bool:
    """Whether not everybody can get a model, "user/name" or "user/name@revision", from the Hub."""
    try:
        info = HfApi().model_info(hub_id.partition("@")[0])
    except Exception as error:
        raise OSError(f"whether {hub_id} is private could not be asked: on the Hub {hub_problem(error)}.") from error
    return bool(info.private or info.gated)


def _publish(files: Files, repo_id: str, repo_type: str, owned: Sequence[str], otherwise: str | None) -> str:
    """Make the repository hold `files` and, of what matches the patterns `owned`, nothing else, in one commit.

    With `otherwise`, what to do instead, it must be private: it is created so, and a public one is refused.
    """
    api = HfApi()
    space = repo_type == "space"
    try:
        api.create_repo(
            repo_id,
            repo_type=repo_type,
            private=bool(otherwise) or None,
            exist_ok=True,
            space_sdk="gradio" if space else None,
        )
        before = api.repo_info(repo_id, repo_type=repo_type)
        exposed = bool(otherwise) and not before.private
        if not exposed:
            there = [file.rfilename for file in before.siblings or ()]
            stale = [name for name in filter_repo_objects(there, allow_patterns=list(owned)) if name not in files]
            commit = api.create_commit(
                repo_id,
                [
                    *(CommitOperationAdd(name, content) for name, content in files.items()),
                    *(CommitOperationDelete(name) for name in stale),
                ],
                repo_type=repo_type,
                commit_message="Deploy the page" if space else "Publish the checkpoint",
            )
    except Exception as error:
        raise OSError(
            f"{repo_id} was not published, and the same command can be repeated without harm: on the Hub "
            f"{hub_problem(error)}."
        ) from error
    if exposed:
        raise ValueError(f"{repo_id} exists and is public; make it private in its settings, or {otherwise}.")
    report = _listing(
        f"spaces/{repo_id}" if space else repo_id, "holds" if commit.oid != before.sha else "already held", files
    )
    return "\n".join([report, *(f"deleted   {name}" for name in stale)])


def _listing(address: str, verb: str, files: Files) -> str:
    sizes = {name: len(data) if isinstance(data, bytes) else data.stat().st_size for name, data in files.items()}
    lines = [f"{size:>12,}  {name}" for name, size in sorted(sizes.items())]
    total = f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files"
    return "\n".join([f"{HfApi().endpoint}/{address} {verb}:", *lines, total])
