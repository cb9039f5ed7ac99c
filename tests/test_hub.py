"""Publishing and loading back, with the real huggingface_hub client against a Hub on the loopback interface."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import LABELS
from hub_server import COLOURS, READ, WRITE, Fault, HubServer, Repository, check_metadata, serving
from huggingface_hub import ModelCard, SpaceHardware
from PIL import Image

from emotion import demo, hub
from emotion.checkpoint import save_checkpoint
from emotion.hub import model_card
from emotion.labels import FER2013_LABELS
from emotion.model import EmotionCNN

ROOT = Path(__file__).parents[1]
UNKNOWN = "hf_unknownUnknown"
CLASSES = list(FER2013_LABELS)
RESULT = {
    "split": "PublicTest",
    "label_set": "fer2013",
    "labels": CLASSES,
    "rows": 3589,
    "views": 1,
    "temperature": 1.2,
    "accuracy": 0.71234,
    "interval": [0.6975, 0.7271],
    "balanced_accuracy": 0.66,
    "nll": 0.8,
    "ece": 0.0213,
    "per_class": {name: {"rows": 500, "precision": 0.5, "recall": 0.613, "f1": 0.55} for name in CLASSES},
    "confusion": [[100 * row + column for column in range(7)] for row in range(7)],
    "reliability": [{"confidence": 0.5, "accuracy": 0.45, "rows": 3589}],
}
METRICS = {
    "plain": RESULT,
    "tta": RESULT | {"views": 2, "accuracy": 0.7188},
    "unseen": RESULT | {"rows": 3309, "accuracy": 0.7011},
    "robustness": {
        "split": "PublicTest",
        "label_set": "fer2013",
        "rows": 3589,
        "accuracy": {"blur": [0.61, 0.52, 0.43], "noise": [0.6, 0.5, 0.4]},
    },
    "clear_answer": {"split": "PublicTest", "rows": 3589, "threshold": 0.55, "share": 0.684, "accuracy": 0.829},
}

# One process answers call after call, because the client reads its settings when it is imported, and importing takes
# seconds. It does not sleep: the client's waits between its attempts would take minutes.
CLIENT = """
import contextlib, io, json, os, sys, time, traceback
time.sleep = lambda seconds: None
channel, sys.stdout = sys.stdout, sys.stderr
import emotion.__main__, train
from emotion.checkpoint import load_checkpoint
from emotion.networks import load_networks
from emotion.predict import EmotionPredictor

def run(program, arguments):
    if program in ("load", "offer"):
        try:
            if program == "load":
                print(load_checkpoint(*arguments).temperature)
            else:
                print(*(network.threshold for network in load_networks(*arguments).values()))
            return 0
        except (ValueError, OSError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 2
    return {"emotion": emotion.__main__, "train": train}[program].main(arguments)

for line in sys.stdin:
    program, arguments, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run(program, arguments)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            status = traceback.format_exc()
    print(json.dumps([status, out.getvalue(), err.getvalue()]), file=channel, flush=True)
"""


@dataclass
class Done:
    """What a command did: exit status (or the traceback of what it let through), standard output, standard error."""

    status: int | str
    out: str
    err: str


def environment(server: HubServer, home: Path) -> dict[str, str]:
    """A machine that has never talked to the Hub, and finds it on the loopback interface."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return inherited | {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
        "EMOTION_CACHE": str(home / "parsed"),
    }


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def run(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Done]]:
    """`run("emotion", "push", ...)`; no run may ever print a token, and none may end in a traceback."""
    home = tmp_path_factory.mktemp("home")
    with open(home / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=home,
            env=environment(server, home),
        )

        def call(program: str, *arguments: object, token: str | None = WRITE) -> Done:
            process.stdin.write(json.dumps([program, [str(argument) for argument in arguments], token]) + "\n")
            process.stdin.flush()
            done = Done(*json.loads(process.stdout.readline()))
            assert isinstance(done.status, int), done.status
            for secret in (WRITE, READ, UNKNOWN, "Bearer"):
                assert secret not in done.out + done.err
            return done

        yield call
        process.stdin.close()
        assert process.wait(60) == 0
        log.seek(0)
        assert not [secret for secret in (WRITE, READ, UNKNOWN, "Bearer") if secret in log.read()]


