"""The house keeps its floors, and every public name says what it is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import emotion

ROOT = Path(__file__).parents[1]
FLOORS = {
    "emotion.labels": 0,
    "emotion.runtime": 0,
    "emotion.transforms": 1,
    "emotion.faces": 1,
    "emotion.data": 1.1,
    "emotion.video": 1,
    "emotion.transfer": 1,
    "emotion.recipes": 2,
    "emotion.explain": 1,
    "emotion.model": 2,
    "emotion.checkpoint": 3,
    "emotion.trainer": 4.1,
    "emotion.evaluate": 4,
    "emotion.networks": 4.2,
    "emotion.runs": 4.2,
    "emotion.export": 4,
    "emotion.predict": 4.1,
    "emotion.follow": 4.2,
    "emotion.hub": 5,
    "emotion.ui.look": 5,
    "emotion.ui.tools": 5,
    "emotion.ui.guard": 5,
    "emotion.ui.inputs": 5.1,
    "emotion.ui.photo": 5.2,
    "emotion.ui.live": 5.2,
    "emotion.ui.video": 5.2,
    "emotion.ui.augmentation": 5.2,
    "emotion.ui.about": 5.2,
    "emotion.ui": 5.3,
    "emotion.demo": 5,
    "emotion.robustness": 5,
    "emotion.examples": 5,
    "emotion": 6,
    "emotion.__main__": 6,
    "app": 7,
    "train": 7,
}
"""A module imports only from floors below its own. What is planned but not built yet is listed too.
Floor 5 is one house for the page: its own floors are the decimals."""

SOURCES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in (*ROOT.glob("*.py"), *ROOT.glob("emotion/**/*.py"))
}
PUBLIC_API = [
    "create_enhanced_grayscale_model",
    "get_enhanced_transforms_grayscale_48",
    "RandomHorizontalFlip",
    "RandomRotation",
    "RandomAffine",
    "RandomPerspectiveSmall",
    "RandomContrast",
    "RandomBrightness",
    "RandomSharpness",
    "AdaptiveHistogramEqualization",
    "ToTensor",
    "Normalize",
    "GrayscaleNoise",
    "train_epoch",
    "validate_epoch",
    "load_and_predict_48x48_grayscale",
    "EmotionPredictor",
]
"""The names of the original description, and the predictor."""


def imported(module: str) -> Iterator[str]:
    """Full names of the modules that a module imports, at its top or within a function."""
    for node in ast.walk(ast.parse(SOURCES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno} of {SOURCES[module]}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from package import module` means the module, `from module import name` the module before "import".
            yield from (name if name in SOURCES else node.module for name in names)


def test_the_modules_are_found() -> None:
    assert {"emotion", "emotion.labels", "emotion.predict", "train"} <= SOURCES.keys()


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_from_floors_below_its_own(module: str) -> None:
    assert module in FLOORS, f"give {module} a floor in this test and in the table of the layout"
    used = {name: FLOORS[name] for name in imported(module) if name in SOURCES}
    assert not [name for name, floor in used.items() if floor >= FLOORS[module]], f"floors: {used}"


@pytest.mark.parametrize("module", sorted(name for name in SOURCES if not f"{name}.".startswith("emotion.ui.")))
def test_only_the_page_imports_gradio(module: str) -> None:
    assert not [name for name in imported(module) if name.split(".")[0] in ("gradio", "gradio_client")]


def test_the_public_names_load_none_of_gradio_accelerate_and_onnx() -> None:
    code = (
        "import sys, emotion\n"
        "early = 'torch' in sys.modules\n"
        "for name in emotion.__all__: getattr(emotion, name)\n"
        "heavy = 'torch', 'gradio', 'accelerate', 'matplotlib', 'onnx', 'onnxruntime'\n"
        "print(early, [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False ['torch']\n"


def test_the_names_of_the_original_description_are_importable() -> None:
    assert set(PUBLIC_API) <= set(emotion.__all__) == set(dir(emotion))
    for name in PUBLIC_API:
        assert getattr(emotion, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = emotion.nothing


@pytest.mark.parametrize("module", SOURCES)
def test_public_names_have_types_and_a_docstring(module: str) -> None:
    tree = ast.parse(SOURCES[module].read_text("utf-8"))
    missing = [] if ast.get_docstring(tree) else ["docstring of the module"]
    documented: dict[str, set[str]] = {}
    for node in tree.body:
        members, inherited = [node], set()
        if isinstance(node, ast.ClassDef):
            members += node.body
            # A method that overrides a documented one of the same file has its docstring, as inspect.getdoc sees it.
            inherited.update(*(documented.get(ast.unparse(base), ()) for base in node.bases))
            own = [child for child in node.body if isinstance(child, ast.FunctionDef) and ast.get_docstring(child)]
            documented[node.name] = inherited | {child.name for child in own}
            if node.name.startswith("_"):
                continue
        for member in members:
            if not isinstance(member, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            special = member.name.startswith("__") and member.name.endswith("__")
            if member.name.startswith("_") and not special:
                continue
            where = f"{member.name}, line {member.lineno}"
            # What a special method does, its name says.
            if not special and member.name not in inherited and not ast.get_docstring(member):
                missing.append(f"docstring of {where}")
            if not isinstance(member, ast.ClassDef) and not is_typed(member, method=member is not node):
                missing.append(f"types of {where}")
    assert not missing


def is_typed(function: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> bool:
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
    # The first argument of a method is the object or the class.
    return function.returns is not None and all(a.annotation for a in arguments[method and not static :])


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_every_requirement_is_pinned_to_a_version_that_it_allows(python: str) -> None:
    """For each Python: constraints.txt is made from the requirements, and is made again when they change."""
    machine = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}

    def read(name: str) -> dict[str, Requirement]:
        lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        wanted = [Requirement(line) for line in lines if line]
        wanted = [one for one in wanted if one.marker is None or one.marker.evaluate(machine)]
        found = {canonicalize_name(one.name): one for one in wanted}
        assert len(found) == len(wanted)
        return found

    pins = read("constraints.txt")
    for name, requirement in read("requirements.txt").items():
        (pin,) = pins[name].specifier
        assert pin.operator == "==" and pin.version in requirement.specifier, f"{name}: {pin}"
    # What pip refuses to install: pins that the tools for language models do not allow.
    for requirement in map(Requirement, distribution("gradio").requires or []):
        if requirement.marker is None or requirement.marker.evaluate({**machine, "extra": "mcp"}):
            (pin,) = pins[canonicalize_name(requirement.name)].specifier
            assert pin.version in requirement.specifier, f"gradio[mcp] asks for {requirement}, the pin is {pin}"
    assert all(str(pin.specifier).startswith("==") for pin in pins.values())
