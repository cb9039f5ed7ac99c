"""README and docs: every command and every Python block runs, every generated part is what the code generates.

Each page gets a folder of its own with a copy of the project and what a reader would have: `photo.jpg`, `clip.mp4`,
`fer2013.csv` with the votes, `my_faces/`. Its blocks run there in order, each command in a process of its own, as
written but for the rules stated below. A new command needs no new rule unless it starts another program.
"""

import csv
import glob
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise, takewhile
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from hub_server import WRITE, HubServer, serving
from PIL import Image

import train
from benchmarks import prediction, traditional
from docs import make
from emotion.data import FERPLUS_COLUMNS
from emotion.demo import draw_face
from emotion.labels import FER2013_LABELS
from emotion.model import EmotionCNN

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATIENCE = 300  # seconds; a loaded machine is slow

NOT_RUN = {
    "pytest -m long -s tests/test_corpus.py": "takes minutes; tests/test_corpus.py runs a sample of it",
    "pytest -s tests/test_predict.py -k restart": "the suite runs it",
    "pytest -n 2 --dist loadfile": "this is it",
    "python -m emotion demo": "tests/test_command_line.py runs it on fewer faces; it takes a minute",
    "python train.py --data fer2013.csv --transfer vgg16 --unfreeze-every 3 --output runs/transfer": (
        "needs ImageNet weights, a download of 528 MB; tests/test_transfer.py and test_trainer.py use random ones"
    ),
    "python -m emotion examples --data fer2013.csv --votes fer2013new.csv": (
        "needs 40 faces of each emotion; tests/test_examples.py draws them and runs it"
    ),
    "python -m benchmarks.traditional --write": "takes minutes and 5 GB; tests/test_benchmarks.py runs its parts",
    "python -m benchmarks.transfer --data fer2013.csv -- --recipe single --epochs 12": (
        "needs ImageNet weights; tests/test_benchmarks.py uses random ones"
    ),
    "python -m benchmarks.load --write": "takes minutes; tests/test_load.py runs its parts",
    "pytest -m long tests/test_interruptions.py -rP": "takes minutes; the same tests run with fewer kills",
    'unshare --net --map-root-user sh -c "ip link set lo up && pytest tests/test_privacy.py tests/test_web.py '
    'tests/test_app.py"': "needs the right to make a network; the tests themselves run with other addresses refused",
    "python -m benchmarks --write": "takes minutes and 5 GB; tests/test_benchmarks.py runs its parts",
    "docker build --tag emotion .": "needs Docker; the dockerfile's COPY and CMD are tried without it",
    "docker run --publish 7860:7860 emotion": "needs Docker",
}
"""Commands that are only read, and why."""
APPENDED = {
    "train.py": ("--epochs", "1", "--hard-epochs", "0", "--image-sizes", "48", "--batch-size", "8"),
}
"""What is added to a command by the script it runs, to make it short."""
WRITES = ("--output", "--pth", "--onnx")
"""Options whose value must exist after the command."""
PAGE_URL = "http://127.0.0.1:7860"
"""Stands for the address of the page that the same document has started."""
ACCOUNT = ("USER/", "anna/")
"""What stands for the reader's name on the Hub, and that name on the server of the tests."""