@pytest.fixture(autouse=True)
def _faults_end_with_their_test(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").faults.clear()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with everything that may lie in one, and some things that are nobody's business."""
    torch.manual_seed(0)
    model = EmotionCNN(temperature=1.25)
    torch.nn.init.normal_(model.classifier[-1].weight, std=0.3)
    folder = tmp_path_factory.mktemp("runs") / "best"
    config = {"config": {"epochs": 3, "optimizer": "sgd", "soft_targets": True, "seed": 5}, "processes": 1}
    save_checkpoint(model, folder, metrics=METRICS, history=[{"epoch": 1}, {"epoch": 2}], training_config=config)
    for name in ("curves", "confusion", "reliability"):
        Image.new("L", (9, 9), 128).save(folder / f"{name}.png")
    for name in ("training_state.pt", ".model.safetensors.tmp", "notes.txt", "pytorch_model.bin"):
        (folder / name).write_bytes(b"private")
    return folder


@pytest.fixture(scope="module")
def published(run: Callable[..., Done], server: HubServer, trained: Path) -> Done:
    return run("emotion", "push", trained, "anna/faces")


def one_line(done: Done, *parts: str) -> None:
    """The command refused, saying why in one line."""
    errors = [line for line in done.err.splitlines() if line.startswith(("error:", "train.py:"))]
    assert (done.status, done.out) == (2, "")
    assert len(errors) == 1
    assert all(part in errors[0] for part in parts), errors[0]
    assert "Traceback" not in done.err


# --- Push


def test_a_push_creates_the_repository_in_one_commit(published: Done, server: HubServer, trained: Path) -> None:
    assert published.status == 0
    repository = server.models["anna/faces"]
    assert (repository.private, len(repository.commits)) == (False, 2)
    kept = ["config.json", "model.safetensors", "metrics.json", "history.json", "training_config.json"]
    kept += ["curves.png", "confusion.png", "reliability.png"]
    assert set(repository.files) == {".gitattributes", "README.md", "model.onnx", *kept}
    for name in kept:
        assert repository.files[name] == (trained / name).read_bytes()
    assert published.out.startswith(f"{server.address}/anna/faces holds:\n")
    sizes = dict(reversed(line.split()) for line in published.out.splitlines()[1:-1])
    assert sizes == {name: f"{len(data):,}" for name, data in repository.files.items() if name != ".gitattributes"}


def test_the_onnx_file_is_the_export_of_this_checkpoint(published: Done, server: HubServer, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(server.models["anna/faces"].files["model.onnx"])
    assert session.get_inputs()[0].shape[1:] == [1, 48, 48]


def test_a_repeated_push_changes_nothing(
    published: Done, run: Callable[..., Done], server: HubServer, trained: Path
) -> None:
    asked = len(server.requests)
    again = run("emotion", "push", trained, "anna/faces")
    assert again.status == 0
    assert "anna/faces already held:" in again.out
    assert len(server.models["anna/faces"].commits) == 2
    assert not [request for request in server.requests[asked:] if "PUT" in request or "commit/" in request]


def test_what_comes_back_is_what_went_up(
    published: Done, run: Callable[..., Done], trained: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "face.png"
    Image.effect_noise((48, 48), 60).convert("L").save(picture)
    answers = [
        json.loads(run("emotion", "predict", picture, "--json", "--checkpoint", source, token=token).out)
        for source, token in ((trained, None), ("anna/faces", None), ("anna/faces", READ))
    ]
    assert answers[0] == answers[1] == answers[2]
    assert list(answers[0][0]["faces"][0]["probabilities"]) == CLASSES


def test_a_real_process_publishes_and_the_files_pull_back_byte_for_byte(
    server: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    pull = "import sys, huggingface_hub as h; print(h.snapshot_download('anna/real'))"
    call = {"cwd": ROOT, "env": environment(server, tmp_path) | {"HF_TOKEN": WRITE}, "text": True, "check": True}
    command = [sys.executable, "-m", "emotion", "push", checkpoint, "anna/real"]
    pushed = subprocess.run(command, capture_output=True, **call)
    folder = Path(subprocess.run([sys.executable, "-c", pull], stdout=subprocess.PIPE, **call).stdout.strip())
    assert WRITE not in pushed.stdout + pushed.stderr
    for file in checkpoint.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_a_push_follows_the_checkpoint_and_leaves_other_files_alone(
    run: Callable[..., Done], server: HubServer, trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "next")
    assert run("emotion", "push", folder, "anna/next").status == 0
    repository = server.models["anna/next"]
    repository.commits.append(repository.files | {"paper.pdf": b"%PDF", "notes/reliability.png": b"mine"})
    (folder / "reliability.png").unlink()
    model = EmotionCNN(temperature=3.5)
    save_checkpoint(model, folder)
    done = run("emotion", "push", folder, "anna/next")
    assert "deleted   reliability.png" in done.out
    assert "reliability.png" not in repository.files
    assert repository.files["paper.pdf"] == b"%PDF" and "notes/reliability.png" in repository.files
    assert b"temperature of 3.500" in repository.files["README.md"]
    assert run("load", "anna/next").out == "3.5\n"
    # The state before can still be had, by its commit or by a tag.
    repository.tags["v1"] = 1
    for revision in ("v1", repository.oid(1)):
        assert run("load", f"anna/next@{revision}").out == "1.25\n"


def test_a_hub_that_does_not_answer_has_not_said_that_there_are_no_metadata(
    run: Callable[..., Done], server: HubServer, published: Done, tmp_path: Path
) -> None:
    assert run("offer", "anna/faces").out == "0.55\n"
    server.models["anna/twin"] = server.models["anna/faces"]
    server.faults.append(Fault("anna/twin/resolve/main/metrics.json", 503, times=99))
    offered = run("offer", "anna/twin")
    assert offered.status == 2 and "anna/twin" in offered.err and "HTTP 503" in offered.err
    one_line(run("emotion", "export", "anna/twin", "--pth", tmp_path / "faces.pth"), "anna/twin", "HTTP 503")
    assert not (tmp_path / "faces.pth").exists()


def test_private_is_private(run: Callable[..., Done], server: HubServer, trained: Path, published: Done) -> None:
    assert run("emotion", "push", trained, "anna/secret", "--private").status == 0
    assert server.models["anna/secret"].private
    commits = len(server.models["anna/faces"].commits)
    one_line(run("emotion", "push", trained, "anna/faces", "--private"), "anna/faces exists and is public")
    assert len(server.models["anna/faces"].commits) == commits
    refused = run("load", "anna/secret", token=None)
    assert "no such repository is visible; check the name, or run `hf auth login`" in refused.err
    assert run("load", "anna/secret", token=READ).out == "1.25\n"


def test_a_dry_run_asks_nobody(run: Callable[..., Done], server: HubServer, trained: Path) -> None:
    before = list(server.requests)
    done = run("emotion", "push", trained, "anna/never", "--dry-run", token=None)
    assert done.status == 0
    assert done.out.startswith(f"{server.address}/anna/never would hold:\n")
    for name in ("README.md", "model.onnx", "config.json", "reliability.png"):
        assert f"  {name}\n" in done.out
    assert f"{(trained / 'model.safetensors').stat().st_size:>12,}  model.safetensors\n" in done.out
    assert "training_state" not in done.out and ".tmp" not in done.out
    assert run("emotion", "deploy", "anna/never", "--dry-run", token=None).status == 0
    assert server.requests == before


# --- What may go wrong


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        (Fault("repos/create", 500), ("something is broken (HTTP 500); try again later",)),
        (Fault("commit/main", 402, message="Spaces need PRO"), ("(HTTP 402: Spaces need PRO)",)),
        (Fault("objects/batch", 503, times=6), ("something is broken (HTTP 503)",)),
        (
            Fault("PUT /large", None, times=30),
            (
                "no usable answer came",
                "check the connection",
            ),
        ),
        (
            Fault("commit/main", None),
            (
                "no usable answer came",
                "check the connection",
            ),
        ),
        (Fault("validate-yaml", 429), ("too many requests have arrived (HTTP 429)",)),
    ],
    ids=lambda value: value.pattern + f" {value.status}" if isinstance(value, Fault) else "",
)
def test_a_push_that_fails_half_way_loses_nothing_and_can_be_repeated(
    run: Callable[..., Done], server: HubServer, trained: Path, fault: Fault, parts: tuple[str, ...]
) -> None:
    server.models.pop("anna/unlucky", None)
    server.large.clear()
    earlier = {"config.json": b"{}", "paper.pdf": b"%PDF"}
    server.models["anna/unlucky"] = Repository(commits=[earlier])
    server.faults.append(fault)
    one_line(run("emotion", "push", trained, "anna/unlucky"), "anna/unlucky was not published", "repeated", *parts)
    fault.times = 0
    assert server.models["anna/unlucky"].files == earlier
    assert run("emotion", "push", trained, "anna/unlucky").status == 0
    assert {"README.md", "model.safetensors", "paper.pdf"} <= server.models["anna/unlucky"].files.keys()
    assert run("load", "anna/unlucky").out == "1.25\n"


@pytest.mark.parametrize("status", [403, 429, 503, None])
def test_a_hub_that_does_not_answer_costs_no_file(
    run: Callable[..., Done], server: HubServer, published: Done, status: int | None
) -> None:
    files = server.models["anna/faces"].files
    for name in ("source", "target"):
        server.models[f"anna/{name}{status}"] = Repository(commits=[dict(files)])
    server.faults.append(Fault(f"anna/source{status}/resolve/main/metrics.json", status, times=99))
    one_line(
        run("emotion", "push", f"anna/source{status}", f"anna/target{status}"), f"'anna/source{status}'", "on the Hub"
    )
    assert server.models[f"anna/target{status}"].files == files


def test_short_faults_are_sat_out(run: Callable[..., Done], server: HubServer, trained: Path) -> None:
    server.large.clear()
    server.faults += [Fault("PUT /large", None), Fault("preupload", 503), Fault("batch", 500)]
    assert run("emotion", "push", trained, "anna/patient").status == 0
    assert "model.safetensors" in server.models["anna/patient"].files


@pytest.mark.parametrize(
    ("hub_id", "token", "parts"),
    [
        ("anna/new", None, ("no token", "huggingface.co/settings/tokens", "hf auth login")),
        ("anna/new", UNKNOWN, ("the token is not accepted",)),
        ("anna/new", READ, ("lacks the permission",)),
        ("bob/new", WRITE, ("lacks the permission",)),
        ("anna/new", "hf_\x07\u00fcWrite", ("the token holds characters",)),
        ("anna", WRITE, ("'anna' can be no Hub repository", "USER/NAME")),
        ("anna/a b", WRITE, ("can be no Hub repository",)),
        ("anna/new@main", WRITE, ("can be no Hub repository",)),
        ("models/anna/new", WRITE, ("can be no Hub repository",)),
    ],
)
def test_wrong_names_and_tokens(
    run: Callable[..., Done], server: HubServer, trained: Path, hub_id: str, token: str | None, parts: tuple[str, ...]
) -> None:
    for command in (("push", trained, hub_id), ("deploy", hub_id)):
        one_line(run("emotion", *command, token=token), *parts)
    assert "anna/new" not in server.models.keys() | server.spaces.keys()


def test_a_refusal_that_quotes_the_token_is_not_passed_on(
    run: Callable[..., Done], server: HubServer, trained: Path
) -> None:
    server.faults.append(Fault("repos/create", 418, message=f"{WRITE} is a teapot"))
    one_line(run("emotion", "push", trained, "anna/tea"), "(HTTP 418: ... is a teapot)")


def test_only_a_whole_checkpoint_is_published(
    run: Callable[..., Done], server: HubServer, trained: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(trained, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:-9])
    one_line(run("emotion", "push", damaged, "anna/damaged"), "damaged")
    (damaged / "model.safetensors").unlink()
    one_line(run("emotion", "push", damaged, "anna/damaged"), "model.safetensors does not exist")
    one_line(run("emotion", "push", tmp_path / "none", "anna/damaged"), "does not exist")
    assert "anna/damaged" not in server.models


# --- Loading back


def test_loading_says_what_is_wrong(
    run: Callable[..., Done], server: HubServer, published: Done, trained: Path
) -> None:
    server.models["anna/gated"] = Repository(gated=True)
    server.models["anna/fresh"] = Repository(commits=[server.models["anna/faces"].files])
    for arguments, token, part in (
        (("anna/none",), WRITE, "no such repository is visible; check the name"),
        (("runs/bset",), None, "no local folder or file is named 'runs/bset', and on the Hub no such repository"),
        (("anna/fresh",), UNKNOWN, "the token is not accepted; run `hf auth login` again, or correct HF_TOKEN"),
        (("anna/fresh",), "hf_\u00fcWrite", "the token cannot be sent, since it holds letters that no token has"),
        (("anna/gated",), WRITE, "gated; ask for access"),
        (("anna/faces@v9",), WRITE, "that repository has no revision 'v9'"),
        (("anna/faces@",), WRITE, "'anna/faces@' does not exist"),
        (("anna/faces@main", "cpu", "v1"), WRITE, "'anna/faces@main' names a revision already"),
    ):
        done = run("load", *arguments, token=token)
        assert done.status == 2
        assert part in done.err.splitlines()[-1]


def test_the_token_is_never_needed_for_what_is_cached(
    run: Callable[..., Done], server: HubServer, published: Done
) -> None:
    assert run("load", "anna/faces", token=None).out == "1.25\n"
    server.faults.append(Fault("anna/faces/resolve", 503, times=99))
    assert run("load", "anna/faces", token=None).out == "1.25\n"


def test_a_huge_file_is_refused_before_it_is_downloaded(
    run: Callable[..., Done], server: HubServer, published: Done
) -> None:
    server.models["anna/huge"] = Repository(commits=[dict(server.models["anna/faces"].files)])
    server.claimed_sizes["model.safetensors"] = 12_345_678_901
    try:
        done = run("load", "anna/huge")
    finally:
        server.claimed_sizes.clear()
    assert done.err.startswith("ValueError: model.safetensors of 'anna/huge' has 12,345,678,901 bytes")
    assert "GET /anna/huge/resolve/main/model.safetensors" not in server.requests


def test_offline_the_message_is_clear(run: Callable[..., Done], server: HubServer) -> None:
    server.faults.append(Fault("anna/offline", None, times=99))
    done = run("load", "anna/offline")
    assert done.err.splitlines()[-1].endswith("; check the connection and try again.")
    assert "on the Hub no usable answer came" in done.err


def test_the_offline_switch_is_named(server: HubServer, tmp_path: Path) -> None:
    program = "import sys\nfrom emotion.checkpoint import load_checkpoint\n"
    program += "try: load_checkpoint('anna/none')\nexcept FileNotFoundError as error: print(error)"
    variables = environment(server, tmp_path) | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert "on the Hub nothing was asked, since HF_HUB_OFFLINE is set" in done.stdout


# --- The model card


def card_of(server: HubServer, name: str) -> ModelCard:
    return ModelCard(server.models[name].files["README.md"].decode())


def test_the_card_carries_the_checkpoints_own_figures(published: Done, server: HubServer) -> None:
    card = card_of(server, "anna/faces")
    data = card.data.to_dict()
    assert (data["license"], data["pipeline_tag"], data["library_name"]) == ("mit", "image-classification", "pytorch")
    assert data["datasets"] == ["fer2013", "ferplus"]
    assert "facial-expression-recognition" in data["tags"]
    values = {
        result.metric_name: result.metric_value for result in card.data.eval_results if result.metric_type == "accuracy"
    }
    assert sorted(values.values()) == [0.7011, 0.7123, 0.7188]
    assert {(r.dataset_type, r.dataset_split) for r in card.data.eval_results} == {("fer2013", "PublicTest")}
    for part in (
        'EmotionPredictor.from_checkpoint("anna/faces")',
        "| one view | PublicTest | fer2013 | 3,589 | 71.2% | 69.8% to 72.7% | 66.0% | 2.1% |",
        "validation figures, not test figures",
        "| angry | 500 | 50.0% | 61.3% | 55.0% |",
        "| fear | 200 | 201 | 202 | 203 | 204 | 205 | 206 |",
        "temperature of 1.250",
        "68.4% of the faces get a probability of at least 55.0%; of those answers 82.9% are right",
        "| blur | 61.0% | 52.0% | 43.0% |",
        "training run of 2 epochs",
        "| optimizer | sgd |",
        "(confusion.png)",
        "(reliability.png)",
        "10.1177/1529100619832930",
        "consent",
        "demographic labels",
        "article 5(1)(f)",
        "has not been measured",
    ):
        assert part in card.text, part
    # The three lines of the card are a program.
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line]) == 3
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    "metrics",
    [
        None,
        [],
        "none",
        {"accuracy": 0.5},
        {"plain": None, "robustness": [], "clear_answer": 3},
        {
            "plain": {
                "accuracy": "high",
                "interval": [1],
                "confusion": [[1]],
                "labels": ["a", "b"],
                "per_class": {"a": 1},
            }
        },
        {"plain": {"split": 3, "rows": None, "interval": None, "confusion": 7, "labels": "ab", "per_class": []}},
        {"robustness": {"accuracy": {"blur": [None, "x"], "noise": []}}, "clear_answer": {"threshold": True}},
        {
            "plain": {
                "accuracy": float("nan"),
                "ece": float("inf"),
                "balanced_accuracy": 10**400,
                "interval": [-1e999, 1],
            }
        },
    ],
)
def test_what_the_checkpoint_does_not_know_is_not_measured(metrics: Any) -> None:
    card = model_card(EmotionCNN(3, labels=LABELS), "bob/mine", metrics=metrics, history={}, training_config=["?"])
    assert check_metadata(str(card), "model") == []
    assert "model-index" not in card.data.to_dict() and "datasets" not in card.data.to_dict()
    assert "naïve calm" in card.text
    assert card.text.lower().count("not measured") >= 5
    assert not re.search(r"\d\.\d%", card.text)
    assert "FER2013" not in card.text and ".png" not in card.text


