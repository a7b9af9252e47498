"""A run's own settings, told differently: judges, and members of an ensemble.

    judge=predicate judge.big=clip=bigG judge.far='[clip=tiny, task.camera=track]'
    reward=ensemble member.big=clip=bigG member.far=task.camera=track

Each judge is a reward model that looks at the episodes of evaluations, beside the one
that is learned from; the agent never sees what they say. Each member is one of several
that are learned from together (`reward/ensemble.py`).
"""

import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

from vlmrm_exp import words
from vlmrm_exp.checks import to_config
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, ConfigError, as_list
from vlmrm_exp.settings import OF_ONE_MODEL

SAME = ("env", "env_id", "options")
"""Settings of the task on which depends what a state is."""
NOT_OF_MEMBERS = ("name", "judge", "member", "stages")
"""Settings that no reward of single states reads."""


def judge_configs(composed: Composed, config: Config) -> dict[str, Config]:
    """The configuration of each judge, by its name; `config` is the run's, checked."""
    return {
        name: _config("judge", name, told, composed, config)
        for name, told in config.judge.items()
        if told is not None
    }


def with_members(composed: Composed, config: Config) -> Config:
    """The configuration with what each member changes in it, instead of what was typed.

    Members that cannot be told or combined so, or none, are refused.
    """
    if config.reward.model != "ensemble":
        return replace(config, member={})
    changes = {
        name: _changes(config, _config("member", name, told, composed, config), told)
        for name, told in config.member.items()
        if told is not None
    }
    if not changes:
        raise ConfigError(
            f"reward={config.reward.name} has no members: give some, as "
            "member.big=clip=bigG."
        )
    return replace(config, member=changes)


def keys_of(told: str | list[str]) -> list[str]:
    """The keys of what a judge or a member is told."""
    return [setting.partition("=")[0] for setting in as_list(told)]


def _changes(own: Config, other: Config, told: str | list[str]) -> dict[str, Any]:
    """Settings of `other` that were told or differ; of a group, as clip, its fields."""
    found, keys = {}, keys_of(told)
    for key in (field.name for field in fields(Config)):
        was, now = getattr(own, key), getattr(other, key)
        if is_dataclass(now):
            changed = {
                name: value
                for name, value in vars(now).items()
                if value != getattr(was, name)
                or not {key, f"{key}.{name}"}.isdisjoint(keys)
            }
            found |= {key: changed} if changed else {}
        elif (now != was or key in keys) and key not in NOT_OF_MEMBERS:
            found[key] = now
    return found


def _config(
    kind: str, name: str, told: Any, composed: Composed, config: Config
) -> Config:
    """The configuration of one judge or member."""
    from vlmrm_exp.envs import check_world
    from vlmrm_exp.reward import checked_class, reward_class

    settings = as_list(told)
    words.check_name(kind, name)
    if not all(isinstance(setting, str) and "=" in setting for setting in settings):
        raise ConfigError(
            f"{kind}.{name} is {told!r}, but must say what this {kind} is told "
            f"differently, as {kind}.{name}=clip=tiny or "
            f"{kind}.{name}='[reward=clip, task.camera=side]'."
        )
    if isinstance(told, str):
        key, _, value = told.partition("=")
        one = key.lstrip("+") in words.SENTENCES or value[:1] in ("[", "{", "'", '"')
        if not one and re.search(r",\s*\+*[\w.]+=", value):
            raise ConfigError(
                f"{kind}.{name} is told several settings by {told}: put them in "
                f"brackets, as {kind}.{name}='[{told}]'."
            )
    try:
        # Read as those of `bench`: with members, but without judges.
        keys = words.to_keys(settings, {}, program="bench" if kind == "judge" else "")
        other_reward = any(key.startswith("reward=") for key in keys)
        if kind == "member" and not other_reward:
            keys, other_reward = ["reward=clip", *keys], True
        # What was typed for the run's reward or model is not for another one.
        without = ("reward.",) if other_reward else ()
        if any(key.startswith("clip=") for key in keys):
            without += OF_ONE_MODEL
        again = composed.again(*keys, without=without)
        other = to_config(again.cfg)
        check_world(other)
        for key in SAME:
            if getattr(other.task, key) != getattr(config.task, key):
                raise ConfigError(
                    f"it has another task.{key}, so other states: leave that out."
                )
        reward, model = f"reward={other.reward.name}", reward_class(other)
        if model.online:
            raise ConfigError(
                f"{reward} is asked while episodes are played, but a {kind} "
                "afterwards: tell it another reward, as reward=clip."
            )
        if model.remembers:
            raise ConfigError(
                f"{reward} learns from the states of training, which {kind}s are not "
                "shown: choose another."
            )
        if kind == "judge":
            other = with_members(again, other)
        elif other.reward.model == "ensemble":
            raise ConfigError(f"{reward} is no member of another: choose another one.")
        elif model.window > 1 or not model.needs_states:
            raise ConfigError(
                f"{reward} is not of single states, as members are: choose another."
            )
        checked_class(other)
    except ConfigError as error:
        raise type(error)(f"{kind}.{name}: {error}") from error
    return other
