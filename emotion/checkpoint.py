"""Checkpoints: weights, configuration and metadata in a folder that is also a Hub model repository, or in one `.pth`.

Nothing that is read here executes code, and nothing is believed: weights are safetensors, or a `.pth` of tensors and
plain values only, and every tensor's name, shape, type and values are checked against the network first.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from torch import Tensor

from emotion.model import EmotionCNN

CONFIG_KEYS = ("num_classes", "dropout_rate", "labels", "temperature")
"""Arguments of `EmotionCNN` in `config.json` and a `.pth`'s `model_config`; only `num_classes` is required."""
METADATA = ("history", "metrics", "training_config")
"""What a checkpoint folder may hold beside configuration and weights, each as `NAME.json`."""
# Far above what this project writes (a few kB, 27 MB, about 140 MB), far below what would hurt a machine.
MAX_JSON_BYTES = 4 * 2**20
MAX_SAFETENSORS_BYTES = 64 * 2**20
MAX_PTH_BYTES = 512 * 2**20
ACCEPTED = "give a checkpoint folder, a .pth file or a Hub id such as 'user/name' or 'user/name@revision'"


@contextmanager
def atomic_write(file: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `file`, which becomes `file` only when the block ends without an error.

    Whoever reads `file`, also after a kill or a power cut, finds the previous content or the new one, never a part.

    Raises:
        OSError: if it cannot be written, such as on a full disk or in a folder that is read-only.
    """
    file = Path(file)
    # The name is always the same, so that what a kill leaves behind is overwritten by the next attempt.
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with suppress(FileExistsError):  # as a folder, or as a file, which opening one in it tells better
            file.parent.mkdir(parents=True)
        yield temporary
        with open(temporary, "r+b") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    except OSError as error:
        if error.errno is None:  # a sentence already
            raise
        raise OSError(
            f"Cannot write {file}: {error.strerror}. Make room or give another folder; what it held is unchanged."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def save_checkpoint(
    model: EmotionCNN,
    folder: str | Path,
    *,
    history: Any = None,
    metrics: Any = None,
    training_config: Any = None,
) -> Path:
    """Write `config.json`, `model.safetensors` and the metadata given; metadata not given stays as it is on disk.

    Convolution and dense weights are stored as float16, which halves the file; biases and batch norm, whose statistics
    can leave float16's range, as float32. The folder can be loaded by `load_checkpoint` and by
    `EmotionCNN.from_pretrained(folder, strict=True)`, and pushed to the Hub as it is.

    Args:
        model: the network, on any device; its current labels and temperature are saved.
        folder: created if missing.
        history: JSON-ready record of the training.
        metrics: JSON-ready figures of these weights.
        training_config: JSON-ready configuration of the training.

    Returns:
        The folder.

    Raises:
        ValueError: if a weight is not finite or too large for float16, or metadata is not plain JSON; nothing is
            written then.
        OSError: if a file cannot be written; then none is replaced.
    """
    config, weights = _snapshot(model)
    for name, tensor in weights.items():
        if tensor.ndim > 1:
            weights[name] = tensor.half()
            if not weights[name].isfinite().all():
                raise ValueError(
                    f"{name} holds {tensor.abs().max():.3g}, but float16 ends at 65504; lower the learning rate or "
                    "raise the weight decay."
                )
    documents = {"config": config, "history": history, "metrics": metrics, "training_config": training_config}
    # The digest lets the reader notice damage, which safetensors does not. It stands alone, because safetensors writes
    # several entries in random order, and the same weights shall give the same file.
    files = {"model.safetensors": safetensors.torch.save(weights, {"sha256": _digest(weights)})}
    files |= {f"{name}.json": to_json(name, value) for name, value in documents.items() if value is not None}
    folder = Path(folder)
    # No file is replaced before all are written. The stack replaces the first one last: where a save is cut in between,
    # weights never stand without the configuration that they need.
    with ExitStack() as stack:
        for name, content in files.items():
            stack.enter_context(atomic_write(folder / name)).write_bytes(content)
    return folder


def load_checkpoint(
    path_or_hub_id: str | Path, device: str | torch.device = "cpu", revision: str | None = None
) -> EmotionCNN:
    """Load a network from a checkpoint folder, a `.pth` file or the Hub, strictly and without executing code.

    A local folder or file wins over a Hub id of the same name. From the Hub only `config.json` and
    `model.safetensors` are taken, never a pickle.

    Args:
        path_or_hub_id: folder, `.pth` file, "user/name", or "user/name@revision".
        device: where the network shall live.
        revision: branch, tag or commit; only for a Hub id that names none itself.

    Returns:
        The network in eval mode, in float32.

    Raises:
        FileNotFoundError: if there is no such folder, file, repository or revision, or a file in it is missing.
        ValueError: if a file is damaged, foreign, too large, or not exactly this network's weights.
    """
    if os.path.isfile(path_or_hub_id):
        if revision is not None:
            raise ValueError(
                f"revision {revision!r} is for the Hub, but {path_or_hub_id} is a local file; leave it out."
            )
        config, state = _read_pth(Path(path_or_hub_id))
        model = _build(config, path_or_hub_id)
        source = path_or_hub_id
    else:
        # The configuration is checked first: a foreign repository is refused before its weights are downloaded.
        file = locate(path_or_hub_id, "config.json", revision)
        model = _build(_read_json(file), file)
        source = locate(path_or_hub_id, "model.safetensors", revision)
        state = _read_safetensors(source)
    model.load_state_dict(_checked(state, model, source))
    return model.to(device).eval()


def load_metadata(path_or_hub_id: str | Path, name: str, revision: str | None = None) -> Any:
    """What `save_checkpoint` stored as 'history', 'metrics' or 'training_config', from a folder or the Hub.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or it has no such metadata (a `.pth` file never has).
        ValueError: if `name` is none of the three or the file is not JSON.
    """
    if name not in METADATA:
        raise ValueError(f"{name!r} is no metadata of a checkpoint; choose from {', '.join(METADATA)}.")
    return _read_json(locate(path_or_hub_id, f"{name}.json", revision))


def find_metadata(path_or_hub_id: str | Path, name: str) -> Any:
    """As `load_metadata`, but None where the checkpoint is known to lack it.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or a Hub that does not answer cannot say what it has.
        ValueError: if `name` is none of the three, or the file is not JSON or too large.
    """
    return load_metadata(path_or_hub_id, name) if find(path_or_hub_id, f"{name}.json") else None


def save_pth(
    model: EmotionCNN,
    file: str | Path,
    *,
    history: Any = None,
    training_config: Any = None,
    best_val_acc: float | None = None,
) -> Path:
    """Write the single-file checkpoint: float32 weights, configuration, labels and history, plain types only.

    Keys: `model_state_dict`, `model_config`, `training_config`, `label_map` (index to name), `training_history`,
    `best_val_acc` (percent) and `total_parameters`.

    Raises:
        ValueError: if a weight is not finite, metadata is not plain JSON, or `best_val_acc` is no percentage; nothing
            is written then.
        OSError: if the file cannot be written; what was there stays.
    """
    if best_val_acc is not None and not 0 <= best_val_acc <= 100:
        raise ValueError(f"best_val_acc is {best_val_acc!r}; give a percentage from 0 to 100.")
    config, weights = _snapshot(model)
    content = {
        "model_state_dict": weights,
        "model_config": config,
        "training_config": json.loads(to_json("training_config", training_config or {})),
        "label_map": dict(enumerate(model.labels)),
        "training_history": json.loads(to_json("history", history or {})),
        "best_val_acc": None if best_val_acc is None else float(best_val_acc),
        "total_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    with atomic_write(file) as temporary:
        _save_torch(content, temporary)
    return Path(file)


def save_training_state(state: Mapping[str, Any], file: str | Path) -> Path:
    """Write what a training needs to go on: tensors and plain values, in dicts, lists and tuples.

    Raises:
        ValueError: if `state` holds anything else, which could not be read back; the previous file stays then.
        OSError: if the file cannot be written; the previous one stays.
    """
    with atomic_write(file) as temporary:
        _save_torch(dict(state), temporary)
        try:
            load_training_state(temporary)
        except ValueError as error:
            raise ValueError(
                f"the training state for {file} could not be read back; give tensors and plain values only, "
                "and at most 512 MiB."
            ) from error
    return Path(file)


def load_training_state(file: str | Path) -> dict[str, Any]:
    """Read what `save_training_state` wrote, onto the CPU and without executing code.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged, too large, or holds more than tensors and plain values.
    """
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{file} does not exist; give the file of an interrupted training, or start afresh.")
    return _load_torch(Path(file))


def _snapshot(model: EmotionCNN) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights as they are now, checked; the weights are contiguous, float32 and on the CPU."""
    # Not the mixin's own configuration: that one dates from the construction and lacks a temperature fitted since.
    config = {key: getattr(model, key) for key in CONFIG_KEYS} | {"labels": list(model.labels)}
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    return config, _checked(state, _build(config, "the model"), "the model")


def _build(config: Any, source: str | Path) -> EmotionCNN:
    """The network that `config` describes, freshly initialised."""
    if not isinstance(config, dict) or "num_classes" not in config:
        raise ValueError(f"{source} is no configuration of this network (it has no num_classes); {ACCEPTED}.")
    try:
        with torch.random.fork_rng(devices=[]):  # Saving and loading must not change what a training draws next.
            return EmotionCNN(**{key: config[key] for key in CONFIG_KEYS if key in config})
    except ValueError as error:
        raise ValueError(f"{source} does not describe this network: {error}") from error


def _checked(state: Mapping[str, Any], model: EmotionCNN, source: str | Path) -> dict[str, Tensor]:
    """The tensors of `state` in `model`'s types; each must have `model`'s name, shape and kind, and be finite."""
    expected = model.state_dict()
    if state.keys() != expected.keys():
        missing = [name for name in expected if name not in state]
        unexpected = [str(name) for name in state if name not in expected]
        difference = " and ".join(
            f"{len(names)} {kind} ({names[0][:80]!r}, ...)"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        )
        raise ValueError(f"{source} is not this network's weights: tensors {difference}; {ACCEPTED}.")
    weights = {}
    for name, like in expected.items():
        tensor = state[name]
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.is_complex() or tensor.is_floating_point() != like.is_floating_point():
            raise ValueError(
                f"{source} is not this network's weights: {name} is not a plain tensor like {like.dtype}; {ACCEPTED}."
            )
        if tensor.shape != like.shape:
            raise ValueError(
                f"{source} is not this network's weights: {name} has shape {tuple(tensor.shape)}, but "
                f"{model.num_classes} classes need {tuple(like.shape)}; {ACCEPTED}."
            )
        weights[name] = tensor.detach().to(like.dtype).contiguous()
        if not weights[name].isfinite().all() or (name.endswith("running_var") and (weights[name] < 0).any()):
            raise ValueError(
                f"{source} holds NaN, infinity or a negative variance in {name}, so it cannot predict; use an "
                "earlier checkpoint."
            )
    return weights


def locate(path_or_hub_id: str | Path, name: str, revision: str | None = None) -> Path:
    """The file `name` of a checkpoint folder, or of a Hub repository after a download into the Hub's cache.

    Arguments are those of `load_checkpoint`; what is too large to be ours is refused before it is downloaded.

    Raises:
        FileNotFoundError: if there is no such folder, repository, revision or file, or the Hub does not give it.
        ValueError: if a revision is given for a local folder or twice, or the Hub's file is too large.
    """
    if os.path.isdir(path_or_hub_id):
        if revision is not None:
            raise ValueError(
                f"revision {revision!r} is for the Hub, but {path_or_hub_id} is a local folder; leave it out."
            )
        file = Path(path_or_hub_id) / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; {ACCEPTED} that has {name}.")
        return file
    if os.path.isfile(path_or_hub_id):
        raise FileNotFoundError(f"{path_or_hub_id} is one file, without {name}; give a checkpoint folder or a Hub id.")
    hub_id, at, pinned = str(path_or_hub_id).partition("@")
    if not isinstance(path_or_hub_id, str) or not is_hub_id(hub_id) or (at and not pinned):
        raise FileNotFoundError(f"{str(path_or_hub_id)!r} does not exist; {ACCEPTED}.")
    if pinned and revision is not None:
        raise ValueError(f"{path_or_hub_id!r} names a revision already; leave out revision {revision!r}.")
    revision = pinned or revision
    limit = MAX_SAFETENSORS_BYTES if name.endswith(".safetensors") else MAX_JSON_BYTES
    try:
        size = hf_hub_download(hub_id, name, revision=revision, dry_run=True).file_size or 0
        if size <= limit:
            return Path(hf_hub_download(hub_id, name, revision=revision))
    except RevisionNotFoundError as error:
        problem, cause = f"that repository has no revision {revision!r}; give a branch, tag or commit of it", error
    except EntryNotFoundError as error:
        problem, cause = f"that repository has no {name}; {ACCEPTED} of a model that this project wrote", error
        if isinstance(error, LocalEntryNotFoundError):  # The cache has none either: what the Hub said matters.
            problem = hub_problem(error)
    except Exception as error:  # Which errors a broken download raises depends on the Hub library's version.
        problem, cause = hub_problem(error), error
    else:
        raise ValueError(
            f"{name} of {path_or_hub_id!r} has {size:,} bytes, but this project's files have at most {limit:,}; "
            "nothing was downloaded, give a model that this project wrote."
        )
    raise FileNotFoundError(
        f"no local folder or file is named {path_or_hub_id!r}, and on the Hub {problem}."
    ) from cause


def find(path_or_hub_id: str | Path, name: str) -> Path | None:
    """As `locate`, but None where the checkpoint is known to lack the file.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or a Hub that does not answer cannot say what it has.
        ValueError: if the Hub's file is too large.
    """
    try:
        return locate(path_or_hub_id, name)
    except FileNotFoundError as error:
        cause = error.__cause__
        # A Hub that does not answer has not said that the file is not there.
        if isinstance(cause, LocalEntryNotFoundError) or not isinstance(cause, EntryNotFoundError | None):
            raise
        if cause is None and not os.path.exists(path_or_hub_id):
            raise
        return None


def is_hub_id(name: str) -> bool:
    """Whether `name` can be the USER/NAME of a Hub repository; nothing is looked up."""
    if name.count("/") != 1 or name.endswith((".pth", ".pt", ".safetensors")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def hub_problem(error: BaseException) -> str:
    """What went wrong on the Hub and what to do, as the end of a sentence that never holds a token.

    Args:
        error: whatever a function of `huggingface_hub` raised.
    """
    while not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "nothing was asked, since HF_HUB_OFFLINE is set; unset it"
    if isinstance(error, UnicodeError):  # of the header with the token
        return "the token cannot be sent, since it holds letters that no token has; run `hf auth login` again"
    if not isinstance(error, HfHubHTTPError):
        return f"no usable answer came ({type(error).__name__}); check the connection and try again"
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return "that model is gated; ask for access on its page, then run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository is visible; check the name, or run `hf auth login` if it is private"
    if status == 401:
        return "the token is not accepted; run `hf auth login` again, or correct HF_TOKEN"
    if status == 403:
        return "the token lacks the permission; use one with write access to that account, or another name"
    if status == 429:
        return "too many requests have arrived (HTTP 429); try again in a few minutes"
    if status >= 500:
        return f"something is broken (HTTP {status}); try again later"
    said = " ".join((error.server_message or "").replace(get_token() or "\0", "...").split())
    return f"the request was refused (HTTP {status}{': ' if said else ''}{said})"


def to_json(name: str, value: Any) -> bytes:
    """Content of a JSON file of a checkpoint.

    Args:
        name: of the document, for the error.
        value: what it holds: dicts, lists, text, and finite numbers.

    Raises:
        ValueError: if it holds anything else.
    """
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not plain JSON ({error}); give dicts, lists, text and finite numbers.") from error


def _read_json(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not a JSON file of at most 4 MiB; {ACCEPTED}.") from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        if file.stat().st_size > MAX_SAFETENSORS_BYTES:
            raise ValueError(f"larger than {MAX_SAFETENSORS_BYTES} bytes")
        # Opening checks the header against the size of the file, so that no tensor can claim more than there is.
        with safetensors.safe_open(file, framework="pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            stored = (opened.metadata() or {}).get("sha256")
        if stored is not None and stored != _digest(state):
            raise ValueError("the values do not match the digest")
    except Exception as error:  # A hostile file can make the parser raise anything.
        raise ValueError(
            f"{file} is damaged or not a safetensors file of at most 64 MiB; get it again, or {ACCEPTED}."
        ) from error
    return state


def _save_torch(content: dict[str, Any], file: Path) -> None:
    # Not into the file: where the disk is full, PyTorch does not say so, but fails an assertion of its own.
    stream = io.BytesIO()
    torch.save(content, stream)
    file.write_bytes(stream.getbuffer())


def _load_torch(file: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(record.file_size for record in archive.infolist()) > MAX_PTH_BYTES:
                raise ValueError(f"unpacks to more than {MAX_PTH_BYTES} bytes")
            # PyTorch itself does not look at the checksums.
            if archive.testzip() is not None:
                raise ValueError("a checksum is wrong")
        content = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"holds a {type(content).__name__}")
    except Exception as error:  # A hostile file can make the unpickler raise anything.
        raise ValueError(
            f"{file} is damaged, larger than 512 MiB, or not a PyTorch file (1.6 or later) of tensors and plain values "
            "in a dict; nothing else is loaded, because it could execute code."
        ) from error
    return content


def _read_pth(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and weights of a single-file checkpoint."""
    content = _load_torch(file)
    config, state = content.get("model_config"), content.get("model_state_dict")
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise ValueError(f"{file} lacks model_config or model_state_dict; {ACCEPTED}.")
    label_map = content.get("label_map")
    if config.get("labels") is None and label_map is not None:
        config = config | {"labels": _labels(label_map, file)}
    return config, state


def _labels(label_map: Any, file: Path) -> list[str]:
    """Class names in output order from {index: name} or {name: index}."""
    if isinstance(label_map, dict):
        names = {key: value for key, value in label_map.items() if isinstance(key, int)} or {
            value: key for key, value in label_map.items() if isinstance(value, int)
        }
        if len(names) == len(label_map) and names.keys() == set(range(len(names))):
            return [names[index] for index in range(len(names))]
    raise ValueError(f"{file} has a label_map that does not number its names from 0 up; save it as index to name.")