def test_the_card_names_the_networks_that_this_one_learned_from() -> None:
    heir = {"config": {"start_from": "runs/a", "teachers": ["runs/b", "anna/c"]}}
    text = model_card(EmotionCNN(), "bob/mine", training_config=heir).text
    assert "called `runs/a` where it was trained" in text
    assert "called `runs/b, anna/c` where it was trained" in text
    voters = heir | {"origins": {"runs/b": {"origins": {"runs/0": {"config": {"soft_targets": True}}}}}}
    for config, datasets in ((heir, ["fer2013"]), (voters, ["fer2013", "ferplus"])):
        assert model_card(EmotionCNN(), "bob/mine", METRICS, training_config=config).data.datasets == datasets
    for alone in ({"config": {"start_from": None, "teachers": []}}, {"config": {"teachers": 5}}, {}):
        assert "where it was trained" not in model_card(EmotionCNN(), "bob/mine", training_config=alone).text


@pytest.mark.parametrize(
    ("split", "kind"),
    [("PublicTest", "validation"), ("10% held out", "validation"), ("PrivateTest", "test"), ("Training", "training")],
)
def test_the_card_says_what_kind_of_split_was_measured(split: str, kind: str) -> None:
    text = model_card(EmotionCNN(), "bob/mine", metrics={"plain": RESULT | {"split": split}}).text
    assert re.findall(r"\*\*(\w+) figures", text) == [kind]
    assert "mirror image" not in text  # which was not measured here


