"""Environment of every test, set before anything heavy is imported.

A test that wants W&B or a hub asks for it: with `monkeypatch.setenv` and a child
process, or with arguments that override these.
"""

import os

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
# One thread per process: the reference machine has two cores, and sums repeat.
os.environ["OMP_NUM_THREADS"] = "1"
