"""Train a policy from a sentence: python -m vlmrm_exp task=... clip=... key=value ...

Hydra composes the configuration; it becomes typed values once, here, and everything
that a run opens is closed here.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vlmrm_exp import app
from vlmrm_exp.config import (
    Config,
    ConfigError,
    FinishedError,
    conf_dir,
    to_config,
)
from vlmrm_exp.files import written_whole
from vlmrm_exp.run_folder import RUN_FORMAT, check_folder, mapping
from vlmrm_exp.signals import (
    INTERRUPTED,
    REQUEUE,
    REQUEUE_SIGNALS,
    TooLate,
    interrupts_at_the_end,
)
from vlmrm_exp.told import judge_configs, with_members


def check(composed: app.Composed) -> Config:
    """Typed values that fit each other, the task's world and the reward model.

    Raises:
        ConfigError: one sentence says what does not.
    """
    config = to_config(composed.cfg)
    from vlmrm_exp.envs import check_world, world_of

    check_world(config)
    frames = world_of(config.task).state_size is None
    if config.reward.query_share < 1 and frames:
        raise ConfigError(
            f"reward.query_share is {config.reward.query_share}, but "
            f"task={config.task.name} renders itself, and gives frames for states: "
            "give reward.query_share=1."
        )
    if config.reward.pessimism > 0 and config.reward.query_share == 1:
        raise ConfigError(
            f"reward.pessimism is {config.reward.pessimism}, but no reward is "
            "estimated: give reward=learned, or leave it out."
        )
    with interrupts_at_the_end():  # for members and judges it imports torch
        config = with_members(composed, config)
        judge_configs(composed, config)
    if config.compute.device == "gpu":
        from vlmrm_exp.reward import choose_device

        choose_device("gpu")
    if composed.folder is not None:
        check_folder(composed.folder, app.resolved(config))
    elif config.log.mode != "none" and "WANDB_RUN_ID" in os.environ:
        raise ConfigError(
            "WANDB_RUN_ID is set, by which all jobs of a sweep would be one W&B run: "
            "unset it."
        )
    return config


def train(composed: app.Composed) -> float | None:
    """Run one job; returns the kept policy's mean reward, for sweepers."""
    folder = composed.folder
    assert folder is not None
    try:
        config = check(composed)
    except FinishedError as error:  # a job of a sweep that is started again
        print(error)
        return mapping(folder / "summary.json").get("eval/reward_mean")
    typed = {key: value for key, _, value in (k.partition("=") for k in composed.keys)}
    judges = judge_configs(composed, config)
    with interrupts_at_the_end():  # it imports torch
        from vlmrm_exp.notes import notes
    for note in notes(judges, config, typed):
        print(note)
    preset = f"{typed.get('experiment')}_{typed.get('task', 'mountaincar')}.yaml"
    if preset.startswith("paper") and not (conf_dir() / "preset" / preset).exists():
        print(f"The paper has no settings of its own for task={typed['task']}.")
    if config.stages and config.reward.model == "clip":
        print("reward=clip reads one prompt; reward=stages goes through the stages.")
    with written_whole(folder / "config.yaml") as part:
        part.write_text(app.resolved(config), encoding="utf-8")
    return run(config, folder, judges)