def test_the_card_says_what_the_mirror_image_costs_where_it_was_measured() -> None:
    text = " ".join(model_card(EmotionCNN(), "bob/mine", METRICS).text.split())
    assert "The Space's page and `predict` use one view; the mean with the mirror image takes twice the work." in text


@pytest.mark.parametrize("split", ["validation", "10% held out of the training split", "Training"])
def test_figures_on_faces_of_unknown_origin_claim_none(split: str) -> None:
    """Names that class folders and a CSV of FER2013 have in common, or that it is called by when it is cut."""
    card = model_card(EmotionCNN(), "bob/mine", metrics={"plain": RESULT | {"split": split}})
    assert check_metadata(str(card), "model") == []
    assert {result.dataset_type for result in card.data.eval_results} == {"unknown"}
    assert f"| one view | {split} |" in card.text and not re.search("FER2013|folders", card.text)


def test_the_model_index_tells_votes_from_fer2013s_labels_and_validation_from_test() -> None:
    """A leaderboard shows a figure without the text around it."""
    for split, label_set, expected in (
        ("PublicTest", "fer2013", ("fer2013", "FER2013", "validation accuracy, one view")),
        ("PublicTest", "ferplus", ("ferplus", "FER+, the majority of the votes", "validation accuracy, one view")),
        ("PrivateTest", "ferplus", ("ferplus", "FER+, the majority of the votes", "test accuracy, one view")),
        ("train", "own", ("imagefolder", "class folders", "training accuracy, one view")),
        ("train", "fer2013", ("unknown", "faces that the checkpoint does not name", "training accuracy, one view")),
    ):
        metrics = {"plain": RESULT | {"split": split, "label_set": label_set}}
        first, *_ = model_card(EmotionCNN(), "bob/mine", metrics=metrics).data.eval_results
        assert (first.dataset_type, first.dataset_name, first.metric_name) == expected


