"""Second opinions on a run's episodes: the run's own settings, told differently.

    judge=predicate judge.big=clip=bigG judge.far='[clip=tiny, task.camera=track]'

Each judge is a reward model that looks at the episodes of evaluations, beside the one
that is learned from; the agent never sees what they say.
"""

from dataclasses import replace
from typing import Any

from vlmrm_exp import app, words
from vlmrm_exp.checks import to_config
from vlmrm_exp.config import Config, ConfigError

SAME = ("env", "env_id", "options")
"""Settings of the task on which depends what a state is."""


def judge_configs(composed: app.Composed, config: Config) -> dict[str, Config]:
    """The configuration of each judge, by its name.

    Args:
        composed: the run's.
        config: the same, checked.

    Raises:
        ConfigError: a judge cannot be told so; the sentence names it.
    """
    return {
        name: _judge_config(name, told, composed, config)
        for name, told in config.judge.items()
        if told is not None
    }


def _judge_config(
    name: str, told: Any, composed: app.Composed, config: Config
) -> Config:
    from vlmrm_exp.envs import check_world
    from vlmrm_exp.reward import make_model, reward_class

    settings = [told] if isinstance(told, str) else told
    words.check_judge(name)
    if not isinstance(settings, list) or not all(
        isinstance(setting, str) and "=" in setting for setting in settings
    ):
        raise ConfigError(
            f"judge.{name} is {told!r}, but must say what this judge is told "
            f"differently, as judge.{name}=clip=tiny or "
            f"judge.{name}='[reward=clip, task.camera=side]'."
        )
    try:
        keys = words.to_keys(settings, {})
        if any(key.startswith("reward=") for key in keys):  # with options of its own
            kept = [key for key in composed.keys if "reward.options." not in key]
            composed = replace(composed, keys=tuple(kept))
        judge = to_config(composed.again(*keys).cfg)
        check_world(judge)
        if reward_class(judge).online:
            raise ConfigError(
                f"reward={judge.reward.name} is asked while episodes are played, but "
                "a judge afterwards: tell it another reward, as reward=clip."
            )
        changed = [
            key for key in SAME if getattr(judge.task, key) != getattr(config.task, key)
        ]
        if changed:
            raise ConfigError(
                f"it has another task.{changed[0]}, so other states: leave that out."
            )
        if reward_class(judge).remembers:
            raise ConfigError(
                f"reward={judge.reward.name} learns from the states of training, which "
                "judges are not shown: choose another."
            )
        if reward_class(judge).cheap:  # so it tells at once that it cannot be made
            make_model(judge).close()
    except ConfigError as error:
        raise ConfigError(f"judge.{name}: {error}") from error
    return judge