def run(
    config: Config, folder: Path, judges: Mapping[str, Config] = MappingProxyType({})
) -> float | None:
    """Train, evaluate and write everything into `folder`.

    Args:
        config: checked.
        folder: the run's.
        judges: configurations of second opinions, by name.
    """
    # Imported here so that --help, --cfg and refusals are immediate.
    with interrupts_at_the_end():
        import torch

        from vlmrm_exp.files import write_json
        from vlmrm_exp.log import RunLog
        from vlmrm_exp.log.versions import versions
        from vlmrm_exp.reward import choose_device, facts_of, reward_class
        from vlmrm_exp.reward.ensemble import member_configs
        from vlmrm_exp.rl import checkpoint, dqn, sac
        from vlmrm_exp.rl.summary import finish

    if config.task.env == "gym":
        opinions = config, *member_configs(config).values(), *judges.values()
        asked = [one for one in opinions if reward_class(one).sees_pictures]
        app.tell_embedded({one.clip.name: one.clip for one in asked}.values())
    device = choose_device(config.compute.device)
    torch.set_num_threads(config.compute.torch_threads)
    started = time.perf_counter()
    exit_code = 1
    with contextlib.ExitStack() as opened:
        envs, eval_envs, pool = open_parts(config, opened, judges)
        saved: dict[str, Any] = {"state": None, "log": None}
        if checkpoint.has_state(folder):
            saved = checkpoint.load(folder)
            steps = saved["state"]["learned_steps"]
            if config.env_steps < steps:
                raise ConfigError(
                    f"{folder} has had {steps:,} env steps already, more than "
                    f"env_steps={config.env_steps:,}: give that many at least."
                )
            print(f"Going on with {folder} from env step {steps:,}.")
            started -= saved["log"]["wall_s"]
        about = {"run_format": RUN_FORMAT, "device": str(device), **pool.about()}
        if pool.judges:
            about["judges"] = {n: facts_of(judge) for n, judge in pool.judges.items()}
        about = versions(about)
        log = RunLog(folder, config, saved["log"], about)
        (folder / "error.txt").unlink(missing_ok=True)  # of an earlier, failed start
        opened.callback(lambda: log.close(exit_code))
        write_json(folder / "versions.json", about)
        states = checkpoint.Checkpoint(log, config.compute.checkpoint_s)
        algorithm = {"sac": sac, "dqn": dqn}[config.algo.name]
        try:
            state = algorithm.train(
                config, envs, eval_envs, pool, log, device,
                saved["state"], states.save_when_due,
            )  # fmt: skip
            stopped = state.interrupted
            if state.whole:
                states.save(state)
        except TooLate as late:
            state, (stopped,) = None, late.args
        if state is None or stopped in REQUEUE_SIGNALS:
            print(f"Stopped by a signal: name={folder.name} goes on from here.")
            exit_code = REQUEUE
            waits = signal.getsignal(stopped)
            if getattr(waits, "__module__", "").startswith("submitit"):
                signal.raise_signal(stopped)  # it starts this job again
            sys.exit(exit_code)
        try:
            summary = finish(config, state, eval_envs, pool, log, device, started)
        except KeyboardInterrupt:
            exit_code = INTERRUPTED
            print(
                "Stopped at once, without a summary and a video: the policies kept so "
                f"far, if any, are in {folder / 'checkpoints'}.",
                flush=True,
            )
            raise
        exit_code = INTERRUPTED if state.interrupted else 0
        if not state.interrupted:
            states.remove()
        if state.interrupted:
            sys.exit(exit_code)
        return summary["eval/reward_mean"]


def open_parts(
    config: Config,
    opened: contextlib.ExitStack,
    judges: Mapping[str, Config] = MappingProxyType({}),
) -> tuple[Any, Any, Any]:
    """Open what a run simulates, rewards and judges with; `opened` closes it.

    Returns:
        Environments of training, those of evaluation, and the pool.
    """
    import numpy as np  # as above; `run` has imported all of it

    from vlmrm_exp.envs import check_algo
    from vlmrm_exp.envs.in_order import make_envs
    from vlmrm_exp.reward import Episodes
    from vlmrm_exp.reward.pool import close, make_judge, make_pool

    threads = config.compute.num_physics_threads
    envs = make_envs(config.task, config.algo.num_envs, threads)
    opened.callback(envs.close)
    eval_envs = make_envs(config.task, config.evaluation.episodes, threads)
    opened.callback(eval_envs.close)
    check_algo(envs.action_space, config.algo.name, config.task.env_id)
    envs.reset(config.seed)
    own = np.zeros((1, config.algo.num_envs), np.float32)
    example = Episodes(states=envs.states()[None], env_reward=own, online=own)
    pool = make_pool(config, example)
    opened.callback(pool.close)
    for name, told in judges.items():
        judge = make_judge(name, told, example)
        opened.callback(close, judge)
        pool.judges = {**pool.judges, name: judge}
    return pool.around(envs), pool.around(eval_envs), pool


if __name__ == "__main__":
    app.start(
        train,
        check=check,
        interrupted="Interrupted: what was written so far stays.",
        goes_on=True,
    )
