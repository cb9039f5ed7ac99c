"""The comparisons count and measure what they say; how fast anything is, they find out themselves."""

from pathlib import Path

import pytest
import torch
from test_trainer import write_csv
from test_transfer import random_donor
from torch import nn

from benchmarks import traditional, transfer
from emotion.model import EmotionCNN

PARAMETER_BYTES = 4 * 6_670_759


def test_the_traditional_network_is_the_one_of_the_original_comparison() -> None:
    counted = traditional.count("traditional")
    # VGG16's convolutions at 224x224: 3x3 kernels, channels in, channels out, side of the output.
    layers = ((3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56))
    layers += ((256, 256, 56), (256, 512, 28), (512, 512, 28), (512, 512, 28), *3 * ((512, 512, 14),))
    head = 25088 * 4096 + 4096 * 1024 + 1024 * 256 + 256 * 7
    unused = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert counted == {
        "parameters": 245_581_615,
        "used_parameters": 245_581_615 - unused,
        "multiply_adds": sum(9 * a * b * side**2 for a, b, side in layers) + head,
    }


def test_our_network_has_its_published_size() -> None:
    counted = traditional.count("ours")
    assert counted["parameters"] == counted["used_parameters"] == 6_670_759
    assert counted["multiply_adds"] == pytest.approx(193e6, rel=0.001)


def test_time_and_memory_are_measured_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # The traditional network would take half a minute and several gigabytes.
    monkeypatch.setattr(traditional, "NETWORKS", {"ours": EmotionCNN})
    ours = traditional.measure(2)["ours"]
    for task in traditional.TASKS:
        assert len(ours[task]["seconds"]) == 2
        assert all(0 < seconds < 60 for seconds in ours[task]["seconds"])
        assert ours[task]["net"] < ours[task]["peak"]
    # Weights, gradients and Adam's two averages, or the weights alone; the rest is small.
    assert 4 * PARAMETER_BYTES < ours["training"]["net"] < 20 * PARAMETER_BYTES
    assert PARAMETER_BYTES < ours["prediction"]["net"] < 4 * PARAMETER_BYTES


def test_the_table_compares_medians_and_shows_their_spread() -> None:
    task = {"net": 10e6, "peak": 100e6, "seconds": [0.003, 0.001, 0.002]}
    slow = {"net": 100e6, "peak": 200e6, "seconds": [0.1, 9.0, 0.2]}
    results = {
        "machine": "an abacus",
        "batch": 8,
        "ours": {"parameters": 25, "used_parameters": 25, "multiply_adds": 1e6, "training": task, "prediction": task},
        "traditional": {
            **{"parameters": 1000, "used_parameters": 500, "multiply_adds": 4e6},
            **{"training": slow, "prediction": slow},
        },
    }
    lines = traditional.table(results).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("|")}
    assert "1,000 | 25 | 97.5% less | 97% fewer" in cells["parameters"]
    assert "100 MB | 10 MB | 90.0% less | 90% less" in cells["memory in training, batch of 8, without the runtime"]
    assert "2.0 ms (1.0 to 3.0) | 99.0% less, 100 times faster | 75% faster" in cells["training, per face"]
    assert "Median of 3 alternating runs" in lines[-1] and "an abacus" in lines[-1]


def test_no_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        traditional.main(["--runs", "0"])
    assert "give at least 1" in capsys.readouterr().err


def test_three_starts_are_compared_on_equal_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("EMOTION_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(random_donor("resnet18").state_dict(), file)

    scratch, adapted, shuffled = (transfer.starting_network(start, "resnet18", 0) for start in transfer.STARTS)
    for name, module in adapted.named_modules():
        ours, plain = (model.get_submodule(name) for model in (shuffled, scratch))
        if isinstance(module, nn.Conv2d):
            assert not torch.equal(ours.weight, module.weight)
            assert torch.equal(ours.weight.flatten().sort().values, module.weight.flatten().sort().values)
        elif isinstance(module, nn.Linear):
            assert torch.equal(ours.weight, module.weight) and torch.equal(plain.weight, module.weight)

    arguments = ["--data", write_csv(tmp_path), "--backbone", "resnet18", "--seeds", 1, "--output", tmp_path / "runs"]
    arguments += ["--", "--epochs", 1, "--image-sizes", 16]
    assert transfer.main([*map(str, arguments)]) == 0
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert all(row.split()[0] == "1" and "start_from=" in row for row in rows)
    # A second time, nothing is left to do.
    assert transfer.main([*map(str, arguments)]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == rows