def test_the_server_refuses_bad_metadata_as_the_hub_does() -> None:
    """Without this, every test that a card is valid could pass for nothing."""
    good = str(model_card(EmotionCNN(), "bob/mine", metrics=METRICS))
    assert check_metadata(good, "model") == []
    for old, new in (
        ("license: mit", "license: own"),
        ("type: fer2013", "type: fer 2013"),
        ("- fer2013", "- fer 2013"),
        ("---\n", ""),
        ("value: 0.7123", "value: null"),
    ):
        assert check_metadata(good.replace(old, new, 1), "model"), new


# --- The Space


@pytest.fixture(scope="module")
def deployed(run: Callable[..., Done], server: HubServer, trained: Path) -> Done:
    return run("emotion", "deploy", "anna/demo", "--checkpoint", trained, "--hardware", "t4-small")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git knows what belongs to the project")
def test_the_space_gets_exactly_what_it_needs(deployed: Done, server: HubServer, trained: Path) -> None:
    assert deployed.status == 0
    space = server.spaces["anna/demo"]
    assert (space.sdk, space.hardware, len(space.commits)) == ("gradio", "t4-small", 2)
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "emotion", "examples", "docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert tracked
    names = [file.name for file in trained.iterdir() if file.suffix in (".json", ".png", ".safetensors")]
    assert set(space.files) == {
        ".gitattributes",
        "app.py",
        "requirements.txt",
        "README.md",
        "LICENSE",
        "SECURITY.md",
        *tracked,
        *(f"checkpoints/best/{name}" for name in names),
    }
    assert space.files["checkpoints/best/model.safetensors"] == (trained / "model.safetensors").read_bytes()
    assert space.files["app.py"] == (ROOT / "app.py").read_bytes()


