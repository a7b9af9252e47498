"""Judge the policy of a run again: python -m vlmrm_exp.evaluate run=FOLDER ...

Reads the run's own configuration and a checkpoint, plays episodes without exploration
from start states that neither training nor the run's own evaluation saw, and writes
evaluation.json and videos/evaluation.mp4 into the run's folder. What people said of the
same episodes (labels=, a label.csv of `python -m vlmrm_exp.label`) stands beside it.
"""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from vlmrm_exp import app
from vlmrm_exp.checks import at_least, check_compute, check_extra, no_effect, one_of
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import ComputeConfig, Config, ConfigError
from vlmrm_exp.device import choose_device
from vlmrm_exp.files import sha256, write_json
from vlmrm_exp.run_folder import load_run_config

SEED_OFFSET = 1_000_000
"""Added to the run's seed where none is given: start states not seen before."""


@dataclass
class EvaluateConfig:
    """See conf/evaluate.yaml."""

    run: str = MISSING
    checkpoint: str = MISSING
    episodes: int = MISSING
    reward_episodes: int = MISSING
    seed: int | None = None
    video: bool = MISSING
    labels: str | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)


ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)


def check(composed: Composed) -> tuple[EvaluateConfig, Config]:
    """What is asked, and the configuration of the run; or a ConfigError."""
    if OmegaConf.is_missing(composed.cfg, "run") or not composed.cfg.run:
        raise ConfigError("Which run? Give its folder, as run=outputs/TASK/NAME.")
    asked: Any = OmegaConf.to_object(composed.cfg)
    folder = Path(asked.run).expanduser()
    kept = sorted(path.stem for path in (folder / "checkpoints").glob("*.pt"))
    of_alarms = [name for name in kept if name.startswith(("alarm-", "judged-"))]
    one_of("checkpoint", asked.checkpoint, ("best", "last", "random", *of_alarms))
    for name in ("episodes", "reward_episodes"):
        at_least(name, getattr(asked, name), 1)
    if asked.seed is not None:
        at_least("seed", asked.seed, 0)
    check_compute(asked.compute)
    config = load_run_config(folder)
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} cannot be written to, but gets the results.")
    if asked.checkpoint != "random":
        checkpoint_in(folder, asked.checkpoint)
    from vlmrm_exp.reward import reward_class  # here, as most refusals are immediate

    learned = folder / "checkpoints" / "reward.pt"
    if reward_class(config).remembers and not learned.is_file():
        raise ConfigError(
            f"This run's reward learns, but there is no {learned}, what it has "
            "learned: it is written at each evaluation, and an older version wrote "
            "none."
        )
    if asked.labels is not None:
        _check_labels(asked, config.seed + SEED_OFFSET)
    return asked, replace(config, compute=asked.compute)


def checkpoint_in(folder: Path, name: str) -> Path:
    """The file of a policy in a run's folder; a ConfigError if there is none."""
    file = folder / "checkpoints" / f"{name}.pt"
    if not file.is_file():
        raise ConfigError(
            f"There is no {file}: the run ended before its first evaluation, or this "
            "is not its folder."
        )
    return file


def _check_labels(asked: EvaluateConfig, seed: int) -> None:
    """Refuse labels that are not of the episodes of this seed that will be played."""
    check_extra("labels", "nltk", "label", "evaluate without it")
    if asked.checkpoint == "random":
        raise no_effect("labels", asked.labels, "checkpoint=random")
    if asked.seed not in (None, seed):
        raise ConfigError(
            f"seed is {asked.seed}, but people label episodes of seed {seed}: leave "
            "seed out, or labels."
        )
    items, _, _ = _labels(asked)
    last = max(int(item.name) for item in items)
    if last >= asked.episodes:
        raise ConfigError(
            f"episodes is {asked.episodes}, but {asked.labels} goes up to episode "
            f"{last}, counted from 0: give episodes={last + 1} or more."
        )


