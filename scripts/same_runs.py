"""Whether short runs of this checkout are those of another, number by number.

    python scripts/same_runs.py OTHER_CHECKOUT [NAME ...]

Runs each of RUNS (or those named) with both checkouts, on one thread, and compares
metrics.jsonl bit for bit, times aside; then one epic.json, within 1e-6. Both use this
environment's packages. Where the other checkout is older than a renaming, RENAMED says
how it called a word. About ten minutes on two cores; exit code 1 if anything differs.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from chaos import numbers

HERE = Path(__file__).resolve().parents[1]
COMMON = (
    "log=none compute.torch_threads=1 compute.physics_threads=1 evaluation.episodes=2 "
    "evaluation.final_episodes=4 evaluation.video_episodes=1"
)
CAR = "task=mountaincar env_steps=8000 evaluation.every=3200 algo.random_steps=3200 " \
      "algo.gradient_steps=40"  # fmt: skip
POLE = "task=cartpole env_steps=6400 evaluation.every=3200 algo.gradient_steps=40 " \
       "algo.exploration_steps=3000 clip=tiny"  # fmt: skip
KNEEL = "task=kneeling env_steps=3200 evaluation.every=1600 algo.random_steps=800 " \
        "algo.gradient_steps=40 clip=base"  # fmt: skip
GYM = "task=gym env_steps=400 evaluation.every=200 task.episode_length=50 " \
      "algo.num_envs=2 algo.gradient_steps=20 clip=nano seed=5"  # fmt: skip
APART = "compute.workers=1 compute.overlap=true"
HERE_AT_ONCE = "compute.workers=0 compute.overlap=false"
RUNS = {
    "car_overlap": f"{CAR} clip=base seed=3 {APART}",
    "car_at_once": f"{CAR} clip=base seed=3 {HERE_AT_ONCE}",
    "car_tiny": f"{CAR} clip=tiny seed=4 {APART}",
    "car_environment": f"{CAR} clip=base seed=4 reward=environment",
    "pole_overlap": f"{POLE} seed=1 {APART}",
    "pole_alpha": f"{POLE} seed=1 {HERE_AT_ONCE} alpha=0.5 renormalise=false "
    "'prompt=[pole upright,a pole standing up on a cart]'",
    "kneel_overlap": f"{KNEEL} seed=2 {APART}",
    "kneel_at_once": f"{KNEEL} seed=2 {HERE_AT_ONCE}",
    "kneel_predicate": f"{KNEEL} seed=2 reward=predicate compute.overlap=false",
    "gym_sac": f"{GYM} task.env_id=Pendulum-v1 'prompt=a pendulum standing upright' "
    "'baseline=a pendulum'",
    "gym_dqn": f"{GYM} task.env_id=CartPole-v1 algo=dqn 'prompt=a pole upright' "
    "'baseline=a pole' alpha=0.5",
    "paper_kneel": "experiment=paper task=kneeling clip=nano seed=6 env_steps=480 "
    "task.episode_length=20 algo.num_envs=4 algo.gradient_steps=20 "
    "algo.learning_starts=160 algo.random_steps=160 algo.batch_size=64 "
    f"evaluation.every=160 {APART.split()[0]}",
    "paper_car": "experiment=paper task=mountaincar clip=nano seed=6 env_steps=4800 "
    "algo.num_envs=4 algo.gradient_steps=20 evaluation.every=3200 "
    f"{APART.split()[0]}",
}
EPIC = "task=kneeling,mountaincar clip=nano,tiny alpha=0,0.5 states=300 resamples=50"
RENAMED = {
    "compute.workers": "compute.scorer_workers",
    "reward.every": "reward_every",
    "reward=environment": "reward=ground_truth",
    "reward=predicate": "reward=ground_truth",
}
"""Words of today, and what they were before version 0.2 (CHANGELOG.md)."""


def run(checkout: Path, verb: str, words: str, folder: Path) -> None:
    """Run a program of a checkout; `folder` is where it is started."""
    if not (checkout / "conf" / "reward").is_dir():
        for now, before in RENAMED.items():
            words = words.replace(now, before)
    folder.mkdir(parents=True)
    program = ["-m", f"vlmrm_exp{verb}", *shlex.split(words)]
    environment = {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    with (folder / "said.txt").open("w") as said:
        done = subprocess.run(
            [sys.executable, *program],
            cwd=folder,
            env=os.environ | environment,
            stdout=said,
            stderr=said,
        )
    if done.returncode:
        print(*(folder / "said.txt").read_text().splitlines()[-20:], sep="\n")
        sys.exit(f"{folder.name}: {checkout} failed")


def main() -> None:
    """Compare, print a line for each, and exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT")
    parser.add_argument("names", nargs="*", default=[], metavar="NAME")
    asked = parser.parse_args()
    other, chosen = asked.other.resolve(), asked.names
    if not (other / "src/vlmrm_exp/__init__.py").is_file():
        sys.exit(f"{other} is no checkout: it has no src/vlmrm_exp/__init__.py")
    if unknown := set(chosen) - set(RUNS):
        sys.exit(
            f"There is no run {', '.join(sorted(unknown))}: choose of {', '.join(RUNS)}"
        )
    failed = False
    with tempfile.TemporaryDirectory() as top:
        for name, words in RUNS.items():
            if chosen and name not in chosen:
                continue
            found = []
            for side, checkout in (("here", HERE), ("other", other)):
                folder = Path(top, side, name)
                asked = f"{words} {COMMON} hydra.run.dir={folder}/run"
                run(checkout, "", asked, folder)
                found.append(numbers(folder / "run" / "metrics.jsonl"))
            same = bool(found[0]) and found[0] == found[1]
            failed |= not same
            print(f"{name}: {'equal' if same else 'DIFFERENT'}", flush=True)
        if not chosen:
            rows = []
            for side, checkout in (("here", HERE), ("other", other)):
                folder = Path(top, side, "epic")
                places = f"out={folder}/epic cache={folder}/cache"
                run(checkout, ".epic", f"{EPIC} {places}", folder)
                rows.append(json.loads((folder / "epic/epic.json").read_text())["rows"])
            worst = max(
                abs(one[key] - two[key])
                for one, two in zip(*rows, strict=True)
                for key in one
                if isinstance(one[key], float)
            )
            failed |= worst > 1e-6
            print(f"epic.json: largest difference {worst:.3g}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
