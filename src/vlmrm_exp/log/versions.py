"""What a program ran on, for versions.json."""

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    "vlmrm_exp gymnasium huggingface_hub hydra-core mujoco numpy omegaconf "
    "open_clip_torch pillow timm tokenizers torch torchvision transformers wandb"
).split()
CHECKOUT = Path(__file__).resolve().parents[3]
"""Of our code, unless it was installed otherwise."""


def versions(about: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what a run ran on, for versions.json.

    `about` is what only the run knows (device, GL renderer, encoder): it is added where
    it has other names.
    """
    import torch

    own = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **_commit(CHECKOUT),
    }
    return {**own, **about, **own}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    # platform.processor() is empty on most Linux systems, this on an ARM.
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*: (.*)$", facts, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _commit(checkout: Path) -> dict[str, Any]:
    """The source's commit when it runs from its own checkout, else nothing."""
    # An installed package may lie inside some other project's repository.
    if not (checkout / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "--verify", "HEAD"),
            "commit_is_dirty": bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
