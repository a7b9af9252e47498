"""Try the policy of a finished run again: python -m vlmrm_exp.evaluate run=FOLDER ...

Reads the run's own configuration and a checkpoint, plays episodes without exploration
from start states that neither training nor the run's own evaluation saw, and writes
evaluation.json and videos/evaluation.mp4 into the run's folder.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmrm_exp import cli
from vlmrm_exp.config import ConfigError

if TYPE_CHECKING:
    from vlmrm_exp.rl.trial import Trial

CHECKPOINTS = ("best", "last", "random")
COMPUTE = ("auto", "cpu", "gpu")
SEED_OFFSET = 1_000_000
"""Added to the run's seed where none is given: start states not seen before."""

HELP = f"""\
Plays episodes with the policy of a finished run, without exploration, and scores them.

  python -m vlmrm_exp.evaluate run=outputs/mountaincar/NAME
  python -m vlmrm_exp.evaluate run=outputs/kneeling/NAME checkpoint=last episodes=20
  python -m vlmrm_exp.evaluate run=outputs/cartpole/NAME seed=7 video=false

Settings:
  run=FOLDER        of the run, with config.yaml and checkpoints/
  checkpoint=best   best (highest reward in training), last, or random: actions drawn
                    uniformly, to compare with
  episodes=100
  seed=null         of the start states; null: the run's seed + {SEED_OFFSET:,}
  video=true        write videos/evaluation.mp4
  compute=auto      auto, cpu or gpu, whatever the run was trained on

Writes evaluation.json and videos/evaluation.mp4 into the run's folder; with another
checkpoint than best, evaluation-last.json and so on. Earlier ones stay: the next is
evaluation-2.json.
"""


@dataclass
class EvaluateConfig:
    """What to evaluate; see HELP."""

    run: str = ""
    checkpoint: str = "best"
    episodes: int = 100
    seed: int | None = None
    video: bool = True
    compute: str = "auto"


def parse(arguments: Sequence[str]) -> EvaluateConfig:
    """Turn key=value arguments into checked values.

    Raises:
        ConfigError: one sentence says what is wrong.
    """
    asked = cli.parse(EvaluateConfig, arguments, text=("run",))
    if not asked.run:
        raise ConfigError(
            "Which run? Give its folder, as run=outputs/mountaincar/NAME."
        )
    for name, options in (("checkpoint", CHECKPOINTS), ("compute", COMPUTE)):
        if (value := getattr(asked, name)) not in options:
            raise ConfigError(
                f"{name} is {value!r}, but must be one of {', '.join(options)}."
            )
    if asked.episodes < 1:
        raise ConfigError(f"episodes is {asked.episodes}: give at least 1.")
    if asked.seed is not None and asked.seed < 0:
        raise ConfigError(f"seed is {asked.seed}: give a whole number from 0 up.")
    return asked


