"""Train a policy from a sentence: python -m vlmrm_exp task=... clip=... key=value ...

Hydra composes the configuration; it becomes typed values once, here, and everything
that a run opens is closed here.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmrm_exp.config import (
    Config,
    ConfigError,
    conf_dir,
    did_you_mean,
    to_config,
)

logger = logging.getLogger("vlmrm_exp")

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes; the second is the shell's after Ctrl-C

ConfigStore.instance().store(name="schema", node=Config)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def train(cfg: DictConfig) -> float | None:
    """Run one job; returns the kept policy's mean reward, for sweepers."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        config = to_config(cfg)
        if (folder / "metrics.jsonl").exists():
            raise ConfigError(
                f"{folder} holds a run already: choose another name=..., or remove it."
            )
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
        return run(config, folder)
    except Exception as error:
        # A sweep goes on after a failed job, and tells of the first failure only.
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
        from vlmrm_exp.envs import check_algo, make_envs, make_renderer
        from vlmrm_exp.log import RunLog, versions, write_json
        from vlmrm_exp.vlm.scorer import choose_device, make_scorer

    device = choose_device(config.compute.device)
    torch.set_num_threads(config.compute.torch_threads)
    envs = make_envs(config.task, config.algo.num_envs)
    eval_envs = make_envs(config.task, config.evaluation.episodes)
    scorer = log = None
    exit_code = 1
    try:
        check_algo(envs.action_space, config.algo.name, config.task.env_id)
        envs.reset(config.seed)
        draw = partial(
            make_renderer,
            config.task,
            config.frame_height,
            config.clip.render_effects,
        )
        scorer = make_scorer(config, draw, envs.state_rows())
        log = RunLog(folder, config)
        facts = {"device": str(device), **(scorer.facts() if scorer else {})}
        write_json(folder / "versions.json", versions(facts))
        this = rl.Run(config, folder, envs, eval_envs, scorer, log, device)
        try:
            rl.train(this)
            summary = this.finish(interrupted=False)
        except KeyboardInterrupt:
            print("\nInterrupted: writing checkpoint, summary and video.", flush=True)
            this.finish(interrupted=True)
            exit_code = INTERRUPTED
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


def refuse(sentence: str) -> NoReturn:
    """End the program because of bad input."""
    print(f"vlmrm_exp: {sentence}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def one_sentence(error: BaseException) -> str:
    """What Hydra and OmegaConf say over several lines and causes, as one sentence."""
    if error.__cause__ is not None and str(error).startswith("Error merging"):
        value = str(error).removeprefix("Error merging override ").strip("'")
        return f"{value} is not possible: {one_sentence(error.__cause__)}"
    text = str(error)
    if option := re.search(r"Could not find '(\w+)/(.*)'\n", text):
        group, wanted = option.groups()
        options = re.findall(r"^\t(\w+)$", text, re.MULTILINE)
        return (
            f"{group}={wanted} does not exist: choose one of "
            f"{', '.join(o for o in options if not o.startswith('_'))}."
            f"{did_you_mean(wanted, options)}"
        )
    if unknown := re.search(r"Could not override '(.+)'", text):
        wanted = unknown.group(1)
        return (
            f"There is no setting {wanted}: see --help for those there are."
            f"{did_you_mean(wanted, setting_names())}"
        )
    if text.startswith("Ambiguous value for argument"):
        argument = text.splitlines()[0].split("'")[1]
        return (
            f"{argument} holds a comma: add -m to sweep over it, or put it in quotes."
        )
    lines = [line.strip() for line in text.splitlines()]
    dropped = ("full_key:", "object_type=", "reference_type=", "See https", "")
    return " ".join(x for x in lines if x and not x.startswith(dropped[:-1]))


def setting_names() -> list[str]:
    """Every key of the schema, dotted."""
    names: list[str] = ["experiment"]
    for field in fields(Config):
        inner = field.default_factory
        if isinstance(inner, type) and is_dataclass(inner):
            names += [field.name, *(f"{field.name}.{f.name}" for f in fields(inner))]
        else:
            names.append(field.name)
    return names


def quote_sentence(argument: str) -> str:
    """Let prompt=... and baseline=... be typed as a plain sentence.

    Hydra would take its commas for a sweep. What is quoted or a list already stays.
    """
    key, equals, value = argument.partition("=")
    inner = value.strip()
    brackets = inner[:1] + inner[-1:]
    if key.lstrip("+") not in ("prompt", "baseline") or not inner or not equals:
        return argument
    if brackets in ("[]", "''", '""') and len(inner) > 1:
        return argument
    # In Hydra's quotes a backslash means something only before a quote or at the end.
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    value = re.sub(r"(\\+)$", r"\1\1", value).replace("${", "\\${")
    return f"{key}='{value}'"


def main() -> None:
    """Run `train`, and end bad input in one sentence instead of a traceback."""
    # Hydra then raises its errors here instead of printing them over many lines.
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # A job scheduler's polite request to stop is treated like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.argv = [quote_sentence(argument) for argument in sys.argv]
    try:
        train()
    except FloatingPointError as error:  # a reward or a loss; what was written stays
        sys.exit(f"vlmrm_exp: {error}")
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            raise
        refuse(one_sentence(error))
    except OSError as error:
        if wants_traceback or error.filename is None:
            raise
        refuse(f"{error.filename} cannot be used: {error.strerror}.")
    except KeyboardInterrupt:
        print("Interrupted before training began: nothing was learned.", flush=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
