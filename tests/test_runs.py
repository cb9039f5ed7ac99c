"""The log of training runs, and what is compared in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emotion.__main__ import main
from emotion.runs import compare_runs, log_run

ACCURACIES = {0: 0.671, 1: 0.684, 2: 0.676}


def write_run(folder: Path, seed: int, accuracy: float, **changes: Any) -> Path:
    """What train.py leaves in its output folder, as far as the log reads it."""
    folder.mkdir(parents=True)
    training = {"config": {"epochs": 2, "seed": seed} | changes, "precision": "float32", "processes": 1, "data": "abc"}
    result = {"split": "PublicTest", "label_set": "fer2013", "rows": 21, "accuracy": accuracy, "nll": 1 - accuracy}
    result["ece"] = 0.02
    files = {
        "training_config": training,
        "history": [{"seconds": 1800.0}, {"seconds": 900.0}],
        "metrics": {"plain": result | {"confusion": [[1]]}, "tta": result | {"accuracy": accuracy + 0.01}},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_runs_that_differ_in_their_seed_are_one_trial(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for seed, accuracy in ACCURACIES.items():
        line = log_run(log, write_run(tmp_path / f"seed{seed}", seed, accuracy))
        assert line["hours"] == 0.75 and line["tta"]["accuracy"] == pytest.approx(accuracy + 0.01)
        assert "confusion" not in line["plain"]
    log_run(log, write_run(tmp_path / "longer", 0, 0.7, epochs=9))
    # The same seed again takes the place of what it gave before, and is no second seed.
    log_run(log, write_run(tmp_path / "longer again", 0, 0.69, epochs=9))

    # One from before there was a flag, and one that does not give it, are the same recipe; so are two processors.
    without = {"teachers": [], "teacher_share": 0.7, "advanced_augmentation": True}
    elsewhere = write_run(tmp_path / "not given", 3, 0.68, **without)
    training = json.loads((elsewhere / "training_config.json").read_text())
    (elsewhere / "training_config.json").write_text(json.dumps(training | {"precision": "bfloat16"}))
    log_run(log, elsewhere)

    longer, usual = compare_runs([log])
    assert longer.settings == {"epochs": 9} and longer.values("plain", "accuracy") == [0.69]
    assert usual.settings == {"epochs": 2} and usual.values("plain", "accuracy") == [*ACCURACIES.values(), 0.68]
    assert len(log.read_text().splitlines()) == 6


def test_the_command_gives_mean_spread_and_number_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, accuracy in ACCURACIES.items():
        log_run(tmp_path / f"{seed}.jsonl", write_run(tmp_path / f"seed{seed}", seed, accuracy))
    assert main(["compare", *(str(tmp_path / f"{seed}.jsonl") for seed in ACCURACIES)]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    values = np.array([*ACCURACIES.values()])
    assert row[:4] == ["3", f"{values.mean():.2%}", "+-", f"{values.std(ddof=1):.2%}"]
    assert row[7:10] == [f"{1 - values.mean():.3f}", "+-", f"{values.std(ddof=1):.3f}"]


def test_the_command_names_a_setting_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    for start in ("runs/thirteenth", "runs/thirtieth"):
        log_run(log, write_run(tmp_path / start, 0, 0.5, start_from=start))
    assert main(["compare", str(log)]) == 0
    settings = sorted(line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:])
    assert settings == ["start_from=runs/thirteenth", "start_from=runs/thirtieth"]


def test_the_log_makes_its_folder_and_says_where_it_cannot_be(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 0, 0.5)
    log_run(tmp_path / "logs" / "all.jsonl", run)
    assert compare_runs([tmp_path / "logs" / "all.jsonl"])[0].values("plain", "accuracy") == [0.5]
    with pytest.raises(OSError, match=r"Cannot write the log .*run/metrics.json/log.jsonl: .*Give another --log\.$"):
        log_run(run / "metrics.json" / "log.jsonl", run)


def test_a_line_without_its_hours_or_accuracies_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    whole = log_run(log, write_run(tmp_path / "run", 0, 0.5))
    for changes in (
        {"hours": None},
        {"epochs": "two"},
        {"tta": {"rows": 3}},
        {"plain": whole["plain"] | {"nll": "low"}},
        {"plain": {}},
    ):
        log.write_text(json.dumps(whole | changes) + "\n")
        with pytest.raises(ValueError, match=f"Line 1 of {log} is no line that train.py writes"):
            compare_runs([log])


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"config": {"seed": 0}}', '{"config": 3}', "{" * 5000])
def test_what_is_no_line_of_a_log_is_named(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.jsonl"
    log_run(log, write_run(tmp_path / "run", 0, 0.5))
    with open(log, "a") as file:
        file.write(line + "\n")
    assert main(["compare", str(log)]) == 2
    assert f"Line 2 of {log} is no line that train.py writes" in capsys.readouterr().err


def test_a_missing_log_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