def test_the_spaces_own_readme_names_it(deployed: Done, server: HubServer) -> None:
    content = server.spaces["anna/demo"].files["README.md"].decode()
    assert check_metadata(content, "space") == []
    ours = (ROOT / "README.md").read_text("utf-8")
    data, before = (yaml.safe_load(text.split("---\n")[1]) for text in (content, ours))
    assert data.pop("thumbnail") == f"{server.address}/spaces/anna/demo/resolve/main/{before.pop('thumbnail')}"
    assert data == before
    assert content.split("---\n", 2)[2] == ours.split("---\n", 2)[2]


def test_the_space_runs_with_what_it_got(deployed: Done, server: HubServer, trained: Path, tmp_path: Path) -> None:
    for name, content in server.spaces["anna/demo"].files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    program = (
        "import emotion, emotion.networks, emotion.ui\n"
        "networks = emotion.networks.load_networks()\n"
        "emotion.ui.build_page(networks)\n"
        "print(emotion.__file__, *((name, network.predictor.model.temperature) for name, network in networks.items()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path / 'emotion' / '__init__.py'} ('best', 1.25)\n"


def test_an_update_mirrors_the_project_and_spares_what_others_added(
    run: Callable[..., Done], server: HubServer, deployed: Done, published: Done
) -> None:
    space = server.spaces["anna/demo"]
    old = {"emotion/old.py": b"", "checkpoints/best/config.json": b"{}", "checkpoints/other/config.json": b"{}"}
    theirs = {"data/words.txt": b"mine", "packages.txt": b"ffmpeg"}
    space.commits.append(space.files | old | theirs)
    done = run("emotion", "deploy", "anna/demo", "--checkpoint", "anna/faces@main")
    assert done.status == 0
    assert {name.split("/")[1] for name in space.files if name.startswith("checkpoints/")} == {"faces"}
    assert not old.keys() & space.files.keys()
    assert theirs.items() <= space.files.items()
    assert "deleted   emotion/old.py" in done.out
    # A published network is linked from the Space.
    assert yaml.safe_load(space.files["README.md"].decode().split("---\n")[1])["models"] == ["anna/faces"]
    assert space.hardware == "t4-small"
    commits = len(space.commits)
    assert "already held:" in run("emotion", "deploy", "anna/demo", "--checkpoint", "anna/faces").out
    assert len(space.commits) == commits


def test_the_shipped_network_is_deployed_by_default(run: Callable[..., Done]) -> None:
    done = run("emotion", "deploy", "anna/plain", "--dry-run", token=None)
    for file in (ROOT / "checkpoints" / "ferplus").iterdir():
        assert f"{file.stat().st_size:>12,}  checkpoints/ferplus/{file.name}\n" in done.out


def test_hardware_is_checked(run: Callable[..., Done], server: HubServer, trained: Path) -> None:
    done = run("emotion", "deploy", "anna/fast", "--hardware", "gpu", "--dry-run")
    one_line(done, "hardware is 'gpu'", "cpu-basic", "t4-small")
    server.faults.append(Fault("hardware", 402, message="Add a payment method"))
    done = run("emotion", "deploy", "anna/fast", "--hardware", "t4-small")
    one_line(done, "anna/fast is up to date but did not get t4-small", "Add a payment method")
    assert "app.py" in server.spaces["anna/fast"].files


def test_a_space_with_a_network_that_does_not_load_is_not_deployed(
    run: Callable[..., Done], server: HubServer, tmp_path: Path
) -> None:
    one_line(run("emotion", "deploy", "anna/bad", "--checkpoint", tmp_path / "none"), "does not exist")
    assert "anna/bad" not in server.spaces


@pytest.mark.parametrize("how", ["private", "gated"])
def test_weights_that_not_everybody_can_get_are_deployed_into_a_private_space_only(
    run: Callable[..., Done], server: HubServer, published: Done, how: str
) -> None:
    weights = server.models["anna/faces"]
    setattr(weights, how, "manual" if how == "gated" else True)
    try:
        planned = run("emotion", "deploy", f"anna/{how}", "--checkpoint", "anna/faces", "--dry-run")
        assert f"spaces/anna/{how} would be private and hold:" in planned.out
        done = run("emotion", "deploy", f"anna/{how}", "--checkpoint", "anna/faces@main")
        assert server.spaces[f"anna/{how}"].private
        assert "private, because anna/faces@main is private or gated" in done.out
        server.spaces["anna/open"] = Repository(False, "gradio")
        refused = run("emotion", "deploy", "anna/open", "--checkpoint", "anna/faces")
        one_line(refused, "anna/open exists and is public; make it private in its settings, or give a --checkpoint")
        assert "app.py" not in server.spaces["anna/open"].files
        server.faults.append(Fault("api/models/anna/faces", 503, times=99))
        refused = run("emotion", "deploy", "anna/unsure", "--checkpoint", "anna/faces")
        one_line(refused, "whether anna/faces is private could not be asked", "HTTP 503")
        assert "anna/unsure" not in server.spaces
    finally:
        setattr(weights, how, False)
        server.faults.clear()
    assert "private" not in run("emotion", "deploy", "anna/free", "--checkpoint", "anna/faces").out
    assert not server.spaces["anna/free"].private


@pytest.mark.parametrize("header", ["title: [", "- a list"])
def test_a_readme_with_a_broken_front_matter_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: Path, header: str
) -> None:
    for name in hub.SPACE_FILES:
        (tmp_path / name).write_text(f"---\n{header}\n---\n# Page\n")
    monkeypatch.setattr(hub, "ROOT", tmp_path)
    for name in hub.SPACE_FOLDERS:
        with pytest.raises(FileNotFoundError, match=f"has no {name}; deploy from a whole copy of the project"):
            hub.deploy("anna/broken", trained, dry_run=True)
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="README.md has no settings of a Space between") as error:
        hub.deploy("anna/broken", trained, dry_run=True)
    assert "\n" not in str(error.value)


