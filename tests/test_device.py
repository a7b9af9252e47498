"""On which library a CPU's matrix products run, and that they stay fp32."""

import torch

from vlmrm_exp import device


def products_of(capfd) -> tuple[float, bool]:
    """The error of a product of (128, 348) and (348, 256), and whether by oneDNN."""
    a, b = torch.randn(128, 348), torch.randn(348, 256)
    capfd.readouterr()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        product = a @ b
    error = (product - a.double() @ b.double()).abs().max().item()
    return error, "primitive,exec,cpu,matmul" in capfd.readouterr().out


def test_products_are_fp32_whoever_computes_them(capfd):
    """Of bf16 errors would be .2 here, of TF32 .02; they are 3e-5."""
    try:
        widened = device.widen_products()
        error, by_onednn = products_of(capfd)
        assert error < 1e-3
        assert by_onednn == widened
    finally:
        device.widen_products(False)
    error, by_onednn = products_of(capfd)
    assert error < 1e-3
    assert not by_onednn


def test_a_cpu_device_has_them_widened_where_that_pays(capfd, tmp_path, monkeypatch):
    facts = device.CPU_FACTS
    amd = facts.exists() and "AuthenticAMD" in facts.read_text()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    new = hasattr(torch.backends.mkldnn, "matmul")
    try:
        assert device.choose_device("cpu") == torch.device("cpu")
        assert products_of(capfd)[1] == (amd and wide and new)
        device.widen_products(False)
        monkeypatch.setattr(device, "CPU_FACTS", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text("vendor_id\t: GenuineIntel\n")
        device.choose_device("cpu")
        assert not products_of(capfd)[1]
    finally:
        monkeypatch.undo()
        device.choose_device("cpu")