def evaluate(asked: EvaluateConfig) -> dict[str, Any]:
    """Play, score, write and return what evaluation.json holds.

    Raises:
        ConfigError: the run, its checkpoint or what it needs cannot be had.
    """
    folder = Path(asked.run).expanduser()
    config = cli.load_run_config(folder)
    compute = dataclasses.replace(config.compute, device=asked.compute)
    config = dataclasses.replace(config, compute=compute)
    checkpoint = folder / "checkpoints" / f"{asked.checkpoint}.pt"
    if asked.checkpoint != "random" and not checkpoint.is_file():
        raise ConfigError(
            f"There is no {checkpoint}: the run ended before its first evaluation, or "
            "this is not its folder."
        )
    seed = config.seed + SEED_OFFSET if asked.seed is None else asked.seed
    before = _recorded_versions(folder)

    # Imported here so that --help and refusals are immediate.
    import torch

    from vlmrm_exp.envs import make_envs
    from vlmrm_exp.log import versions, write_json
    from vlmrm_exp.rl.labels import make_labeller
    from vlmrm_exp.rl.policy import load_policy
    from vlmrm_exp.rl.progress import Progress
    from vlmrm_exp.rl.trial import judge, try_policy, write_video
    from vlmrm_exp.vlm.scorer import choose_device

    device = choose_device(asked.compute)
    torch.set_num_threads(config.compute.torch_threads)
    policy = None if asked.checkpoint == "random" else load_policy(checkpoint, device)
    with contextlib.ExitStack() as opened:
        envs = make_envs(
            config.task,
            min(config.algo.num_envs, asked.episodes),
            config.compute.resolved_physics_threads,
        )
        opened.callback(envs.close)
        envs.reset(seed)
        envs.action_space.seed(seed)
        scorer = make_labeller(config, envs)
        if scorer is not None:
            opened.callback(scorer.close)
        rollouts = math.ceil(asked.episodes / envs.num_envs)
        progress = Progress(rollouts * envs.episode_length * envs.num_envs)
        opened.callback(progress.close)
        env_steps = 0

        def act(observation: np.ndarray) -> np.ndarray:
            nonlocal env_steps
            env_steps += len(observation)
            progress.update(env_steps, {"episodes": env_steps // envs.episode_length})
            if policy is None:
                return np.stack([envs.action_space.sample() for _ in observation])
            return policy.act(observation)

        started = time.perf_counter()
        shown = min(max(config.evaluation.video_episodes, 1), asked.episodes)
        trial = try_policy(
            envs,
            act,
            scorer,
            asked.episodes,
            seed,
            keep_rows=shown if asked.video else 0,
        )
        wall_s = time.perf_counter() - started
        facts = {"device": str(device), **(scorer.facts() if scorer else {})}
    _tell_of_other_weights(before, facts)
    result = {
        "task": config.task.name,
        "prompt": config.prompts,
        "baseline": config.baselines,
        "alpha": config.alpha,
        "clip": config.clip.name,
        "reward": config.reward,
        "textures": config.task.textures,
        "camera": config.task.camera,
        "checkpoint": asked.checkpoint,
        "policy_env_steps": policy.env_steps if policy else 0,
        "seed": seed,
        "num_envs": envs.num_envs,
        "episode_length": envs.episode_length,
        **judge(trial),
        **standard_errors(trial),
        "per_episode": per_episode(trial),
        "wall_s": wall_s,
        "versions": versions(facts),
    }
    name = "evaluation"
    if asked.checkpoint != "best":
        name += f"-{asked.checkpoint}"
    name = _free_name(folder, name)
    write_json(folder / f"{name}.json", result)
    print(table(result))
    print(f"  saved    {folder / name}.json")
    if asked.video:
        video = folder / "videos" / f"{name}.mp4"
        title = " / ".join(config.prompts)
        write_video(video, config.task, config.clip, trial, title)
        print(f"  video    {video}")
    return result


def _free_name(folder: Path, name: str) -> str:
    """A name that no earlier evaluation has: with a number if it is taken."""
    number, free = 1, name
    while (folder / f"{free}.json").exists():
        number += 1
        free = f"{name}-{number}"
    return free


def _recorded_versions(folder: Path) -> dict[str, Any] | None:
    """The run's versions.json; None where there is none, told where it is damaged."""
    path = folder / "versions.json"
    if not path.is_file():
        return None
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        recorded = None
    if isinstance(recorded, dict):
        return recorded
    print(
        f"{path} cannot be read: whether the model's weights are those that the run "
        "was trained with is not known."
    )
    return None


def _tell_of_other_weights(
    recorded: dict[str, Any] | None, facts: dict[str, Any]
) -> None:
    """Rewards of other weights than the run's are not comparable with its own."""
    if recorded is None:
        return
    encoders = [x.get("encoder") for x in (recorded, facts)]
    before, now = (
        x.get("weights_sha256") if isinstance(x, dict) else None for x in encoders
    )
    if before != now:
        print(
            "The model's weights are not those that the run was trained with "
            f"(SHA-256 {str(before)[:8]} then, {str(now)[:8]} now): rewards differ."
        )


def per_episode(trial: "Trial") -> dict[str, list[Any] | None]:
    """Each episode's mean reward, own return and success."""
    return {
        "reward_mean": trial.reward.mean(0, dtype=np.float64).tolist(),
        "return": trial.env_reward.sum(0, dtype=np.float64).tolist(),
        "success": None if trial.success is None else trial.success.tolist(),
        "goal_share": None if trial.goal_share is None else trial.goal_share.tolist(),
    }


def standard_errors(trial: "Trial") -> dict[str, float | None]:
    """Standard errors of the means over episodes; None where there is but one.

    Steps of one episode are no independent samples, so episodes are what counts.
    """
    each = {
        "eval/reward_standard_error": trial.reward.mean(0, dtype=np.float64),
        "eval/return_standard_error": trial.env_reward.sum(0, dtype=np.float64),
    }
    return {
        key: float(values.std(ddof=1) / math.sqrt(len(values)))
        if len(values) > 1
        else None
        for key, values in each.items()
    }


def table(result: dict[str, Any]) -> str:
    """Say in a few lines what came of it."""
    from vlmrm_exp.rl.trial import BUCKETS

    length, seed = result["episode_length"], result["seed"]

    def mean(name: str) -> str:
        value, error = (
            result[f"eval/{name}_mean"],
            result[f"eval/{name}_standard_error"],
        )
        return f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")

    rate, success = result["eval/success_rate"], "this task has no predicate for it"
    if rate is not None:
        low, high = result["eval/success_low"], result["eval/success_high"]
        count = result["eval/episodes"]
        success = (
            f"{rate:.2f} (95 % interval {low:.2f} to {high:.2f}), "
            f"{round(rate * count)}/{count}"
        )
    if (shares := result["eval/buckets"]) is not None:
        told = ", ".join(
            f"{b} %: {share:.0%}" for b, share in zip(BUCKETS, shares, strict=True)
        )
        success += f"\n  in goal  {told} of episodes (nearest share of steps)"
    return (
        f"{result['task']}: {' / '.join(result['prompt'])}\n"
        f"  policy   {result['checkpoint']}, after "
        f"{result['policy_env_steps']:,} env steps of training\n"
        f"  episodes {result['eval/episodes']} of {length} env steps, "
        f"start states of seed {seed}\n"
        f"  success  {success}\n"
        f"  reward   {mean('reward')} per step (± standard error)\n"
        f"  return   {mean('return')} per episode, the environment's own"
    )


def main() -> None:
    """Evaluate as the command line says; bad input ends in one sentence."""
    cli.run_verb("evaluate", HELP, lambda arguments: evaluate(parse(arguments)))


if __name__ == "__main__":
    main()
