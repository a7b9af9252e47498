"""Is a stage that the reward calls reached the goal that the predicate means?

    python scripts/stage_thresholds.py task=kneel_then_stand [key=value ...]

For each stage, of the states that studies look at (goals, other poses, falls, random
actions): how many of those that are reached meet the goal, and how many of those that
meet it are reached. Nothing is trained.
"""

import sys
from dataclasses import replace

from vlmrm_exp import composition
from vlmrm_exp.__main__ import check
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import world_of
from vlmrm_exp.reward.stages import StagesReward
from vlmrm_exp.words import to_keys

STATES = 1000


def main() -> None:
    """Print a line for each stage."""
    keys = to_keys(sys.argv[1:], {})
    config = check(composition.compose("config", "reward=stages", "name=x", *keys))
    world, model = world_of(config.task), StagesReward(config)
    assert world.sample_states is not None
    states = world.sample_states(config.task, STATES, 0).states
    reached = model.progress(model.scores(states)) >= 1  # (B, K)
    goals = [*config.task.before, config.task.goal]
    for k, (goal, stage) in enumerate(zip(goals, config.stages, strict=True)):
        predicate = world.predicate(replace(config.task, goal=goal, before=[]))
        assert predicate is not None
        met = predicate(states)
        both = int((met & reached[:, k]).sum())
        print(f"{config.task.name}, stage {k + 1}: {stage.prompts[0]}")
        print(
            f"  of {len(states)} states {int(met.sum())} meet {goal}, "
            f"{int(reached[:, k].sum())} are reached, {both} both"
        )
    model.close()


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"stage_thresholds: {error}")
