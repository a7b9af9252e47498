"""What a run says of itself at its end."""

import contextlib
import os
from pathlib import Path
from typing import Any


def peak_memory_gb() -> float:
    """Peak resident memory of this process and its children, in GB (1e9 bytes).

    The sum of each running process's own peak, as Linux counts it (VmHWM): an upper
    bound, since the peaks need not coincide, libraries that processes share count once
    for each, and in a multirun this process may have peaked in an earlier job.
    """
    parents, peaks = {}, {}
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, KeyError):  # it may just have ended
            lines = path.read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            process = int(fields["Pid"])
            peaks[process] = int(fields["VmHWM"].split()[0]) * 1024
            parents[process] = int(fields["PPid"])
    family = {os.getpid()}
    while more := {p for p, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(peaks.get(process, 0) for process in family) / 1e9


def summary_text(summary: dict[str, Any], folder: Path) -> str:
    """Say in a few lines what came of a run."""
    lines = [f"{summary['task']}: {' / '.join(summary['prompt'])}"]
    if summary["eval/episodes"] is not None:
        rate = summary["eval/success_rate"]
        if rate is not None:
            low, high = summary["eval/success_low"], summary["eval/success_high"]
            lines.append(
                f"  success {rate:.2f} (95 % interval {low:.2f} to {high:.2f}, "
                f"{summary['eval/episodes']} episodes)"
            )
        lines.append(
            f"  reward  {summary['eval/reward_mean']:.4g} per step; the environment's "
            f"own return {summary['eval/return_mean']:.4g} per episode"
        )
        lines.append(
            f"  trained {summary['env_steps']:,} env steps in "
            f"{summary['train_wall_s']:.0f} s; kept the policy of step "
            f"{summary['best_env_steps']:,}"
        )
    lines.append(f"  folder  {folder}")
    video = folder / "videos" / "eval.mp4"
    if video.is_file():
        lines.append(f"  video   {video}")
    return "\n".join(lines)
