"""Whether a run can start, told before anything heavy is loaded and a folder made."""

import os

from vlmrm_exp.app import Composed
from vlmrm_exp.checks import to_config
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.run_folder import check_folder
from vlmrm_exp.settings import resolved
from vlmrm_exp.signals import interrupts_at_the_end
from vlmrm_exp.told import judge_configs, with_members


def check(composed: Composed) -> Config:
    """Typed values that fit each other, the world and the reward; else a ConfigError."""
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
        from vlmrm_exp.device import choose_device

        choose_device("gpu")
    if composed.folder is not None:
        check_folder(composed.folder, resolved(config))
    elif config.log.mode != "none" and "WANDB_RUN_ID" in os.environ:
        raise ConfigError(
            "WANDB_RUN_ID is set, by which all jobs of a sweep would be one W&B run: "
            "unset it."
        )
    return config
