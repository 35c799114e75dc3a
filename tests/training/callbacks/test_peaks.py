"""A device's peak: of its datasheet, or measured."""

import pytest
import torch

from gpt_modules.training.callbacks import peaks
from gpt_modules.training.callbacks.peaks import measured_flops, peak_flops

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("Tesla T4", 65e12, 8.1e12),
    ],
)
def test_a_known_device_has_the_peak_of_its_datasheet(name, half, single, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(CUDA, torch.bfloat16) == half
    assert peak_flops(CUDA, torch.float32) == single


@pytest.mark.parametrize(
    ("device", "name", "precision"),
    [("cuda", "Something New", "highest"), ("cuda", "NVIDIA H200", "high"), ("cpu", "", "highest")],
)
def test_others_and_tf32_are_measured(device, name, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    monkeypatch.setattr(peaks, "measured_flops", lambda device, dtype, seconds: 7.0)
    assert peak_flops(torch.device(device), torch.float32) == 7.0


def test_what_is_measured_is_two_operations_a_cell_and_column_by_the_fastest_time(monkeypatch):
    """The first product, which also makes ready, does not count, nor does one beside other work."""
    clock = iter([0.0, 0.1, 1.0, 3.0, 4.0, 5.0, 6.0, 8.0])
    monkeypatch.setattr(peaks.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(peaks, "SIZES", {"cpu": 4})
    assert measured_flops(torch.device("cpu"), torch.float32, seconds=4.0) == 2 * 4**3


def test_a_measurement_leaves_the_randomness_of_the_run_alone():
    before = torch.get_rng_state()
    assert measured_flops(torch.device("cpu"), torch.float32, seconds=1e-3) > 0
    assert torch.equal(torch.get_rng_state(), before)
