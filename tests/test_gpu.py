"""What needs a CUDA GPU: `make test-gpu`."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from vlmrm_exp.cli import composed
from vlmrm_exp.vlm.encoder import load_encoder

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("clip", "cosine"),
    [
        (["clip=base"], 0.9999),
        # Larger models are run in bfloat16 there, whose numbers have 8 bits.
        (["clip=vitb32", "clip.pretrained=random"], 0.99),
    ],
)
def test_a_gpu_embeds_as_the_cpu_does(clip, cosine):
    config = composed("task=kneeling", *clip).clip
    frames = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), np.uint8)
    by_device = []
    for device in (torch.device("cpu"), GPU):
        encoder = load_encoder(config, device)
        sentences = encoder.embed_prompts(["a robot", "a robot kneeling"])
        by_device.append(torch.cat([encoder.embed_frames(frames), sentences]).cpu())
    assert (by_device[0] * by_device[1]).sum(dim=1).min() > cosine


@pytest.mark.parametrize("task", ["mountaincar", "cartpole", "kneeling"])
def test_a_run_learns_and_scores_on_the_gpu(tmp_path, task):
    subprocess.run(
        [sys.executable, "-m", "vlmrm_exp", f"task={task}", "experiment=smoke",
         "log=none", "compute=gpu", f"hydra.run.dir={tmp_path}"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    assert json.loads((tmp_path / "versions.json").read_text())["device"] == "cuda"
    assert json.loads((tmp_path / "summary.json").read_text())["gradient_steps"] == 4
