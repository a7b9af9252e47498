"""Train a policy from a sentence: python -m vlmrm_exp task=... clip=... key=value ...

Hydra composes the configuration; it becomes typed values once, here, and everything
that a run opens is closed here.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vlmrm_exp import app
from vlmrm_exp.config import Config, FolderTakenError, conf_dir, to_config, unread


def check(composed: app.Composed) -> Config:
    """Typed values that fit each other, the task's world and the reward model.

    Raises:
        ConfigError: one sentence says what does not.
    """
    config = to_config(composed.cfg)
    from vlmrm_exp.envs import check_world

    check_world(config)
    if config.compute.device == "gpu":
        from vlmrm_exp.reward import choose_device

        choose_device("gpu")
    folder = composed.folder
    if folder is not None and (folder / "metrics.jsonl").exists():
        raise FolderTakenError(
            f"{folder} holds a run already: choose another name=... (or "
            "hydra.run.dir, if that was given), or remove it."
        )
    return config


def train(composed: app.Composed) -> float | None:
    """Run one job; returns the kept policy's mean reward, for sweepers."""
    folder = composed.folder
    assert folder is not None
    config = check(composed)
    typed = {key: value for key, _, value in (k.partition("=") for k in composed.keys)}
    for note in unread(config, typed):
        print(note)
    preset = f"{typed.get('experiment')}_{typed.get('task', 'mountaincar')}.yaml"
    if preset.startswith("paper") and not (conf_dir() / "preset" / preset).exists():
        print(f"The paper has no settings of its own for task={typed['task']}.")
    (folder / "config.yaml").write_text(app.resolved(composed.cfg), encoding="utf-8")
    return run(config, folder)


def run(config: Config, folder: Path) -> float | None:
    """Train, evaluate and write everything into `folder`."""
    # Imported here so that --help, --cfg and refusals are immediate.
    with interrupts_at_the_end():
        import numpy as np
        import torch

        from vlmrm_exp.envs import check_algo, world_of
        from vlmrm_exp.files import write_json
        from vlmrm_exp.log import RunLog, versions
        from vlmrm_exp.reward import Episodes, choose_device
        from vlmrm_exp.reward.pool import make_pool
        from vlmrm_exp.rl import dqn, sac
        from vlmrm_exp.rl.summary import finish

    if config.task.env == "gym" and config.reward.model == "clip":
        app.tell_embedded([config.clip])
    device = choose_device(config.compute.device)
    torch.set_num_threads(config.compute.torch_threads)
    started = time.perf_counter()
    exit_code = 1
    with contextlib.ExitStack() as opened:
        make_envs = world_of(config.task).make_envs
        threads = config.compute.num_physics_threads
        envs = make_envs(config.task, config.algo.num_envs, threads)
        opened.callback(envs.close)
        eval_envs = make_envs(config.task, config.evaluation.episodes, threads)
        opened.callback(eval_envs.close)
        check_algo(envs.action_space, config.algo.name, config.task.env_id)
        envs.reset(config.seed)
        own = np.zeros((1, config.algo.num_envs), np.float32)
        example = Episodes(states=envs.states()[None], env_reward=own)
        pool = make_pool(config, example)
        opened.callback(pool.close)
        log = RunLog(folder, config)
        (folder / "error.txt").unlink(missing_ok=True)  # of an earlier, failed start
        opened.callback(lambda: log.close(exit_code))
        about = {"device": str(device), **pool.about()}
        write_json(folder / "versions.json", versions(about))
        algorithm = {"sac": sac, "dqn": dqn}[config.algo.name]
        state = algorithm.train(config, envs, eval_envs, pool, log, device)
        try:
            summary = finish(config, state, eval_envs, pool, log, device, started)
        except KeyboardInterrupt:
            exit_code = app.INTERRUPTED
            print(
                "Stopped at once, without a summary and a video: the policies kept so "
                f"far, if any, are in {folder / 'checkpoints'}.",
                flush=True,
            )
            sys.exit(exit_code)
        exit_code = app.INTERRUPTED if state.interrupted else 0
        if state.interrupted:
            sys.exit(exit_code)
        return summary["eval/reward_mean"]


@contextlib.contextmanager
def interrupts_at_the_end() -> Iterator[None]:
    """Hold Ctrl-C back: some packages cannot be interrupted while they are imported."""
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


if __name__ == "__main__":
    app.start(
        train,
        check=check,
        interrupted="Interrupted: what was written so far stays.",
    )
