"""The recipes are those that were run, and their values are within their ranges."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from emotion.recipes import RECIPES, TrainingConfig, plan, with_defaults

ROOT = Path(__file__).parents[1]
SHORT = TrainingConfig(epochs=3)


def as_read(config: dict) -> dict:
    """A configuration as it comes back from JSON; flags that are younger have their defaults."""
    return json.loads(json.dumps(with_defaults(config)))


def logged(output: str) -> dict:
    """The line of the finished run with this output folder."""
    runs = [json.loads(line) for line in (ROOT / "docs/log.jsonl").read_text().splitlines()]
    [run] = [run for run in runs if run["output"] == output]
    return run | {"config": as_read(run["config"])}


def test_original_recipe_is_the_published_one() -> None:
    [config] = RECIPES["original"]
    assert (config.epochs, config.patience, config.batch_size, config.optimizer) == (25, 7, 32, "adam")
    assert (config.learning_rate, config.backbone_learning_rate, config.weight_decay) == (1e-3, 1e-5, 1e-4)
    assert (config.schedule, config.dropout_rate) == ("step", 0.5)


def test_best_recipe_for_ferplus_is_what_the_shipped_network_and_its_teachers_were_trained_by() -> None:
    networks = plan("best", "ferplus", Path("runs/best"), {})
    trained = [as_read(asdict(config)) for config in networks.values()]
    assert trained[:2] == [logged("runs/plus1")["config"], logged("runs/plus2")["config"]]
    shipped = as_read(json.loads((ROOT / "checkpoints/ferplus/training_config.json").read_text())["config"])
    assert shipped == logged("runs/pluspupil")["config"]
    assert trained[2] | {"start_from": "runs/plus1", "teachers": ["runs/plus1", "runs/plus2"]} == shipped
    assert [str(folder) for folder in networks] == ["runs/best/teacher1", "runs/best/teacher2", "runs/best"]
    assert (trained[2]["start_from"], trained[2]["teachers"]) == (
        "runs/best/teacher1",
        ["runs/best/teacher1", "runs/best/teacher2"],
    )


def test_best_recipe_for_other_labels_is_one_that_was_run() -> None:
    [best] = plan("best", "fer2013", Path("runs/best"), {}).values()
    assert as_read(asdict(best)) == logged("runs/sharp")["config"]
    assert plan("best", "own", Path("runs/best"), {}) == {Path("runs/best"): best}


@pytest.mark.parametrize(("name", "output"), [("ferplus", "runs/pluspupil"), ("fer2013", "runs/tail")])
def test_figures_of_a_shipped_network_are_those_of_its_run_and_of_its_temperature(name: str, output: str) -> None:
    run, folder = logged(output), ROOT / "checkpoints" / name
    metrics = json.loads((folder / "metrics.json").read_text())
    for view in ("plain", "tta", "unseen", "new_photos"):
        assert {key: metrics[view][key] for key in run[view]} == pytest.approx(run[view], abs=1e-4), view
    plain = metrics["plain"]
    assert plain["temperature"] == json.loads((folder / "config.json").read_text())["temperature"]
    confusion = np.array(plain["confusion"])
    assert (confusion.sum(), confusion.trace() / confusion.sum()) == (plain["rows"], plain["accuracy"])


def test_single_recipe_is_what_three_seeds_were_trained_by() -> None:
    [single] = plan("single", "ferplus", Path("runs/one"), {}).values()
    for seed, output in enumerate(("runs/thirteenth", "runs/nineteenth", "runs/twentythird")):
        assert json.loads(json.dumps(asdict(replace(single, seed=seed)))) == logged(output)["config"]


def test_what_is_given_replaces_the_value_of_every_network_and_the_seed_counts_on() -> None:
    given = {"seed": 7, "epochs": 5, "patience": 2, "start_from": "checkpoints/ferplus"}
    first, second, last = plan("best", "ferplus", Path("run"), given).values()
    assert [(config.seed, config.epochs, config.patience) for config in (first, second, last)] == [
        (7, 5, 2),
        (8, 5, 2),
        (9, 5, 2),
    ]
    assert [config.start_from for config in (first, second, last)] == [
        "checkpoints/ferplus",
        "checkpoints/ferplus",
        "run/teacher1",
    ]
    assert plan("original", "fer2013", Path("run"), given) == {Path("run"): replace(TrainingConfig(), **given)}


@pytest.mark.parametrize("given", [{"teachers": ("runs/first",)}, {"transfer": "vgg16"}])
def test_a_recipe_of_several_networks_takes_neither_teachers_nor_filters(given: dict) -> None:
    with pytest.raises(ValueError, match="best trains the networks .* with another recipe, such as single"):
        plan("best", "ferplus", Path("run"), given)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0; give a whole number of at least 1"),
        ({"batch_size": 1}, "batch_size is 1; give a whole number of at least 2"),
        ({"seed": 2**64}, r"seed is 18446744073709551616; give a whole number below 2\*\*64"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; give a positive number"),
        ({"image_sizes": (8,)}, "give sides of at least 16"),
        ({"augmentation": (0.0, 2.0)}, "augmentation is .*; give two strengths from 0 to 1"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; choose from adam, sgd"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"teacher_share": 1.1}, "teacher_share is 1.1; give a share from 0 to 1"),
        ({"mixup": -0.1}, "mixup is -0.1; give a share from 0 to 1"),
        ({"sam_rho": -0.1}, "sam_rho is -0.1; give a distance of at least 0"),
        ({"sam_rho": float("nan")}, "sam_rho is nan; give a distance of at least 0"),
        ({"start_from": "runs/first", "transfer": "vgg16"}, "start_from is runs/first, transfer vgg16; give one"),
        ({"hard_epochs": 4}, "3 epochs for 4 hard_epochs"),
        ({"image_sizes": (16, 24, 32, 48)}, "3 epochs for 0 hard_epochs and 4 image_sizes"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(SHORT, **changes)