# --- The README's front matter


def test_the_front_matter_is_complete() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    data = yaml.safe_load(text.split("---\n")[1])
    required = "title emoji colorFrom colorTo sdk sdk_version python_version app_file license short_description models"
    assert set(data) == {*required.split(), "datasets", "tags", "thumbnail", "suggested_hardware"}
    pins = dict(re.findall(r"^(\w+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert (data["sdk"], data["sdk_version"]) == ("gradio", pins["gradio"])
    assert data["python_version"] in ("3.10", "3.12")  # What GPU Spaces offer.
    assert {data["colorFrom"], data["colorTo"]} <= COLOURS
    assert 0 < len(data["short_description"]) <= 60
    assert len(data["emoji"]) == 1 and not data["emoji"].isascii()
    assert data["suggested_hardware"] in [hardware.value for hardware in SpaceHardware]
    assert data["license"] == "mit" and "MIT License" in (ROOT / "LICENSE").read_text()
    for name in (data["app_file"], data["thumbnail"]):
        assert (ROOT / name).is_file()


# --- train.py --push-to-hub


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn faces in class folders."""
    folder = tmp_path_factory.mktemp("faces")
    for split, count in (("train", 28), ("validation", 14)):
        dataset = demo.make_dataset(count, seed=len(split))
        for number, (image, index) in enumerate(zip(dataset.images.numpy(), dataset.class_indices, strict=True)):
            file = folder / split / dataset.labels[index] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return folder


TINY = ("--epochs", "1", "--image-sizes", "16", "--batch-size", "14", "--precision", "float32")


def test_training_can_end_on_the_hub(run: Callable[..., Done], server: HubServer, faces: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    call = ("train", "--data", faces, "--output", output, *TINY, "--push-to-hub")
    for hub_id, token, part in (("trained", WRITE, "can be no Hub repository"), ("anna/trained", None, "no token")):
        one_line(run(*call, hub_id, token=token), part)
        assert not output.exists()  # Refused before a single step.
    done = run(*call, "anna/trained")
    assert done.status == 0, done.err
    assert f"{server.address}/anna/trained holds:" in done.out
    files = server.models["anna/trained"].files
    for file in output.iterdir():
        if file.suffix != ".pt":
            assert files[file.name] == file.read_bytes()
    assert "training_state.pt" not in files
    accuracy = json.loads(files["metrics.json"])
    assert accuracy


def test_a_training_whose_push_fails_is_not_lost(
    run: Callable[..., Done], server: HubServer, faces: Path, tmp_path: Path
) -> None:
    output = tmp_path / "my run"
    done = run("train", "--data", faces, "--output", output, *TINY, "--push-to-hub", "anna/late", token=READ)
    assert done.status == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("train.py:")]
    command = f"python -m emotion push '{output}' anna/late"
    assert f"the network is in {output}" in line and "lacks the permission" in line and line.endswith(command)
    assert run("emotion", *shlex.split(command)[3:]).status == 0
    assert "model.safetensors" in server.models["anna/late"].files
