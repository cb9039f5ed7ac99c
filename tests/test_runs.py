"""The log of training runs, and what is compared in it."""

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emotion.__main__ import main
from emotion.runs import append, compare_runs, log_run

ACCURACIES = {0: 0.671, 1: 0.684, 2: 0.676}


def logged(log: Path, seed: int, accuracy: float, precision: str = "float32", **changes: Any) -> dict[str, Any]:
    """The line that the log gets for a run, of whose folder it reads two files."""
    folder = log.parent / "run"
    folder.mkdir(exist_ok=True)
    training = {"config": {"epochs": 2, "seed": seed} | changes, "precision": precision, "processes": 1, "data": "abc"}
    (folder / "training_config.json").write_text(json.dumps(training))
    (folder / "history.json").write_text(json.dumps([{"seconds": 1800.0}, {"seconds": 900.0}]))
    result = {"split": "PublicTest", "label_set": "fer2013", "rows": 21, "nll": 1 - accuracy, "ece": 0.02}
    plain, tta = (result | {"accuracy": share, "confusion": [[1]]} for share in (accuracy, accuracy + 0.01))
    return log_run(log, folder, {"plain": plain, "tta": tta})


def test_runs_that_differ_in_their_seed_are_one_trial(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for seed, accuracy in ACCURACIES.items():
        line = logged(log, seed, accuracy)
        assert line["hours"] == 0.75 and line["tta"]["accuracy"] == pytest.approx(accuracy + 0.01)
        assert "confusion" not in line["plain"]
    logged(log, 0, 0.7, epochs=9)
    # The same seed again takes the place of what it gave before, and is no second seed.
    logged(log, 0, 0.69, epochs=9)
    # One from before there was a flag, and one that does not give it, are the same recipe; so are two processors.
    logged(log, 3, 0.68, "bfloat16", teachers=[], teacher_share=0.7, advanced_augmentation=True)

    longer, usual = compare_runs([log])
    assert longer.settings == {"epochs": 9} and longer.values("plain", "accuracy") == [0.69]
    assert usual.settings == {"epochs": 2} and usual.values("plain", "accuracy") == [*ACCURACIES.values(), 0.68]
    assert len(log.read_text().splitlines()) == 6


def test_the_command_gives_mean_spread_and_number_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, accuracy in ACCURACIES.items():
        logged(tmp_path / f"{seed}.jsonl", seed, accuracy)
    assert main(["compare", *(str(tmp_path / f"{seed}.jsonl") for seed in ACCURACIES)]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    values = np.array([*ACCURACIES.values()])
    assert row[:4] == ["3", f"{values.mean():.2%}", "+-", f"{values.std(ddof=1):.2%}"]
    assert row[7:10] == [f"{1 - values.mean():.3f}", "+-", f"{values.std(ddof=1):.3f}"]


def test_the_command_names_a_setting_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    for start in ("runs/thirteenth", "runs/thirtieth"):
        logged(log, 0, 0.5, start_from=start)
    assert main(["compare", str(log)]) == 0
    settings = sorted(line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:])
    assert settings == ["start_from=runs/thirteenth", "start_from=runs/thirtieth"]


def test_the_log_makes_its_folder_and_says_where_it_cannot_be(tmp_path: Path) -> None:
    append(tmp_path / "logs" / "all.jsonl", "")
    assert (tmp_path / "logs" / "all.jsonl").read_text() == ""
    logged(tmp_path / "log.jsonl", 0, 0.5)
    # Opening it fails below a file, writing to it on a full disk.
    for log in (tmp_path / "log.jsonl" / "log.jsonl", Path("/dev/full")):
        with pytest.raises(OSError, match=rf"Cannot write the log {log}: .*\. Give another --log\.$"):
            append(log, "{}")


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing_of_itself(tmp_path: Path) -> None:
    log, line = tmp_path / "log.jsonl", "{}\n"
    append(log, line)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) + 1, hard))
    try:
        with pytest.raises(OSError, match="Cannot write the log .*No space left on device"):
            append(log, line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append(log, line)
    assert log.read_text() == 2 * line


def test_a_line_without_its_hours_or_accuracies_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    whole = logged(log, 0, 0.5)
    for changes in (
        {"hours": None},
        {"epochs": "two"},
        {"tta": {"rows": 3}},
        {"plain": whole["plain"] | {"nll": "low"}},
        {"plain": {}},
        {"plain": whole["plain"] | {"accuracy": 10**400}},
        {"config": whole["config"] | {"seed": [1]}},
    ):
        log.write_text(json.dumps(whole | changes) + "\n")
        with pytest.raises(ValueError, match=f"Line 1 of {log} is no line that train.py writes"):
            compare_runs([log])


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"config": {"seed": 0}}', '{"config": 3}', "{" * 5000])
def test_what_is_no_line_of_a_log_is_named(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    logged(log, 0, 0.5)
    with open(log, "a") as file:
        file.write(line + "\n")
    assert main(["compare", str(log)]) == 2
    assert f"Line 2 of {log} is no line that train.py writes" in capsys.readouterr().err


def test_what_is_no_log_and_one_without_a_run_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights").write_bytes(b"\x81\xff")
    (tmp_path / "empty").touch()
    for name, said in (
        ("none", "cannot be read as a log (No such file or directory); give the file that train.py appends to"),
        (".", "cannot be read as a log (Is a directory); give"),
        ("weights", "cannot be read as a log (no text); give"),
        ("empty", "There is no finished run in "),
    ):
        assert main(["compare", str(tmp_path / name)]) == 2
        printed = capsys.readouterr()
        assert said in printed.err and str(tmp_path / name) in printed.err and not printed.out