class Block(NamedTuple):
    """A fenced block: its language and its lines."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    lines = iter(page.read_text("utf-8").splitlines())
    return [
        Block(line[3:].strip(), "\n".join(takewhile(lambda inner: not inner.startswith("```"), lines)))
        for line in lines
        if line.startswith("```")
    ]


def commands(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", "").splitlines() if line.strip() and not line.startswith("#")]


def execute(arguments: list[str], variables: dict[str, str], folder: Path) -> None:
    """What `python ARGUMENTS` does in `folder`, in a fresh process that has its imports behind it."""
    os.chdir(folder)
    os.environ.update(variables)
    for name, number in (("out", 1), ("err", 2)):
        with open(folder / f".{name}", "wb") as file:
            os.dup2(file.fileno(), number)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, str(folder))
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(folder / Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def processes(
    hub: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[multiprocessing.context.BaseContext]:
    """Makes processes that have loaded torch already; without it, imports would take longer than all commands."""
    context = multiprocessing.get_context("forkserver")
    # Whatever cannot be imported is left out without a word.
    context.set_forkserver_preload(
        [
            *("test_documents", "train", "emotion.evaluate", "emotion.predict", "accelerate.commands.launch"),
            *("emotion.hub", "matplotlib.figure", "docs.make", "gradio_client", "onnxruntime"),
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
        patch.setenv("EMOTION_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        # An account on a Hub of the tests' own; nothing here leaves the machine.
        patch.setenv("HF_ENDPOINT", hub.address)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_TOKEN", WRITE)
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        yield context


@pytest.fixture(scope="module")
def belongings(tmp_path_factory: pytest.TempPathFactory, portrait: Image.Image, group: Image.Image, clip: Path) -> Path:
    """What a reader has: the project, photos, a clip, drawn faces as a FER2013 file with votes and as class folders."""
    folder = tmp_path_factory.mktemp("reader")
    for source in (*ROOT.glob("*.py"), *ROOT.glob("*.txt"), *ROOT.glob("*.md")):
        shutil.copy(source, folder)
    for name in ("emotion", "checkpoints", "benchmarks", "docs", "examples"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    portrait.save(folder / "photo.jpg")
    group.save(folder / "group.jpg")
    shutil.copy(clip, folder / "clip.mp4")
    Image.fromarray(draw_face("happy", np.random.default_rng(1))).save(folder / "face.png")
    rng = np.random.default_rng(0)
    with (
        open(folder / "fer2013.csv", "w", newline="") as faces,
        open(folder / "fer2013new.csv", "w", newline="") as votes,
    ):
        faces_writer, votes_writer = csv.writer(faces), csv.writer(votes)
        faces_writer.writerow(["emotion", "pixels", "Usage"])
        votes_writer.writerow(["Usage", "Image name", *FERPLUS_COLUMNS, "unknown", "NF"])
        names = list(FERPLUS_COLUMNS.values())
        for row in range(56):
            usage = "Training" if row < 28 else "PublicTest" if row < 42 else "PrivateTest"
            label = FER2013_LABELS[row % 7]
            face = draw_face(label, rng)
            faces_writer.writerow([row % 7, " ".join(map(str, face.ravel())), usage])
            counts = [9 * (name == label) + (name == "neutral") for name in names]
            votes_writer.writerow([usage, f"fer{row:07}.png", *counts, 0, 0])
            place = folder / "my_faces" / "train" / label
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(face).save(place / f"{row}.png")
    return folder


class Reader:
    """Somebody who tries a page: runs its commands in a folder, and keeps what they start until the end."""

    def __init__(self, folder: Path, processes: multiprocessing.context.BaseContext) -> None:
        self.folder = folder
        self.processes = processes
        self.pages: list[tuple[subprocess.Popen, str, Path]] = []
        self.trained: dict[str, Path] = {}

    def sh(self, command: str) -> None:
        if command in NOT_RUN:
            return
        words = [found for word in shlex.split(command.replace(*ACCOUNT), comments=True) for found in self.expand(word)]
        assert not {"|", "&&", ";", ">", "&"} & set(words), f"write one plain command per line, not: {command}"
        variables = dict(word.split("=", 1) for word in takewhile(lambda word: re.match(r"[A-Z_]+=", word), words))
        program, *arguments = words[len(variables) :]
        if program == "accelerate":
            program, arguments = "python", ["-m", "accelerate.commands.accelerate_cli", *arguments]
        if program == "pip":
            # Installing is CI's first step; here, what it installs from must be there.
            assert arguments[0] == "install" and {*arguments[1::2]} <= {"-r", "-c"}, command
            assert all((ROOT / file).read_text().strip() for file in arguments[2::2]), command
        elif program == "python" and arguments[0] == "app.py":
            self.start_page(arguments, variables, self.folder)
        elif program == "python":
            self.python(arguments, variables, command)
        else:
            pytest.fail(f"{command!r} starts {program!r}; teach this test to run it, or give a reason in NOT_RUN.")

    def expand(self, word: str) -> list[str]:
        return sorted(glob.glob(word, root_dir=self.folder)) if "*" in word else [word]

    def python(self, arguments: list[str], variables: dict[str, str], command: str) -> None:
        if arguments[0] == "train.py":
            options, _ = train.parse_arguments(arguments[1:])
            named = [Path(name) for name in (options.start_from, *(options.teachers or ())) if name]
            assert all((self.folder / name).exists() for name in named), command
            # A training that differs in numbers or names alone is not run again: what it would leave is a copy.
            output = self.folder / options.output
            alike = re.sub(r" --(output|start-from|teachers)( [^ -]\S*)+| --[\w-]+( [\d.]+)+(?= |$)", r"\1", command)
            first = self.trained.setdefault(alike, output)
            if not output.exists() and first.exists():
                shutil.copytree(first, output)
                return
        added = [extra for name, extras in APPENDED.items() if name in arguments for extra in extras]
        process = self.processes.Process(target=execute, args=(arguments + added, variables, self.folder))
        process.start()
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
        out, err = ((self.folder / name).read_text("utf-8", "replace") for name in (".out", ".err"))
        assert process.exitcode == 0, f"{command}\nends with {process.exitcode}\n{out}\n{err}"
        for option, value in pairwise(arguments):
            if option in WRITES:
                assert (self.folder / value).exists(), f"{command}\nhas not written {value}"
        if "--json" in arguments:
            assert json.loads(out), command

    def start_page(self, arguments: list[str], variables: dict[str, str], folder: Path) -> None:
        """Serve the page on a free port; whether it answers is asked when needed, at the latest at the end."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
        log = folder / f".page{port}"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments, "--port", str(port)],
                **{"cwd": folder, "env": environment, "stdout": output, "stderr": output},
            )
        self.pages.append((process, f"http://127.0.0.1:{port}", log))

    def running_page(self) -> str:
        """The address of the page that was started last, once it answers."""
        process, url, log = self.pages[-1]
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urlopen(url, timeout=10).close()
                return url
            except (URLError, OSError):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)

    def program(self, text: str, number: int) -> None:
        if PAGE_URL in text:
            text = text.replace(PAGE_URL, self.running_page())
        file = self.folder / f"block{number}.py"
        file.write_text(text, "utf-8")
        self.python([file.name], {}, text)
        assert (self.folder / ".out").stat().st_size or "print(" not in text, f"{text}\nprints nothing"

    def dockerfile(self, text: str) -> None:
        """What it copies must be enough for its command to run, and its Python one that the project supports."""
        container = self.folder / "container"
        container.mkdir()
        for line in text.splitlines():
            instruction, *words = line.split()
            if instruction == "COPY":
                source, target = self.folder / words[0], container / words[1]
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
            elif instruction == "RUN":
                assert words[:2] == ["pip", "install"] and words[-2] == "-r", line
                assert (container / words[-1]).exists(), line
            elif instruction == "FROM":
                assert re.fullmatch(r"python:3\.1[0-2]-slim", words[0]), line
            elif instruction == "CMD":
                python, *arguments = json.loads(line.removeprefix("CMD"))
                assert python == "python"
                self.start_page(arguments, {}, container)
            else:
                assert instruction == "WORKDIR", line

    def client_settings(self, text: str) -> None:
        """What a client of the Model Context Protocol is told: the addresses must be those of the page."""
        for server in json.loads(text.replace(PAGE_URL, self.running_page()))["mcpServers"].values():
            address = server.get("url") or next(word for word in server["args"] if word.startswith("http"))
            with urlopen(address, timeout=PATIENCE) as answer:
                assert ("url" in server) == (b"Model Context Protocol" in answer.read()), address

    def stop_pages(self) -> None:
        for process, _, _ in self.pages:
            process.terminate()
        for process, _, _ in self.pages:
            process.wait(PATIENCE)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_the_page_runs(
    page: Path, belongings: Path, processes: multiprocessing.context.BaseContext, tmp_path: Path
) -> None:
    reader = Reader(shutil.copytree(belongings, tmp_path / "reader"), processes)
    try:
        for number, (language, text) in enumerate(blocks(page)):
            if language == "sh":
                for command in commands(text):
                    reader.sh(command)
            elif language == "python":
                reader.program(text, number)
            elif language == "bash":
                # A script of other programs; tests/test_ui_augmentation.py runs it, and there is one.
                assert page.name == "deployment.md" and "/augment" in text, "write sh, or teach the tests to run it"
            elif language == "dockerfile":
                reader.dockerfile(text)
            elif language == "json":
                reader.client_settings(text)
            else:
                pytest.fail(f"a block of {page.name} is marked {language!r}; write sh, bash, python, json, dockerfile.")
        while reader.pages:
            reader.running_page()
            process, _, _ = reader.pages.pop()
            process.terminate()
            process.wait(PATIENCE)
    finally:
        reader.stop_pages()