def _labels(asked: EvaluateConfig) -> Any:
    """What people said of the episodes of the policy that is evaluated."""
    from vlmrm_exp.labelling.label_file import read_episodes

    policy = checkpoint_in(Path(asked.run).expanduser(), asked.checkpoint)
    path = Path(str(asked.labels)).expanduser()
    return read_episodes(path, asked.run, sha256(policy))


def evaluate(asked: EvaluateConfig, config: Config) -> dict[str, Any]:
    """Play, judge, write and return what evaluation.json holds.

    A ConfigError if the checkpoint or what the run needs cannot be had.
    """
    import torch  # here and below, as refusals are immediate

    from vlmrm_exp.envs import check_world
    from vlmrm_exp.envs.in_order import make_envs
    from vlmrm_exp.log.versions import versions
    from vlmrm_exp.reward.workers import example_of, make_pool
    from vlmrm_exp.rl.checkpoint import load_reward
    from vlmrm_exp.rl.evaluation import judge, play, write_video
    from vlmrm_exp.rl.policy import load_policy

    check_world(config)
    folder = Path(asked.run).expanduser()
    # Before hours of episodes, in which the file may go.
    labels = None if asked.labels is None else _labels(asked)
    seed = config.seed + SEED_OFFSET if asked.seed is None else asked.seed
    device = choose_device(config.compute.device)
    torch.set_num_threads(config.compute.torch_threads)
    policy = None
    if asked.checkpoint != "random":
        policy = load_policy(checkpoint_in(folder, asked.checkpoint), device)
    with contextlib.ExitStack() as opened:
        num_envs = min(config.algo.num_envs, asked.episodes)
        envs = make_envs(config.task, num_envs, config.compute.num_physics_threads)
        opened.callback(envs.close)
        envs.reset(seed)
        asks_for_all = replace(config, reward=replace(config.reward, query_share=1.0))
        pool = make_pool(asks_for_all, example_of(config, envs))
        opened.callback(pool.close)
        load_reward(folder, pool)
        envs = pool.around(envs)
        if policy:
            policy.check_fits(envs, folder, config.task.name)
        envs.action_space.seed(seed)

        def random() -> Iterator[np.ndarray]:
            """As training's: each action is held for some steps."""
            while True:
                held = [envs.action_space.sample() for _ in range(envs.num_envs)]
                repeat = config.algo.random_action_repeat
                yield from itertools.repeat(np.stack(held), repeat)

        actions = random()
        act = policy.act if policy else lambda observation: next(actions)
        rewarded = asked.reward_episodes
        shown = max(config.evaluation.video_episodes, 1) if asked.video else 0
        shown = min(shown, asked.episodes, rewarded)
        started = time.perf_counter()
        played = play(envs, act, asked.episodes, seed, pool, rewarded, shown)
        wall_s = time.perf_counter() - started
        about = {"device": str(device), **pool.about()}
    _tell_of_other_weights(folder / "versions.json", about)
    reward = played.reward.mean(0, dtype=np.float64)
    own_return = played.env_reward.sum(0, dtype=np.float64)
    success, share = played.success, played.goal_share
    result = {
        "task": config.task.name,
        "prompt": config.prompts,
        "baseline": config.baselines,
        "alpha": config.alpha,
        "clip": config.clip.name,
        "reward": config.reward.name,
        "textures": config.task.textures,
        "camera": config.task.camera,
        "checkpoint": asked.checkpoint,
        "policy_env_steps": policy.env_steps if policy else 0,
        "seed": seed,
        "num_envs": envs.num_envs,
        "episode_length": envs.episode_length,
        **judge(played),
        "eval/reward_standard_error": standard_error(reward),
        "eval/return_standard_error": standard_error(own_return),
        "per_episode": {
            "reward_mean": reward.tolist(),
            "return": own_return.tolist(),
            "success": None if success is None else success.tolist(),
            "goal_share": None if share is None else share.tolist(),
        },
        "wall_s": wall_s,
        "versions": versions(about),
    }
    print(report(result))
    if labels is not None:
        from vlmrm_exp.labelling import agreement

        people = agreement.tables(*labels)
        result["people"] = {"labels": asked.labels, **people}
        told = agreement.report(people)
        print(f"\nWhat people say of these episodes ({asked.labels}):\n\n{told}\n")
    name = _free_name(folder, asked.checkpoint)
    write_json(folder / f"{name}.json", result)
    print(f"  saved    {folder / name}.json")
    if asked.video:
        video = folder / "videos" / f"{name}.mp4"
        write_video(video, config, played)
        print(f"  video    {video}")
    return result


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean over episodes (N,); steps of one are no independent samples."""
    count = len(values)
    return float(values.std(ddof=1) / math.sqrt(count)) if count > 1 else None


def _free_name(folder: Path, checkpoint: str) -> str:
    """A name that no earlier evaluation has: with a number if it is taken."""
    name = "evaluation" if checkpoint == "best" else f"evaluation-{checkpoint}"
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    return next(free for free in names if not (folder / f"{free}.json").exists())


def _tell_of_other_weights(recorded: Path, about: dict[str, Any]) -> None:
    """Say so if rewards are not comparable with the run's own, by its versions.json."""
    try:
        before = _weights(json.loads(recorded.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError):
        print(f"{recorded} cannot be read: rewards may be of other weights than then.")
        return
    for of, now in _weights(about).items():
        if before.get(of) != now:
            print(
                f"The {of}'s weights are not those that the run was trained with "
                f"(SHA-256 {str(before.get(of))[:8]} then, {str(now)[:8]} now): "
                "rewards differ."
            )


def _weights(about: dict[str, Any]) -> dict[str, str | None]:
    """SHA-256 of the weights that gave rewards: of the model, or of each member's."""
    models = {"model": about}
    if members := about.get("member_models"):
        models = {f"member {name}": member for name, member in members.items()}
    encoders = {of: one.get("encoder") or {} for of, one in models.items()}
    return {of: encoder.get("weights_sha256") for of, encoder in encoders.items()}


def report(result: dict[str, Any]) -> str:
    """A few lines for people."""
    from vlmrm_exp.rl.evaluation import BUCKETS, passed_text

    def mean(name: str) -> str:
        error = result[f"eval/{name}_standard_error"]
        told = "" if error is None else f" ± {error:.2g}"
        return f"{result[f'eval/{name}_mean']:.4g}{told}"

    count, rate = result["eval/episodes"], result["eval/success_rate"]
    success = "this task has no predicate for it"
    if rate is not None:
        low, high = result["eval/success_low"], result["eval/success_high"]
        interval = f"(95 % interval {low:.2f} to {high:.2f})"
        success = f"{rate:.2f} {interval}, {round(rate * count)}/{count}"
    if (shares := result["eval/buckets"]) is not None:
        each = (f"{b} %: {share:.0%}" for b, share in zip(BUCKETS, shares, strict=True))
        told = f"{', '.join(each)} of episodes (nearest share of steps)"
        success += f"\n  in goal  {told}"
    success = "\n".join([success, *passed_text(result)])
    return (
        f"{result['task']}: {' / '.join(result['prompt'])}\n"
        f"  policy   {result['checkpoint']}, after "
        f"{result['policy_env_steps']:,} env steps of training\n"
        f"  episodes {count} of {result['episode_length']} env steps, "
        f"start states of seed {result['seed']}\n"
        f"  success  {success}\n"
        f"  reward   {mean('reward')} per step (± standard error), of "
        f"{result['eval/reward_episodes']} episodes\n"
        f"  return   {mean('return')} per episode, the environment's own"
    )


if __name__ == "__main__":
    app.start(lambda composed: evaluate(*check(composed)), "evaluate", check)
