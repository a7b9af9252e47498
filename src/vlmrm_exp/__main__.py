"""Train a policy from a sentence: python -m vlmrm_exp task=... clip=... key=value ...

Hydra composes the configuration; it becomes typed values once, here, and everything
that a run opens is closed here.
"""

import contextlib
import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vlmrm_exp.cli import INTERRUPTED, refuse, run_hydra
from vlmrm_exp.config import Config, ConfigError, check_name, conf_dir, to_config

logger = logging.getLogger("vlmrm_exp")


class FolderTakenError(ConfigError):
    """The folder holds another run, which is left as it is."""


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def train(cfg: DictConfig) -> float | None:
    """Run one job; returns the kept policy's mean reward, for sweepers."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        if (folder / "metrics.jsonl").exists():
            raise FolderTakenError(
                f"{folder} holds a run already: choose another name=..., or remove it."
            )
        config = to_config(cfg)
        (folder / "error.txt").unlink(missing_ok=True)  # of an earlier, failed start
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
        return run(config, folder)
    except Exception as error:
        # A sweep goes on after a failed job, and tells of the first failure only.
        if not isinstance(error, FolderTakenError):  # that run is not to blame
            (folder / "error.txt").write_text(traceback.format_exc())
        if HydraConfig.get().mode == RunMode.RUN and isinstance(error, ConfigError):
            refuse(str(error))
        raise


def run(config: Config, folder: Path) -> float | None:
    """Train, evaluate and write everything into `folder`."""
    # Imported here so that --help, --cfg and refusals are immediate.
    with interrupts_at_the_end():
        import torch

        from vlmrm_exp import rl
        from vlmrm_exp.envs import check_algo, make_envs
        from vlmrm_exp.log import RunLog, versions, write_json
        from vlmrm_exp.rl.labels import make_labeller
        from vlmrm_exp.study.settings import tell_embedded
        from vlmrm_exp.vlm.scorer import choose_device

    if config.task.env == "gym" and config.reward == "clip":
        tell_embedded([config.clip])
    device = choose_device(config.compute.device)
    torch.set_num_threads(config.compute.torch_threads)
    threads = config.compute.resolved_physics_threads
    envs = make_envs(config.task, config.algo.num_envs, threads)
    eval_envs = make_envs(config.task, config.evaluation.episodes, threads)
    scorer = log = None
    exit_code = 1
    try:
        check_algo(envs.action_space, config.algo.name, config.task.env_id)
        envs.reset(config.seed)
        scorer = make_labeller(config, envs)
        log = RunLog(folder, config)
        facts = {"device": str(device), **(scorer.facts() if scorer else {})}
        write_json(folder / "versions.json", versions(facts))
        this = rl.Run(config, folder, envs, eval_envs, scorer, log, device)
        try:
            rl.train(this)
            summary = this.finish(interrupted=False)
        except KeyboardInterrupt:
            exit_code = INTERRUPTED
            try:
                print(
                    "\nInterrupted: writing checkpoint, summary and video.", flush=True
                )
                this.finish(interrupted=True)
            except KeyboardInterrupt:
                print(
                    "Stopped at once, without a summary and a video: the policies kept "
                    f"so far, if any, are in {folder / 'checkpoints'}.",
                    flush=True,
                )
            sys.exit(INTERRUPTED)
        exit_code = 0
        return summary["eval/reward_mean"]
    finally:
        if log is not None:
            log.close(exit_code)
        if scorer is not None:
            scorer.close()
        envs.close()
        eval_envs.close()


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


def main() -> None:
    """Run `train`, and end bad input in one sentence instead of a traceback."""
    for argument in sys.argv[1:]:
        key, _, name = argument.partition("=")
        if key == "name":  # before Hydra makes that folder
            try:
                check_name(name)
            except ConfigError as error:
                refuse(str(error))
    run_hydra(train, "Interrupted before training began: nothing was learned.")


if __name__ == "__main__":
    main()
