"""The log of training runs: a line of JSON per run, and recipes compared over their seeds."""

import errno
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from emotion.checkpoint import load_metadata
from emotion.evaluate import RESULTS
from emotion.recipes import with_defaults

KEPT: Final = ("rows", "accuracy", "nll", "ece")
"""What a line keeps of each of `emotion.evaluate.RESULTS`."""


@dataclass(frozen=True)
class Trial:
    """One recipe on one data set, with its runs.

    Attributes:
        settings: what sets it apart from the other trials of the log, as flags of train.py and their values.
        runs: its lines of the log; of each seed the last one.
    """

    settings: Mapping[str, Any]
    runs: list[dict[str, Any]]

    def values(self, result: str, measure: str) -> list[float]:
        """One number per run that has it, such as `("plain", "accuracy")`."""
        return [run[result][measure] for run in self.runs if run.get(result)]


def log_run(log: str | Path, folder: str | Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Append the finished run in a checkpoint folder to the log.

    Args:
        log: file of JSON lines, made if missing, with its folder.
        folder: what `emotion.trainer.fit` has written, with `training_config.json` and `history.json`.
        metrics: what `emotion.evaluate.report` says of it.

    Returns:
        What was appended: when and where, configuration and data, epochs and hours, and of each of `RESULTS` the
        measures in `KEPT`.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        OSError: if the log cannot be written.
    """
    training, history = (load_metadata(folder, name) for name in ("training_config", "history"))
    plain = metrics["plain"]
    line = {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "output": str(folder),
        **training,
        "epochs": len(history),
        "hours": round(sum(epoch["seconds"] for epoch in history) / 3600, 2),
        "split": plain["split"],
        "label_set": plain["label_set"],
        **{name: {key: metrics[name][key] for key in KEPT} for name in RESULTS if metrics.get(name)},
    }
    append(log, json.dumps(line) + "\n")
    return line


def append(log: str | Path, text: str) -> None:
    """Append to the log, all or nothing; it is made if missing, with its folder.

    Raises:
        OSError: if it cannot be written.
    """
    content = text.encode()
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab", buffering=0) as file:
            before = file.tell()
            if file.write(content) < len(content):
                # What the next line is appended to shall not be a part of one.
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(f"Cannot write the log {log}: {error.strerror}. Give another --log.") from error


def compare_runs(logs: Sequence[str | Path]) -> list[Trial]:
    """Gather runs that differ in nothing but their seed and the processor.

    Args:
        logs: files that `log_run` has written.

    Returns:
        A trial per recipe, data set and split, those with the best mean accuracy of one view first.

    Raises:
        ValueError: if a log cannot be read, a line is none of `log_run`'s, or there is no line at all.
    """
    trials: dict[str, dict[int, dict[str, Any]]] = {}
    for log in logs:
        try:
            lines = Path(log).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{log} cannot be read as a log ({getattr(error, 'strerror', 'no text')}); give the file that train.py "
                "appends to, such as runs/log.jsonl."
            ) from None
        for number, text in enumerate(lines, 1):
            try:
                run = json.loads(text)
                # With the same flags on another processor it is the same recipe, whatever precision `auto` was there.
                settings = with_defaults(run["config"])
                settings |= {"data": run["data"], "processes": run["processes"]}
                settings |= {"labels": run["label_set"], "split": run["split"]}
                seed = settings.pop("seed")
                if not settings["teachers"]:
                    del settings["teacher_share"]
                [run[name] + 0.0 for name in ("epochs", "hours")]
                [run[name][key] + 0.0 for name in RESULTS if name in run for key in KEPT]
                run["plain"]
                trials.setdefault(json.dumps(settings, sort_keys=True), {})[seed] = run
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"Line {number} of {log} is no line that train.py writes ({error}); remove the line."
                ) from None
    if not trials:
        raise ValueError(f"There is no finished run in {', '.join(map(str, logs))}; give the log of one that is.")
    found = [json.loads(key) for key in trials]
    names = sorted({name for settings in found for name in settings})
    telling = [name for name in names if len({json.dumps(settings.get(name)) for settings in found}) > 1]
    compared = [
        Trial({name: settings.get(name) for name in telling}, list(by_seed.values()))
        for settings, by_seed in zip(found, trials.values(), strict=True)
    ]
    return sorted(compared, key=lambda trial: -statistics.mean(trial.values("plain", "accuracy")))


def table(trials: Iterable[Trial]) -> str:
    """The comparison for people: seeds, mean and standard deviation over them, and what the recipes differ in."""
    columns = "{:>5}  {:>16}  {:>17}  {:>14}  {:>6}  {:>6}  {:>6}  {}"
    lines = [columns.format("seeds", "one view", "with mirror image", "log loss", "ECE", "epochs", "hours", "settings")]
    for trial in trials:
        epochs, hours = (statistics.mean(run[name] for run in trial.runs) for name in ("epochs", "hours"))
        numbers = (f"{statistics.mean(trial.values('plain', 'ece')):.2%}", f"{epochs:.0f}", f"{hours:.2f}")
        settings = " ".join(f"{name}={_short(name, value)}" for name, value in trial.settings.items())
        views = (_spread(trial.values(name, "accuracy"), ".2%") for name in ("plain", "tta"))
        loss = _spread(trial.values("plain", "nll"), ".3f")
        lines.append(columns.format(len(trial.runs), *views, loss, *numbers, settings).rstrip())
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    if len(values) < 2:
        return f"{values[0]:{form}}" if values else "-"
    return f"{statistics.mean(values):{form}} +- {statistics.stdev(values):{form}}"


def _short(name: str, value: Any) -> str:
    if name == "data":  # a hash
        return str(value)[:12]
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
