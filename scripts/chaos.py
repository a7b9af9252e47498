"""Kill a small sweep at random moments; it must end as if nothing had been.

    python scripts/chaos.py [--kills 50] [--seed 0] [--folder FOLDER] [key=value ...]

A sweep runs once undisturbed. Then it is started again under another name, and at
random moments one of its processes (the training process, a reward worker, Python's
own helper, with log=offline W&B's too) gets SIGKILL. Where the sweep ended by that, or
a job gave up after three workers in a row, its command is given again. In the end
each job's summary.json and metrics.jsonl must be those of the undisturbed sweep, times
aside, with no process, no temporary file and no state left. The exit code is 1 if
anything differs.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SWEEP = (
    "task=mountaincar clip=tiny seed=0,1 env_steps=6400 algo.gradient_steps=30 "
    "algo.random_steps=1600 evaluation.every=3200 evaluation.episodes=2 "
    "evaluation.final_episodes=4 evaluation.reward_episodes=2 "
    "evaluation.video_episodes=1 compute=cpu compute.workers=2 compute.checkpoint_s=0 "
    "log=none"
).split()
TIMES = ("wall_s", "train_wall_s", "ended")
GAVE_UP = b"Reward workers end one after another"
GONE_S = 20  # within which workers end when their training process was killed


def main() -> int:
    """Run both sweeps, compare them; 1 if they differ."""
    parser = argparse.ArgumentParser(
        description="Kill a small sweep at random moments."
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("keys", nargs="*", help="of the sweep, after its own")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {asked.seed}, {asked.kills} kills, in {folder}", flush=True)
    started = time.monotonic()
    if (code := start(folder, "calm", asked.keys).wait()) != 0:
        print(f"The undisturbed sweep ended with {code}: see {folder / 'calm.log'}.")
        return 1
    duration = time.monotonic() - started
    rng, hit, faults, sweeps = random.Random(asked.seed), 0, [], 0
    while hit < asked.kills and not faults:
        sweeps += 1
        name = f"sweep{sweeps}"
        hit, faults = disturb(folder, name, hit, asked.kills, rng, duration, asked.keys)
        calm, disturbed = (folder / "outputs/sweeps" / x for x in ("calm", name))
        faults += differences(calm, disturbed)
    print("\n".join(faults) or f"{hit} kills in {sweeps} sweeps: no difference.")
    return bool(faults)


def start(folder: Path, name: str, keys: list[str]) -> "subprocess.Popen[bytes]":
    """Start, or go on with, a sweep in a session of its own."""
    words = [sys.executable, "-m", "vlmrm_exp", "-m", f"sweep={name}", *SWEEP, *keys]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            words, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )


def disturb(
    folder: Path,
    name: str,
    hit: int,
    kills: int,
    rng: random.Random,
    duration: float,
    keys: list[str],
) -> tuple[int, list[str]]:
    """Kill processes of a sweep at random moments, and start it again, to its end.

    Returns:
        How many were killed, those before included, and what was wrong, a line each.
    """
    faults: list[str] = []
    sweep, read = start(folder, name, keys), 0  # bytes of its log
    try:
        while True:
            wait = rng.uniform(0, duration / 2) if hit < kills else None
            try:
                code = sweep.wait(wait)
                told = (folder / f"{name}.log").read_bytes()
                if code != 0 and GAVE_UP in told[read:]:
                    print(f"{name} gave up after three workers in a row.", flush=True)
                    sweep, read = start(folder, name, keys), len(told)
                    continue
                if code != 0:
                    faults.append(f"After kill {hit} {name} ended with {code}.")
                return hit, faults + left_over(sweep.pid)
            except subprocess.TimeoutExpired:
                family = session(sweep.pid)
            try:
                victim = rng.choice(sorted(family))
                os.kill(victim, signal.SIGKILL)
            except (IndexError, ProcessLookupError):  # it ended by itself just now
                continue
            hit += 1
            print(f"{hit}: {name}, after {wait:.1f} s, {family[victim]}", flush=True)
            if victim == sweep.pid:
                sweep.wait()
                faults += left_over(sweep.pid)
                sweep = start(folder, name, keys)
    finally:
        with contextlib.suppress(ProcessLookupError):  # as it should be
            os.killpg(sweep.pid, signal.SIGKILL)


def session(leader: int) -> dict[int, str]:
    """Processes of a session and their children, and their command lines."""
    found, children = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended
            continue
        parent, its_session = int(fields[1]), int(fields[3])
        if its_session == leader and fields[0] != "Z":
            found[int(path.name)] = command.strip()
        elif fields[0] != "Z":  # W&B's process has a session of its own
            children[int(path.name)] = parent, command.strip()
    theirs = {pid: said for pid, (parent, said) in children.items() if parent in found}
    return found | theirs


def left_over(leader: int) -> list[str]:
    """Processes of a session that do not end by themselves, a line each."""
    deadline = time.monotonic() + GONE_S
    while (left := session(leader)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"Process {number} is left: {name}" for number, name in left.items()]


def differences(calm: Path, disturbed: Path) -> list[str]:
    """Compare two sweeps' folders; a line for each difference."""
    faults = []
    if not disturbed.is_dir():
        return [f"There is no {disturbed}."]
    jobs = [
        sorted(p.name for p in x.iterdir() if p.is_dir()) for x in (calm, disturbed)
    ]
    if jobs[0] != jobs[1]:
        return [f"Jobs are {jobs[1]}, not {jobs[0]}."]
    for job in jobs[0]:
        before, after = calm / job, disturbed / job
        # W&B's have times in their names.
        names = [
            sorted(
                str(p.relative_to(x)) for p in x.rglob("*") if "wandb" not in p.parts
            )
            for x in (before, after)
        ]
        if names[0] != names[1]:
            faults.append(f"{after} differs in {set(names[0]) ^ set(names[1])}.")
        for name in ("summary.json", "metrics.jsonl"):
            if numbers(before / name) != numbers(after / name):
                faults.append(f"{after / name} is not as undisturbed.")
    return faults


def numbers(path: Path) -> list[dict[str, Any]]:
    """What a file of JSON says, times aside."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = text.splitlines() if path.suffix == ".jsonl" else [text or "{}"]
    return [
        {
            key: value
            for key, value in json.loads(line).items()
            if not key.startswith("perf/") and key not in TIMES
        }
        for line in lines
    ]


if __name__ == "__main__":
    sys.exit(main())