def test_two_commands_of_the_readme_publish_network_and_space(
    hub: HubServer, belongings: Path, processes: multiprocessing.context.BaseContext
) -> None:
    (share,) = [block for block in blocks(ROOT / "README.md") if "emotion push" in block.text]
    assert len(commands(share.text)) == 2
    hub.models.clear()
    hub.spaces.clear()
    for command in commands(share.text):
        Reader(belongings, processes).sh(command)
    weights = (belongings / "checkpoints/ferplus/model.safetensors").read_bytes()
    assert hub.models["anna/NAME"].files["model.safetensors"] == weights
    assert {"app.py", "README.md", "requirements.txt"} <= hub.spaces["anna/SPACE"].files.keys()


def test_what_is_not_run_stands_in_a_page() -> None:
    written = {command for page in PAGES for block in blocks(page) for command in commands(block.text)}
    assert set(NOT_RUN) <= written


def test_what_a_page_links_to_exists() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", text):
            address = "".join(target)
            if not address.startswith(("http://", "https://")):
                assert (page.parent / address).exists(), f"{page.name} links to {address}"


def test_generated_parts_are_what_the_code_generates_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for page in PAGES:
        assert make.fill(page.read_text("utf-8")) == page.read_text("utf-8"), f"{page}: run python -m docs.make"
    assert make.diagram() == (make.IMAGES / "network.svg").read_text()
    make.draw_steps(tmp_path / "steps.png")
    traditional.plot(json.loads(traditional.RESULTS.read_text()), tmp_path / "comparison.png")
    prediction.plot(json.loads(prediction.RESULTS.read_text()), tmp_path / "speed.png")
    for name in ("steps.png", "comparison.png", "speed.png"):
        # Another release of matplotlib may shade an edge differently.
        drawn, committed = (np.array(Image.open(folder / name).convert("L"), int) for folder in (tmp_path, make.IMAGES))
        assert drawn.shape == committed.shape
        assert np.abs(drawn - committed).mean() < 2, f"{name}: run python -m docs.make"


def test_the_layer_table_adds_up_to_the_network() -> None:
    rows = make.rows(EmotionCNN())
    assert sum(row.parameters for row in rows) == 6_670_759
    assert sum(row.multiply_adds for row in rows) == traditional.count("ours")["multiply_adds"]
    layers = " ".join(layer for row in rows for layer in row.layers)
    counted = [layers.count(name) for name in ("conv 3x3", "dense", "batch norm", "pool", "dropout")]
    assert counted == [12, 5, 16, 5, 10]


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(ValueError, match="'laters'; choose from layers"):
        make.fill("<!-- generated: laters -->\n<!-- end -->")
