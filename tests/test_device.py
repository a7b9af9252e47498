"""On which library a CPU's matrix products run, and that they stay fp32."""

import platform

import pytest
import torch

from vlmrm_exp import device
from vlmrm_exp.scorer import Scorer

FACTS = device.CPU_FACTS.read_text() if device.CPU_FACTS.exists() else ""
ZEN_5 = "AuthenticAMD" in FACTS and "\ncpu family\t: 26\n" in FACTS
WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
on_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="oneDNN computes others' products anyway"
)


@pytest.fixture(autouse=True)
def as_torch_comes():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def by_onednn(capfd):
    """Tells whether oneDNN computes a product."""

    def ask() -> bool:
        a, b = torch.randn(128, 348), torch.randn(348, 256)
        capfd.readouterr()
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            product = a @ b
        # Of bf16 it would be .2, of TF32 .02.
        assert (product - a.double() @ b.double()).abs().max() < 1e-3
        return "primitive,exec,cpu,matmul" in capfd.readouterr().out

    return ask


@on_x86
def test_products_are_widened_on_a_zen_5_alone(by_onednn, tmp_path, monkeypatch):
    assert not by_onednn()
    assert device.choose_device("cpu") == torch.device("cpu")
    assert by_onednn() == (ZEN_5 and WIDE)
    torch.get_float32_matmul_precision()  # which torch refuses after some settings
    torch.set_float32_matmul_precision("highest")
    intel = "vendor_id\t: GenuineIntel\ncpu family\t: 26\n"
    zen_4 = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\n"
    for facts in (intel, zen_4, None):
        monkeypatch.setattr(device, "CPU_FACTS", tmp_path / "cpuinfo")
        device.CPU_FACTS.unlink(missing_ok=True)
        if facts is not None:
            device.CPU_FACTS.write_text(facts)
        assert not device.widen_products()
        assert not by_onednn()


@on_x86
def test_what_would_not_be_fp32_is_taken_back(by_onednn, monkeypatch):
    monkeypatch.setattr(device, "products_are_fp32", lambda: False)
    assert not device.widen_products()
    assert not by_onednn()


def test_products_of_fewer_bits_are_seen(monkeypatch):
    assert device.products_are_fp32()
    product = torch.Tensor.__matmul__

    def of_fewer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float32:
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", of_fewer)
    assert not device.products_are_fp32()


def test_a_setting_of_the_users_stays():
    torch.set_float32_matmul_precision("high")
    device.choose_device("cpu")
    assert torch.get_float32_matmul_precision() == "high"


def test_a_scorer_leaves_its_users_process_as_it_is():
    Scorer("a car on the right", clip="nano")
    assert torch.get_float32_matmul_precision() == "highest"
