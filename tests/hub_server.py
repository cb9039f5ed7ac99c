"""The Hub's routes on the loopback interface, as far as the real huggingface_hub client uses them here.

Written after the client's requests and the Hub's documented metadata (huggingface.co/docs/hub). It keeps repositories
with commits, checks tokens, metadata and checksums as the Hub does, and can be told to fail.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

WRITE, READ = "hf_writeWriteWrite", "hf_readReadRead"
"""The tokens of Anna, who may write to `anna/...`; every other token is unknown."""
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
REPO = r"(?P<type>models|spaces)/(?P<id>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    private: bool = False
    sdk: str | None = None
    hardware: str | None = None
    gated: bool | str = False  # "manual": but open to Anna
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.png filter=lfs\n"}])
    tags: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def oid(self, number: int) -> str:
        return hashlib.sha1(f"{id(self)} {number}".encode()).hexdigest()

    def at(self, revision: str) -> tuple[dict[str, bytes], str] | None:
        """Files and commit of a branch, tag or commit."""
        numbers = {"main": len(self.commits) - 1, **self.tags, **{self.oid(n): n for n in range(len(self.commits))}}
        number = numbers.get(revision)
        return None if number is None else (self.commits[number], self.oid(number))


@dataclass
class Fault:
    """The next `times` requests whose method and path match `pattern` fail."""

    pattern: str
    status: int | None  # None: the connection is cut when half of the request has arrived
    times: int = 1
    message: str = ""


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.models: dict[str, Repository] = {}
        self.spaces: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.claimed_sizes: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []

    def handle_error(self, *_: object) -> None:
        pass  # A client that goes away is no fault of the server's.


@contextmanager
def serving() -> Iterator[HubServer]:
    """A Hub that answers until the block ends."""
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, body: Any = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.body = body or {"error": message}


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        path = self.path.split("?")[0]
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        size = int(self.headers.get("Content-Length") or 0)
        faults = (fault for fault in self.server.faults if fault.times and re.search(fault.pattern, request))
        fault = next(faults, None)
        if fault:
            fault.times -= 1
            if fault.status is None:
                self.rfile.read(size // 2)
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
        content = self.rfile.read(size)
        try:
            if fault:
                raise Refused(fault.status, fault.message)
            for pattern, method in ROUTES:
                if found := re.fullmatch(pattern, request):
                    method(self, content, **found.groupdict())
                    return
            raise Refused(404, f"no route {request}")
        except Refused as refused:
            headers = {"X-Error-Message": " ".join(refused.message.split())}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            self.answer(refused.body, refused.status, headers)

    do_GET = do_HEAD = do_PUT = do_POST

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    # Who asks, and for what

    def token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token not in (None, WRITE, READ):
            raise Refused(401, "Invalid credentials in Authorization header")
        return token

    def writer(self, owner: str) -> None:
        if self.token() is None:
            raise Refused(401, "Invalid username or password.")
        if self.token() != WRITE or owner.split("/")[0] != "anna":
            raise Refused(403, "You don't have the rights to create a model under this namespace")

    def repository(self, type: str, id: str) -> Repository:
        repository = getattr(self.server, type).get(id)
        if repository is None or (repository.private and self.token() is None):
            raise Refused(404 if self.token() else 401, "Repository not found", "RepoNotFound")
        self.token()
        return repository

    # Routes

    def create(self, content: bytes) -> None:
        wanted = json.loads(content)
        self.writer(wanted["organization"])
        repositories = self.server.spaces if wanted.get("type") == "space" else self.server.models
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in repositories:
            raise Refused(409, "You already created this repo", body={"url": f"{self.server.address}/{name}"})
        private = wanted.get("private") is True or wanted.get("visibility") == "private"
        repositories[name] = Repository(private, wanted.get("sdk"))
        self.answer({"url": f"{self.server.address}/{name}"})

    def info(self, _: bytes, type: str, id: str) -> None:
        repository = self.repository(type, id)
        names = [{"rfilename": name} for name in repository.files]
        sha = repository.oid(len(repository.commits) - 1)
        visible = {"private": repository.private, "gated": repository.gated}
        self.answer({"id": id, "sha": sha, **visible, "siblings": names})

    def tree(self, _: bytes, type: str, id: str, revision: str) -> None:
        files, _commit = self.repository(type, id).at(revision)
        entries = [{"type": "file", "path": name, "size": len(data), "oid": ""} for name, data in files.items()]
        self.answer(entries)

    def validate(self, content: bytes) -> None:
        wanted = json.loads(content)
        errors = check_metadata(wanted["content"], wanted["repoType"])
        if errors:
            raise Refused(400, "Invalid metadata", body={"errors": [{"message": error} for error in errors]})
        self.answer({"errors": [], "warnings": []})

    def preupload(self, content: bytes, type: str, id: str) -> None:
        self.writer(id)
        present = self.repository(type, id).files
        answers = []
        for file in json.loads(content)["files"]:
            name = file["path"]
            large = b"\0" in base64.b64decode(file["sample"])
            oid = None
            if name in present:
                data = present[name]
                blob = f"blob {len(data)}\0".encode() + data
                oid = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(blob).hexdigest()
            answers.append(
                {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        self.answer({"files": answers})

    def batch(self, content: bytes, id: str) -> None:
        self.writer(id.removeprefix("spaces/"))
        objects = []
        for wanted in json.loads(content)["objects"]:
            item = dict(wanted)
            if wanted["oid"] not in self.server.large:
                item["actions"] = {
                    "upload": {"href": f"{self.server.address}/large/{wanted['oid']}"},
                    "verify": {"href": f"{self.server.address}/verify"},
                }
            objects.append(item)
        self.answer({"transfer": "basic", "objects": objects})

    def put(self, content: bytes, oid: str) -> None:
        if self.headers.get("Authorization"):
            raise Refused(400, "storage must not see the token")
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "checksum")
        self.server.large[oid] = content
        self.answer({})

    def verify(self, content: bytes) -> None:
        wanted = json.loads(content)
        if len(self.server.large.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, "not uploaded")
        self.answer({})

    def commit(self, content: bytes, type: str, id: str) -> None:
        self.writer(id)
        repository = self.repository(type, id)
        files = dict(repository.files)
        for line in content.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            elif operation["key"] != "header":
                raise Refused(400, operation["key"])
        repository.commits.append(files)
        oid = repository.oid(len(repository.commits) - 1)
        self.answer({"commitUrl": f"{self.server.address}/{id}/commit/{oid}", "commitOid": oid, "success": True})

    def hardware(self, content: bytes, id: str) -> None:
        self.writer(id)
        self.repository("spaces", id).hardware = json.loads(content)["flavor"]
        self.answer({"stage": "BUILDING", "hardware": {"current": None, "requested": None}, "gcTimeout": None})

    def resolve(self, _: bytes, id: str, revision: str, file: str) -> None:
        repository = self.repository("models", id)
        if repository.gated is True:
            raise Refused(403, "Access to this model is restricted", "GatedRepo")
        found = repository.at(revision)
        if found is None:
            raise Refused(404, "Invalid rev id", "RevisionNotFound")
        files, oid = found
        if file not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content = files[file]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": oid}
        if file in self.server.claimed_sizes:
            headers["X-Linked-Size"] = str(self.server.claimed_sizes[file])
        self.answer(content, headers=headers)


ROUTES = [
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET /api/{REPO}(?:/revision/main)?", Handler.info),
    (rf"GET /api/{REPO}/tree/(?P<revision>\w+)", Handler.tree),
    (rf"POST /api/{REPO}/preupload/main", Handler.preupload),
    (rf"POST /api/{REPO}/commit/main", Handler.commit),
    (r"POST /api/spaces/(?P<id>[\w.-]+/[\w.-]+)/hardware", Handler.hardware),
    (r"POST /(?P<id>.+)\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /large/(?P<oid>\w+)", Handler.put),
    (r"POST /verify", Handler.verify),
    (r"(?:GET|HEAD) /(?P<id>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.resolve),
]


def check_metadata(content: str, repo_type: str) -> list[str]:
    """What the Hub would object to in a README's metadata.

    Rules: huggingface.co/docs/hub/spaces-config-reference and .../model-cards, and the messages that people quote
    (such as github.com/embeddings-benchmark/mteb/issues/1111 for the pattern of a data set's type).
    """
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if not found:
        return ["empty or missing yaml metadata in repo card"]
    data = yaml.safe_load(found.group(1))
    errors = []
    if data.get("license") not in ("mit", "apache-2.0"):
        errors.append('"license" must be one of [mit, apache-2.0, ...]')
    identifier = re.compile(r"(?:[\w-]+/)?[\w.-]+")
    errors += [f'"{key}" must hold identifiers' for key in ("datasets", "models") for name in data.get(key) or ()
               if not identifier.fullmatch(name)]  # fmt: skip
    errors += [f'"{key}" must be a list of strings' for key in ("tags", "datasets", "models", "metrics")
               if not all(isinstance(name, str) for name in data.get(key, []))]  # fmt: skip
    if repo_type == "space":
        errors += [f'"{key}" must be a colour' for key in ("colorFrom", "colorTo") if data.get(key) not in COLOURS]
        if data.get("sdk") not in ("gradio", "docker", "static"):
            errors.append('"sdk" must be one of [gradio, docker, static]')
        if len(data.get("short_description", "")) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
        if not re.fullmatch(r"https?://.+", data.get("thumbnail", "http://none")):
            errors.append('"thumbnail" must be a valid uri')
        if not isinstance(data.get("python_version", ""), str):
            errors.append('"python_version" must be a string')
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str):
            errors.append('"model-index[0].name" must be a string')
        for result in model["results"]:
            if not isinstance(result["task"]["type"], str) or not isinstance(result["dataset"]["name"], str):
                errors.append('"task.type" and "dataset.name" must be strings')
            if not identifier.fullmatch(result["dataset"]["type"]):
                errors.append('"dataset.type" fails to match the required pattern')
            errors += ['"metrics.value" is required' for metric in result["metrics"]
                       if not isinstance(metric["type"], str) or metric.get("value") is None]  # fmt: skip
    return errors
