"""Two thousand unusual, damaged and hostile files: each gets the right answer or one sentence, soon and in bounds.

`pytest -m long -s tests/test_corpus.py` sends all of them through the predictor, the command line and the page, and
prints the figures of docs/reliability.md; otherwise every file is opened, and a sample goes through each door.
"""

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from subprocess import Popen

import httpx
import numpy as np
import pytest
from conftest import PATIENCE, serving
from corpus import Case, corpus, portrait
from gradio_client import Client, handle_file

from emotion.faces import open_image
from emotion.follow import overlap
from emotion.predict import EmotionPredictor, Prediction

ROOT = Path(__file__).parents[1]
CASES = corpus()
SECONDS = 10
"""Longest that a file may be computed on, in seconds of one core: waiting for a busy machine does not count."""
MIB = 1280
"""Most memory that a file may take, beyond what the process holds anyway."""
SAMPLE = 40
"""Files of small cases that go through each door in the ordinary tests."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def predictor() -> EmotionPredictor:
    return EmotionPredictor.from_checkpoint()


def sample(seed: int) -> list[Case]:
    """A part of the corpus that takes seconds, with every kind of small file in it."""
    small = [case for case in CASES if case.kind in ("unusual", "no picture")]
    damaged = [case for case in CASES if case.kind in ("cut short", "bits flipped")]
    rng = np.random.default_rng(seed)
    return [cases[index] for cases in (small, damaged) for index in rng.choice(len(cases), SAMPLE // 2, replace=False)]


def written(case: Case, folder: Path) -> Path:
    file = folder / case.name.replace("/", "_")
    file.write_bytes(case.make())
    return file


def status(process: int | str, key: str) -> float:
    """A line of a process's status on Linux, in MiB; elsewhere 0."""
    try:
        return int(re.search(rf"^{key}:\s+(\d+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)[1]) / 1024
    except OSError:
        return 0.0


def computed(process: int | str) -> float:
    """Seconds that a process has computed for so far, all its threads together."""
    try:
        ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return time.monotonic()
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


class Bounds:
    """Holds every file to the bounds on time and memory, and keeps the figures.

    Args:
        process: whose time and memory count.
    """

    def __init__(self, process: int | str = "self") -> None:
        self.process = process
        self.rows: list[tuple[Case, float, float, str | None]] = []

    @contextmanager
    def hold(self, case: Case) -> Iterator[list[str | None]]:
        """Yield a list into which the sentence goes, if there was one."""
        with_memory = Path(f"/proc/{self.process}/clear_refs")
        if with_memory.exists():
            with_memory.write_text("5")
        before, start, said = status(self.process, "VmRSS"), computed(self.process), []
        yield said
        seconds, grown = computed(self.process) - start, status(self.process, "VmHWM") - before
        self.rows.append((case, seconds, grown, said[0] if said else None))
        assert seconds < SECONDS, f"{case.kind}, {case.name}: {seconds:.1f} s"
        assert grown < MIB, f"{case.kind}, {case.name}: {grown:.0f} MiB"

    def table(self) -> str:
        """The figures by kind, as Markdown."""
        lines = ["| kind | files | answered | one sentence | slowest | most memory |", "|---|---|---|---|---|---|"]
        for kind in dict.fromkeys(case.kind for case, *_ in self.rows):
            rows = [row for row in self.rows if row[0].kind == kind]
            refused = sum(said is not None for *_, said in rows)
            slowest, most = max(row[1] for row in rows), max(row[2] for row in rows)
            lines.append(
                f"| {kind} | {len(rows):,} | {len(rows) - refused:,} | {refused:,} | {slowest:.2f} s | {most:.0f} MiB |"
            )
        return "\n".join(lines)


def assert_one_sentence(text: str, name: str) -> None:
    """One line about `name`, with no other path, no code and no trace in it."""
    assert text.startswith(name) and text.endswith("."), text
    rest = text.removeprefix(name)
    assert re.fullmatch(r" (is|has|holds) [^\n]{10,250}; (give|save) [^\n]{5,120}\.", rest), text
    assert not re.search(r"Traceback|Error|File \"|/|\\", rest), text


def assert_shows_the_portrait(case: Case, faces: Sequence[Prediction], wanted: Prediction) -> None:
    (face,) = faces
    assert overlap(face.box, wanted.box) > 0.9, case.name
    difference = max(abs(face.probabilities[name] - p) for name, p in wanted.probabilities.items())
    assert difference <= case.tolerance, f"{case.name}: {difference:.4f}"


def test_every_file_is_opened_or_refused_in_one_sentence() -> None:
    bounds = Bounds()
    for case in CASES:
        if case.large:
            continue
        data = case.make()
        with bounds.hold(case) as said:
            try:
                image = open_image(data)
            except ValueError as error:
                said.append(str(error))
        if said:
            assert_one_sentence(said[0], f"The picture of {len(data)} bytes")
        else:
            assert image.mode == "RGB" and image.width * image.height <= 52_000_000
            assert case.kind != "no picture", case.name
        assert case.kind != "unusual" or not said, f"{case.name}: {said}"


def through_the_predictor(cases: Sequence[Case], predictor: EmotionPredictor, folder: Path, bounds: Bounds) -> None:
    (wanted,) = predictor.predict(portrait())
    for case in cases:
        file = written(case, folder)
        with bounds.hold(case) as said:
            try:
                faces = predictor.predict(file)
            except ValueError as error:
                said.append(str(error))
        if said:
            assert_one_sentence(said[0], f"'{file}'")
        if case.tolerance is not None:
            assert not said, case.name
            assert_shows_the_portrait(case, faces, wanted)
        file.unlink()


def test_the_predictor_answers_or_says_why_not(predictor: EmotionPredictor, tmp_path: Path) -> None:
    through_the_predictor(sample(0), predictor, tmp_path, Bounds())


def through_the_command_line(cases: Sequence[Case], predictor: EmotionPredictor, folder: Path) -> None:
    """One process for all, whose answers are the predictor's."""
    files = [written(case, folder) for case in cases]
    command = [sys.executable, "-m", "emotion", "predict", "--json", *map(str, files)]
    timeout = PATIENCE + SECONDS * len(cases)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert "Traceback" not in done.stderr
    items = json.loads(done.stdout)
    assert done.returncode == int(any(item["error"] for item in items))
    for file, item in zip(files, items, strict=True):
        assert_same(item, file, str(file), predictor)


def assert_same(item: dict, file: Path, name: str, predictor: EmotionPredictor) -> None:
    """The command line's or the page's answer is the predictor's, under the name that the visitor gave."""
    assert item["image"] == name
    faces, sentence = [], None
    try:
        faces = predictor.predict(file)
    except ValueError as error:
        sentence = str(error).replace(str(file), name)
    assert item["error"] == sentence
    assert len(item["faces"]) == len(faces)
    for face, wanted in zip(item["faces"], faces, strict=True):
        # The other process may add in another order.
        assert face["box"] == pytest.approx(wanted.box, abs=1e-2)
        assert face["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-4)


def test_the_command_line_answers_or_says_why_not(predictor: EmotionPredictor, tmp_path: Path) -> None:
    through_the_command_line(sample(1), predictor, tmp_path)


# --- the page


class Visitor:
    """Somebody at the page: uploads, and asks its endpoints as a browser does."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=f"{url}gradio_api/", timeout=PATIENCE)
        self.config = httpx.get(f"{url}config", timeout=PATIENCE).json()
        self.public = Client(url, verbose=False)

    def predict(self, file: Path) -> dict:
        return self.public.predict(handle_file(file), api_name="/predict")

    def upload(self, file: Path) -> dict:
        (path,) = self.client.post("upload", files={"files": (file.name, file.read_bytes())}).json()
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def event(self, elem_id: str, event: str) -> int:
        """Number of the function that is called when `event` happens to a component."""
        ids = {part["id"] for part in self.config["components"] if part["props"].get("elem_id") == elem_id}
        return next(
            function["id"]
            for function in self.config["dependencies"]
            if function["backend_fn"] and any(part in ids and name == event for part, name in function["targets"])
        )

    def ask(self, function: int, data: list) -> dict:
        """The last message on a private function: a result or an error."""
        session = f"session{time.monotonic_ns()}"
        body = {"fn_index": function, "session_hash": session, "data": data, "event_data": None, "trigger_id": None}
        event = self.client.post("queue/join", json=body).json()["event_id"]
        with self.client.stream("GET", "queue/data", params={"session_hash": session}) as messages:
            for line in messages.iter_lines():
                message = json.loads(line.removeprefix("data: ") or "{}")
                if message.get("msg") in ("process_completed", "process_streaming"):
                    break
        self.client.post(f"stream/{event}/close", json={})
        return message


@pytest.fixture(scope="module")
def visitor(server: tuple[str, Popen]) -> Visitor:
    return Visitor(server[0])


def through_the_page(
    cases: Sequence[Case], visitor: Visitor, predictor: EmotionPredictor, folder: Path, bounds: Bounds
) -> None:
    for case in cases:
        file = written(case, folder)
        with bounds.hold(case) as said:
            item = visitor.predict(file)
            said += filter(None, [item["error"]])
        assert item["image"] and "/" not in item["image"]
        # A server's own cleaning of the name is not at stake here; everything else is.
        assert_same(item, file, item["image"], predictor)
        if said:
            assert_one_sentence(said[0], f"'{item['image']}'")
        file.unlink()


def test_the_page_answers_or_says_why_not(
    visitor: Visitor, server: tuple[str, Popen], page_predictor: EmotionPredictor, tmp_path: Path
) -> None:
    through_the_page(sample(2), visitor, page_predictor, tmp_path, Bounds(server[1].pid))


@pytest.mark.parametrize(
    "name", ["cut 1 photo.jpg.jpg", "flip 3 packed.tif.tif", "drawing.svg", "empty.png", "greedy table.tif"]
)
def test_every_other_endpoint_says_the_same_sentence(visitor: Visitor, tmp_path: Path, name: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    file = written(case, tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(file))) as error:
        open_image(file)
    upload = visitor.upload(file)
    sentence = str(error.value).replace(str(file), Path(upload["path"]).name)
    assert visitor.public.predict(handle_file(file), 0, 1.0, api_name="/augment")["error"] == sentence
    show = visitor.ask(visitor.event("photo-input", "change"), ["first", upload, False, None, None])
    assert show["output"]["data"][0] == f'<p class="error">{escape(sentence)}</p>'
    table = visitor.ask(visitor.event("batch-input", "upload"), ["first", [upload]])
    assert f'<span class="error">{escape(sentence)}</span>' in table["output"]["data"][0]
    frame = f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"
    live = visitor.ask(visitor.event("live-camera", "stream"), [{"url": frame}, "first", None])
    assert live["output"]["error"] == str(error.value).replace(
        f"'{file}'", f"The picture of {file.stat().st_size} bytes"
    )


@pytest.mark.long
def test_the_whole_corpus_through_every_door(
    predictor: EmotionPredictor, checkpoints: Path, page_predictor: EmotionPredictor, tmp_path: Path
) -> None:
    alone, site, files = Bounds(), tmp_path / "site", tmp_path / "files"
    for folder in (site, files):
        folder.mkdir()
    through_the_predictor(CASES, predictor, files, alone)
    print(f"\n\n{len(CASES):,} files through EmotionPredictor.predict\n\n{alone.table()}")
    for start in range(0, len(CASES), 100):
        through_the_command_line(CASES[start : start + 100], predictor, files)
        for file in files.iterdir():
            file.unlink()
    print(f"\n{len(CASES):,} files through python -m emotion predict --json: the predictor's answers.")
    # One visitor who gives two thousand files as fast as they are read.
    with serving(site, {"EMOTION_CHECKPOINT": str(checkpoints), "EMOTION_PER_MINUTE": "100000"}) as (url, process):
        page = Bounds(process.pid)
        through_the_page(CASES, Visitor(url), page_predictor, files, page)
    print(f"\n{len(CASES):,} files through the page's /predict\n\n{page.table()}")
