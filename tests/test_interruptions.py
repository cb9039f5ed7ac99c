"""Trainings that are killed, run out of disk, or lose their folder, data or fellow process: none loses an epoch."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pytest
from test_trainer import write_csv
from torch.distributed import TCPStore

from emotion.checkpoint import load_checkpoint, load_training_state
from emotion.labels import FER2013_LABELS, FERPLUS_COLUMNS
from emotion.trainer import STATE_FILE

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds; a loaded machine is slow
# 16-pixel pictures cost a ninth of the arithmetic and go through the same code.
QUICK = ("--epochs", "3", "--batch-size", "14", "--image-sizes", "16")
RECIPES = {
    "original": QUICK,
    "all options": (
        *(*QUICK, "16", "24", "--optimizer", "sgd", "--schedule", "cosine", "--ema-decay", "0.9"),
        *("--unfreeze-every", "1", "--hard-epochs", "1", "--label-smoothing", "0.1"),
    ),
    "best": ("--recipe", "best", "--labels", "ferplus", *QUICK, "--epochs", "2"),
}
WRITTEN = (STATE_FILE, "model.safetensors")
"""What takes longest to write."""

SERVER = """
import json, os, resource, sys, time
import accelerate, matplotlib.figure, torch, train
torch.set_num_threads(1)
for line in sys.stdin:
    order = json.loads(line)
    if isinstance(order, int):
        print(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]), flush=True)
    elif child := os.fork():
        print(child, flush=True)
    else:
        os.environ.update(order["variables"])
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        if order["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (order["limit"],))
        finish, late = train.finish, int(os.environ.get("LATE", 0))
        train.finish = lambda *arguments: (time.sleep(late), finish(*arguments))
        sys.exit(train.main(order["arguments"]))
"""
"""Starts `train.py` in a process of its own for every order; importing torch each time would take longer than all.
The first of several processes is `LATE` by so many seconds when it measures a network."""


@dataclass
class Trainings:
    """Runs of `train.py` on the same drawn faces, on one thread."""

    orders: IO[str]
    answers: IO[str]
    folder: Path
    logs: dict[int, Path] = field(default_factory=dict)

    def start(self, *arguments: object, limit: int = 0, **variables: object) -> int:
        """Start `train.py ARGUMENTS` where no file may exceed `limit` bytes; returns the process's number."""
        log = self.folder / f"{len(self.logs)}.log"
        faces = ("--data", self.folder / "fer2013.csv", "--votes", self.folder / "fer2013new.csv")
        given = [str(argument) for argument in (*faces, *arguments)]
        variables = {name: str(value) for name, value in variables.items()}
        order = {"arguments": given, "variables": variables, "limit": limit, "log": str(log)}
        process = self._ask(order)
        self.logs[process] = log
        return process

    def end(self, process: int) -> tuple[int, str]:
        """Wait for a process; its exit code (negative: the signal) and what it printed."""
        return self._ask(process), self.logs[process].read_text()

    def run(self, *arguments: object, limit: int = 0) -> tuple[int, str]:
        return self.end(self.start(*arguments, limit=limit))

    def _ask(self, order: object) -> int:
        print(json.dumps(order), file=self.orders, flush=True)
        return int(self.answers.readline())


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    folder = tmp_path_factory.mktemp("trainings")
    faces = pd.read_csv(write_csv(folder))
    votes = {"Usage": faces["Usage"], "Image name": "face.png", "unknown": 0, "NF": 0}
    for column, label in FERPLUS_COLUMNS.items():
        votes[column] = 10 * (faces["emotion"].map(FER2013_LABELS.__getitem__) == label)
    pd.DataFrame(votes).to_csv(folder / "fer2013new.csv", index=False)
    environment = os.environ | {
        "EMOTION_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield Trainings(server.stdin, server.stdout, folder)
        server.stdin.close()


@pytest.fixture(scope="module")
def whole(trainings: Trainings) -> Callable[[str], tuple[Path, float]]:
    """Folder and duration in seconds of the uninterrupted run of one of `RECIPES`."""
    done: dict[str, tuple[Path, float]] = {}

    def run(recipe: str) -> tuple[Path, float]:
        if recipe not in done:
            output, started = trainings.folder / recipe, time.monotonic()
            code, said = trainings.run(*RECIPES[recipe], "--output", output)
            assert code == 0, said
            done[recipe] = output, time.monotonic() - started
        return done[recipe]

    return run


def wait_for(happened: Callable[[], bool], process: int) -> bool:
    """Wait until something happens, or the process ends; returns which of the two."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return False
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return True


def epochs_of(output: Path) -> int:
    history = output / "history.json"
    return len(json.loads(history.read_text())) if history.exists() else 0


def assert_same(output: Path, expected: Path) -> None:
    """The two runs, and those of their teachers, ended with the same weights, state, calibration and figures."""
    for teacher in sorted(expected.glob("teacher*")):
        assert_same(output / teacher.name, teacher)
    for name in ("model.safetensors", "config.json", "metrics.json"):
        assert (output / name).read_bytes() == (expected / name).read_bytes(), name
    one, other = (load_training_state(folder / STATE_FILE) for folder in (output, expected))
    for part in ("network", "averaged"):
        tensors, wanted = one[part] or {}, other[part] or {}
        assert tensors.keys() == wanted.keys()
        assert all(np.array_equal(tensors[name], wanted[name]) for name in wanted)
    assert not list(output.glob(".*")), "nothing is left of what a kill interrupted"


def assert_intact(output: Path) -> None:
    """Whatever a cut run left can be read: weights and training states are missing or whole."""
    for weights in output.rglob("model.safetensors"):
        load_checkpoint(weights.parent)
    for state in output.rglob(STATE_FILE):
        load_training_state(state)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_runs_resume_to_identical_weights(
    trainings: Trainings, whole: Callable, tmp_path: Path, recipe: str, kills: int
) -> None:
    expected, seconds = whole(recipe)
    folders = [".", *sorted(teacher.name for teacher in expected.glob("teacher*"))]
    rng = np.random.default_rng(kills)
    killed, torn, runs = 0, 0, 0
    while killed < kills:  # a run that ends before it is killed is compared, and the next one begun
        output = tmp_path / str(runs)
        runs += 1
        code = None
        while code != 0:
            process = trainings.start(*RECIPES[recipe], "--output", output, "--resume")
            if killed % 2:  # in the middle of writing a checkpoint
                name, writing = rng.choice(WRITTEN), output / rng.choice(folders)
                before, temporary = epochs_of(writing), writing / f".{name}.tmp"
                temporary.unlink(missing_ok=True)
                killing = killed < kills and wait_for(
                    # A state is also written before the first epoch of a run, and again when it goes on.
                    lambda: temporary.exists() and (name != STATE_FILE or epochs_of(writing) > before),  # noqa: B023
                    process,
                )
                time.sleep(rng.uniform(0, 0.03))
            else:
                moment = time.monotonic() + rng.uniform(0, seconds)
                killing = killed < kills and wait_for(lambda moment=moment: time.monotonic() > moment, process)
            if killing:
                os.kill(process, 9)
            code, said = trainings.end(process)
            assert code in (0, -9), said
            if code:
                killed += 1
                torn += any(list(output.rglob(f".{name}.tmp")) for name in WRITTEN)
                assert_intact(output)
        assert_same(output, expected)
    assert torn, "none was killed while it wrote"
    # A finished run that is resumed stays as it was, and is no second one.
    lines = (tmp_path / "log.jsonl").read_text()
    assert trainings.run(*RECIPES[recipe], "--output", output, "--resume")[0] == 0
    assert_same(output, expected)
    assert (tmp_path / "log.jsonl").read_text() == lines
    print(
        f"{recipe}: {killed} kills, {torn} of them while a checkpoint was written; {runs} runs ended as the whole one"
    )


def test_a_recipe_of_several_networks_is_those_networks_one_by_one(
    trainings: Trainings, whole: Callable, tmp_path: Path
) -> None:
    expected, _ = whole("best")
    first, second, last = (tmp_path / name for name in ("first", "second", "last"))
    common = ("--recipe", "single", "--labels", "ferplus", *QUICK, "--epochs", 2, "--learning-rate", 0.1)
    pupil = ("--start-from", first, "--teachers", first, second, "--augmentation", 0.6, 0.2, "--mixup", 0.5)
    for output, more in (
        (first, ("--augmentation", 0.6, 0.3, "--seed", 1)),
        (second, ("--augmentation", 0.6, 0.3, "--mixup", 0.5, "--seed", 2)),
        (last, (*pupil, "--seed", 3)),
    ):
        code, said = trainings.run(*common, *more, "--output", output)
        assert code == 0, said
    assert_same(first, expected / "teacher1")
    assert_same(second, expected / "teacher2")
    for name in ("model.safetensors", "config.json", "metrics.json"):
        assert (last / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize(
    ("more", "sentence"),
    [((), "already holds a network; pass --resume to go on with it, or"), (("--resume",), "holds a run with other ")],
)
def test_a_folder_that_is_taken_shows_before_the_teachers_are_trained(
    trainings: Trainings, whole: Callable, tmp_path: Path, more: tuple[str, ...], sentence: str
) -> None:
    shutil.copytree(whole("original")[0], tmp_path / "taken")
    before = sorted(tmp_path.rglob("*"))
    refused = trainings.run(*RECIPES["best"], "--output", tmp_path / "taken", *more)
    assert_refused(refused, f"{tmp_path / 'taken'} {sentence}")
    assert sorted(tmp_path.rglob("*")) == before


def test_several_networks_go_on_together_wherever_they_are(
    trainings: Trainings, whole: Callable, tmp_path: Path
) -> None:
    here, there, alone = (tmp_path / name for name in ("here", "there", "alone"))
    cut_after_first_epoch(trainings, here, "best")
    shutil.copytree(here / "teacher1", alone / "teacher1")
    refused = trainings.run(*RECIPES["original"], "--output", alone, "--resume")
    sentence = f"{alone}/teacher1 belongs to a run of several networks; repeat its --recipe and --labels, or"
    assert_refused(refused, sentence)

    (here / "teacher2").rename(tmp_path / "teacher2")
    refused = trainings.run(*RECIPES["best"], "--output", here, "--resume")
    assert_refused(refused, f"{here} holds a run, but {here}/teacher2, which comes before it, does not; bring that")
    (tmp_path / "teacher2").rename(here / "teacher2")

    here.rename(there)
    # To a pupil that goes on, a teacher that is calibrated again, on another processor, could be another one.
    before = {file: file.stat().st_mtime_ns for file in there.glob("teacher*/config.json")}
    code, said = trainings.run(*RECIPES["best"], "--output", there, "--resume")
    assert code == 0, said
    assert len(before) == 2 and before == {file: file.stat().st_mtime_ns for file in before}
    assert said.count(": network ") == said.count("plain: accuracy") == 3
    assert_same(there, whole("best")[0])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["output"] for line in lines] == [f"{here}/teacher1", f"{here}/teacher2", str(there)]
    # Without the folder, so that `compare` finds one recipe in all its seeds.
    assert (lines[2]["config"]["start_from"], lines[2]["config"]["teachers"]) == ("teacher1", ["teacher1", "teacher2"])


def test_a_run_that_could_not_be_logged_is_when_it_goes_on(trainings: Trainings, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log.jsonl"
    command = (*RECIPES["original"], "--epochs", 1, "--output", run)
    process = trainings.start(*command, LATE=1)
    assert wait_for((run / "model.safetensors").exists, process)
    log.unlink()
    log.mkdir()
    assert_refused(trainings.end(process), f"Cannot write the log {log}: Is a directory. Give another --log.")
    assert not (run / "metrics.json").exists()
    log.rmdir()
    code, said = trainings.run(*command, "--resume")
    assert code == 0, said
    [line] = log.read_text().splitlines()
    assert json.loads(line)["plain"]["nll"] == json.loads((run / "metrics.json").read_text())["plain"]["nll"]


def cut_after_first_epoch(trainings: Trainings, output: Path, recipe: str = "original") -> dict[str, bytes]:
    """Kill a run when its first epoch, of several networks that of the last, is complete; what it left."""
    process = trainings.start(*RECIPES[recipe], "--output", output)
    state, curves = output / STATE_FILE, output / "curves.png"
    # The first state is written before the first epoch.
    assert wait_for(lambda: curves.exists() and state.stat().st_mtime_ns > curves.stat().st_mtime_ns, process)
    os.kill(process, 9)
    trainings.end(process)
    return {name: (output / name).read_bytes() for name in WRITTEN}


def assert_refused(answer: tuple[int, str], sentence: str) -> None:
    code, said = answer
    assert (code, sentence in said) == (2, True), said
    assert "Traceback" not in said and len([line for line in said.splitlines() if line.startswith("train.py")]) == 1


@pytest.mark.parametrize(("limit", "epochs"), [(5_000_000, 0), (30_000_000, 1)])
def test_a_full_disk_costs_no_complete_epoch(
    trainings: Trainings, whole: Callable, tmp_path: Path, limit: int, epochs: int
) -> None:
    output = tmp_path / "run"
    full = trainings.run(*RECIPES["original"], "--output", output, limit=limit)
    # Once Adam has its averages, the state of the training is three times as large.
    assert_refused(full, f"Cannot write {output / STATE_FILE}: File too large. Make room or give another folder")
    assert full[1].count("best so far") == epochs
    assert_intact(output)
    assert not list(output.glob(".*"))
    if epochs:
        before = cut_after_first_epoch(trainings, tmp_path / "cut")
        full = trainings.run(*RECIPES["original"], "--output", tmp_path / "cut", "--resume", limit=limit)
        assert_refused(full, f"Cannot write {tmp_path / 'cut' / STATE_FILE}")
        assert (tmp_path / "cut" / STATE_FILE).read_bytes() == before[STATE_FILE]
        assert trainings.run(*RECIPES["original"], "--output", tmp_path / "cut", "--resume")[0] == 0
        assert_same(tmp_path / "cut", whole("original")[0])


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
    else:  # permissions do not bind root, mounts do
        if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
            pytest.skip("root without the right to mount")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
            yield
        finally:
            subprocess.run(["umount", folder], check=True)


def test_a_folder_that_takes_no_files_is_refused_before_an_epoch(trainings: Trainings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = trainings.run(*RECIPES["original"], "--output", tmp_path / "file")
    assert_refused(refused, f"Cannot write {tmp_path / 'file/history.json'}: Not a directory.")
    before = cut_after_first_epoch(trainings, tmp_path / "run")
    with read_only(tmp_path / "run"):
        refused = trainings.run(*RECIPES["original"], "--output", tmp_path / "run", "--resume")
    assert_refused(refused, f"Cannot write {tmp_path / 'run/history.json'}: ")
    assert "epoch" not in refused[1]
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


def test_a_data_file_that_has_changed_is_refused(trainings: Trainings, tmp_path: Path) -> None:
    before = cut_after_first_epoch(trainings, tmp_path / "run")
    table = pd.read_csv(trainings.folder / "fer2013.csv")
    table.loc[0, "emotion"] = (table.loc[0, "emotion"] + 1) % 7
    table.to_csv(tmp_path / "changed.csv", index=False)
    changed = trainings.run(
        *RECIPES["original"], "--data", tmp_path / "changed.csv", "--output", tmp_path / "run", "--resume"
    )
    assert_refused(changed, f"{tmp_path / 'run'} holds a run with other data (")
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


@pytest.fixture
def start_two(trainings: Trainings) -> Callable[..., list[int]]:
    """Starts a training in two processes."""
    stores = []

    def start(output: Path, *more: object, **variables: object) -> list[int]:
        # The processes meet at a store that listens here, as under torchrun: a port looked up for them beforehand could
        # be taken by another program until they listen.
        stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        group = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": stores[-1].port}
        group |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0} | variables
        arguments = (*QUICK, "--batch-size", 7, "--output", output, *more)
        return [trainings.start(*arguments, RANK=rank, LOCAL_RANK=rank, **group) for rank in range(2)]

    return start


def test_when_one_process_is_killed_the_others_say_so_and_all_resume(
    trainings: Trainings, start_two: Callable, tmp_path: Path
) -> None:
    first, second = start_two(tmp_path / "cut")
    assert wait_for((tmp_path / "cut" / "curves.png").exists, first)
    os.kill(second, 9)
    assert trainings.end(second)[0] == -9
    code, said = trainings.end(first)
    assert code == 1, said
    assert "If a process has ended, the same command with --resume goes on." in said
    assert_intact(tmp_path / "cut")
    for process in (*start_two(tmp_path / "cut", "--resume"), *start_two(tmp_path / "whole")):
        code, said = trainings.end(process)
        assert code == 0, said
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_all_processes_learn_from_calibrated_teachers(
    trainings: Trainings, start_two: Callable, tmp_path: Path
) -> None:
    teachers = tmp_path / "late" / "teacher1", tmp_path / "late" / "teacher2"
    pupil = ("--learning-rate", 0.1, "--augmentation", 0.6, 0.2, "--mixup", 0.5, "--seed", 3)
    for name, recipe, late in (
        ("late", ("--recipe", "best"), 2),
        ("alone", ("--recipe", "single", "--start-from", teachers[0], "--teachers", *teachers, *pupil), 0),
    ):
        for process in start_two(tmp_path / name, *recipe, "--labels", "ferplus", "--epochs", 1, LATE=late):
            code, said = trainings.end(process)
            assert code == 0, said
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("late", "alone")]
    assert weights[0] == weights[1]
