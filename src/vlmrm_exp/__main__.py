"""Train a policy from a sentence: python -m vlmrm_exp task=... clip=... key=value ...

    words -> [app] -> settings -> [check] -> Config -> [run] -> the folder of a run

    run: [open_parts] -> environments, pool -> [rl/sac.py: train] -> [finish]

Hydra composes the configuration; it becomes typed values once, here, and everything
that a run opens is closed here.
"""

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmrm_exp import app
from vlmrm_exp.checks import to_config
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, FinishedError
from vlmrm_exp.files import written_whole
from vlmrm_exp.run_folder import RUN_FORMAT, check_folder, mapping
from vlmrm_exp.settings import resolved
from vlmrm_exp.signals import (
    INTERRUPTED,
    REQUEUE_SIGNALS,
    TooLate,
    interrupts_at_the_end,
    requeue,
)
from vlmrm_exp.told import judge_configs, with_members


def check(composed: Composed) -> Config:
    """Typed values that fit each other, the task's world and the reward model.

    What cannot start is refused before anything heavy is loaded and a folder made.
    """
    config = to_config(composed.cfg)
    from vlmrm_exp.envs import check_world

    check_world(config)
    with interrupts_at_the_end():  # for members and judges it imports torch
        config = with_members(composed, config)
        judge_configs(composed, config)
    if config.compute.device == "gpu":
        from vlmrm_exp.device import choose_device

        choose_device("gpu")
    if composed.folder is not None:
        check_folder(composed.folder, resolved(config))
    with interrupts_at_the_end():
        from vlmrm_exp.reward import class_of_run  # at last, as it imports torch
    class_of_run(config)
    return config


def train(composed: Composed) -> float | None:
    """Run one job; returns the kept policy's mean reward, for sweepers."""
    folder = composed.folder
    assert folder is not None
    try:
        config = check(composed)
    except FinishedError as error:  # a job of a sweep that is started again
        print(error)
        return mapping(folder / "summary.json").get("eval/reward_mean")
    judges = judge_configs(composed, config)
    with interrupts_at_the_end():  # it imports torch
        from vlmrm_exp.notes import tell
    tell(composed, config, judges)
    return run(config, folder, judges)


def run(config: Config, folder: Path, judges: Mapping[str, Config]) -> float | None:
    """Train, with judges by name, and write all into `folder`, or go on in it."""
    # Imported here so that --help, --cfg and refusals are immediate.
    with interrupts_at_the_end():
        import torch

        from vlmrm_exp.device import choose_device
        from vlmrm_exp.log import RunLog
        from vlmrm_exp.log.versions import versions
        from vlmrm_exp.rl import checkpoint, dqn, sac
        from vlmrm_exp.rl.summary import finish

    started = time.perf_counter()
    device = choose_device(config.compute.device)
    torch.set_num_threads(config.compute.torch_threads)
    with contextlib.ExitStack() as opened:
        envs, eval_envs, pool = open_parts(config, opened, judges)
        saved = checkpoint.load_if_any(folder, config.env_steps)
        about = {"run_format": RUN_FORMAT, "device": str(device), **pool.about()}
        log = RunLog(folder, config, saved["log"], versions(about), started)
        opened.enter_context(log)
        # Now that nothing is refused any more: a run that goes on may be told more.
        with written_whole(folder / "config.yaml") as part:
            part.write_text(resolved(config), encoding="utf-8")
        states = checkpoint.Checkpoint(log, config.compute.checkpoint_s)
        algorithm = {"sac": sac, "dqn": dqn}[config.algo.name]
        try:
            state = algorithm.train(
                config, envs, eval_envs, pool, log, device,
                saved["state"], states.save_when_due,
            )  # fmt: skip
        except TooLate as late:
            requeue(late.number, folder)
        if state.whole:
            states.save(state)
        if state.interrupted in REQUEUE_SIGNALS:
            requeue(state.interrupted, folder)
        summary = finish(config, state, eval_envs, log, device)
        if state.interrupted:
            sys.exit(INTERRUPTED)
        states.remove()
        return summary["eval/reward_mean"]


def open_parts(
    config: Config, opened: contextlib.ExitStack, judges: Mapping[str, Config]
) -> tuple[Any, Any, Any]:
    """Environments of training, of evaluation, and the pool; `opened` closes them."""
    from vlmrm_exp.envs import check_algo  # as above; `run` has imported all of it
    from vlmrm_exp.envs.in_order import make_envs
    from vlmrm_exp.reward.pool import close
    from vlmrm_exp.reward.workers import example_of, make_judge, make_pool

    threads = config.compute.num_physics_threads
    envs = make_envs(config.task, config.algo.num_envs, threads)
    opened.callback(envs.close)
    eval_envs = make_envs(config.task, config.evaluation.episodes, threads)
    opened.callback(eval_envs.close)
    task = config.task
    check_algo(envs.action_space, config.algo.name, task.env_id or task.env)
    envs.reset(config.seed)
    pool = make_pool(config, example_of(config, envs))
    opened.callback(pool.close)
    for name, told in judges.items():
        judge = make_judge(name, told, example_of(told, envs))
        opened.callback(close, judge)
        pool.judges[name] = judge
    return pool.around(envs), pool.around(eval_envs), pool


if __name__ == "__main__":
    app.start(
        train,
        check=check,
        interrupted="Interrupted: what was written so far stays.",
        goes_on=True,
    )
