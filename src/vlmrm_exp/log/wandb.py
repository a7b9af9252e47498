"""A run's records for Weights & Biases, offline or online.

Runs reach wandb through this module alone, and only when `log.mode` asks for it.
"""

import contextlib
import dataclasses
import functools
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from pydantic import ValidationError
from wandb.errors import Error as WandbError
from wandb.errors import UsageError
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from vlmrm_exp.config import Config, ConfigError, UnavailableError
from vlmrm_exp.files import plain, reason, shorten
from vlmrm_exp.log.versions import CHECKOUT
from vlmrm_exp.settings import group_hash

UNREAD = tuple(f"WANDB_{x}" for x in "MODE DISABLED PROJECT NAME DIR JOB_TYPE".split())
"""Variables of W&B's in whose place our settings stand."""
NAME = 128
"""Characters of the names of groups and artifacts, at most."""
SUMMARIES = (
    "train/reward_mean",
    "train/return_mean",
    "train/success_rate",
    "reward/error",
)
"""Of these the summary has the lowest, the highest and the last value. Those of eval/
are no part: there the summary has what the kept policy reaches in new episodes."""
GONE = ConnectionError, HandleAbandonedError, MailboxClosedError
"""W&B's own process has ended: which of them depends on the moment."""
INIT_S = 30.0
"""Seconds within which the W&B server must answer before a run starts."""
FINISH_S = 300.0
"""Seconds for the last uploads; what is left stays on disk for `wandb sync`."""


class WandbRun:
    """A W&B run that writes nowhere but into its folder, and asks nothing."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        run_id: str | None,
        about: Mapping[str, Any],
    ) -> None:
        """Start it, or go on with `run_id`; for the rest see `RunLog`."""
        self._folder = folder
        self._run = _start(folder, config, run_id, about)
        self.id: str = self._run.id
        self._restart = functools.partial(_start, folder, config, self.id, about)

    def metrics(self, line: Mapping[str, Any], spreads: Mapping[str, Any]) -> None:
        """Report a line of metrics.jsonl, and arrays as histograms."""
        drawn = {key: wandb.Histogram(value) for key, value in spreads.items()}
        self._tell(lambda run: run.log({**line, **drawn}))

    def video(self, env_steps: int, key: str, path: Path, caption: str) -> None:
        """Report an mp4 that lies in the run's folder; W&B gets the file as it is."""

        def report(run: Any) -> None:
            # Made for this one run: another does not take it.
            video = wandb.Video(str(path), caption=caption, format="mp4")
            run.log({"env_steps": env_steps, key: video})

        self._tell(report)

    def table(self, env_steps: int, key: str, columns: Mapping[str, Sequence]) -> None:
        """Report columns of one length, by their names."""
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        with self._attaching(key):
            table = wandb.Table(columns=list(columns), data=plain(rows))
            self._tell(lambda run: run.log({"env_steps": env_steps, key: table}))

    def policies(self, paths: Sequence[Path], facts: Mapping[str, Any]) -> None:
        """Make the policies an artifact, which the run has as its output."""
        with self._attaching("the policies"):
            artifact = wandb.Artifact(
                f"policy-{self.id}", "policy", metadata=plain(facts)
            )
            for path in paths:
                # Not copied: nobody writes these files any more.
                artifact.add_file(str(path), policy="immutable")
            self._tell(lambda run: run.log_artifact(artifact))

    def summary(self, values: Mapping[str, Any]) -> None:
        """What stands beside the run in tables."""
        self._tell(lambda run: run.summary.update(plain(values)))

    def close(self, exit_code: int) -> None:
        """End the run; one of another exit code than 0 is marked as failed."""
        run = self._run
        last = Path(run.settings.sync_dir)  # after those of the run's earlier pieces
        pieces = sorted(last.parent.glob(f"{last.name.split('-')[0]}*-{run.id}"))
        # One by one: of several, W&B stops after one that was cut off by a kill.
        kept = "; ".join(f"wandb sync {shlex.quote(str(p))}" for p in pieces or [last])
        try:
            run.finish(exit_code=exit_code)
            if run.settings.mode == "offline":
                print(f"W&B: kept offline; upload with: {kept}")
        except (*GONE, TimeoutError) as error:
            print(f"W&B: the upload did not end ({reason(error)}); go on with: {kept}")
        finally:
            # Offline, finish() returns before the records are on disk; this waits, and
            # ends W&B's own process, so that the next job of a multirun starts afresh.
            with contextlib.suppress(*GONE):
                wandb.teardown()

    def _tell(self, report: Callable[[Any], object]) -> None:
        """Report; if W&B's own process was killed, by another one that goes on."""
        try:
            report(self._run)
        except GONE:
            print("W&B: its process has ended, so that it may lack the last reports.")
            with contextlib.suppress(*GONE):
                wandb.teardown()
            self._run = self._restart()
            report(self._run)

    @contextlib.contextmanager
    def _attaching(self, what: str) -> Iterator[None]:
        """Tell of artifacts about which W&B cannot ask its server; the run goes on."""
        try:
            with _files_in(self._folder):
                yield
        except WandbError as error:
            print(f"W&B: {what} could not be added ({reason(error)}).")


def _start(
    folder: Path, config: Config, run_id: str | None, about: Mapping[str, Any]
) -> Any:
    """Start a W&B run that writes nowhere but into the folder, and asks nothing."""
    if dropped := [name for name in UNREAD if name in os.environ]:
        print(
            f"W&B: {', '.join(dropped)}: set, but not read; log.mode, log.project and "
            "the run's folder decide."
        )
    online = config.log.mode == "online"
    settings = wandb.Settings(
        mode="online" if online else "offline",  # whatever WANDB_MODE says
        silent=True,
        console="off",  # leave the terminal to the progress bar
        init_timeout=INIT_S,
        finish_timeout=FINISH_S if online else 0.0,
        finish_timeout_raises=online,
        reinit="create_new",  # jobs of one process are runs of their own
        # Of our code, not of whatever repository this was started in.
        git_root=str(CHECKOUT),
        git_commit=about.get("commit"),
        disable_git="commit" not in about,
    )
    encoder = about.get("encoder") or {}
    size = None
    if encoder.get("parameters_image") is not None:
        size = encoder["parameters_image"] + encoder["parameters_text"]
    flat = {
        "task_name": config.task.name,
        "clip_name": config.clip.name,
        "clip_parameters": size,
        "reward_name": config.reward.name,
        "algo_name": config.algo.name,
        "prompt_text": " / ".join(config.prompts),
        "settings_hash": group_hash(config),
    }
    try:
        with _files_in(folder):
            wandb.setup(settings)
            if online and not wandb.login(prompt=False, verify=False):
                raise ConfigError(
                    "log=wandb needs a W&B account, and none is logged in here: run "
                    "`wandb login` once, or use log=offline and upload later."
                )
            run = wandb.init(
                dir=folder,
                project=config.log.project,
                # Of all that is None here, W&B's own variables are read.
                entity=config.log.entity,
                group=_group(folder, config),
                job_type="train",
                tags=config.log.tags or None,
                notes=config.log.notes,
                name=folder.name,
                id=run_id,
                resume="allow" if run_id else None,
                # As config.yaml, and what W&B can group by: flat keys only.
                config={**dataclasses.asdict(config), **flat},
                settings=settings,
            )
            _use_weights(run, encoder)
    except (WandbError, ValidationError) as error:
        wandb.teardown()
        refused, why, way_out = ConfigError, reason(error), "use log=none"
        if isinstance(error, ValidationError):
            why, way_out = _variable(error.errors()[0]), "correct or unset it"
        elif isinstance(error, UsageError):
            way_out = "correct log.project, or the WANDB_ variables that are set"
        elif online:
            way_out = (
                "check the network and `wandb login`, or use log=offline and upload "
                "later"
            )
            refused = UnavailableError
        raise refused(f"W&B did not start a run ({why}): {way_out}.") from error
    run.define_metric("*", step_metric="env_steps")
    for key in SUMMARIES:
        run.define_metric(key, step_metric="env_steps", summary="min,max,last")
    if online:
        print(f"W&B: {run.url}")
    return run


def _use_weights(run: Any, encoder: Mapping[str, Any]) -> None:
    """Make a model's weights an input of the run: by their digest, not uploaded."""
    if (sha := encoder.get("weights_sha256")) is None:
        return
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"clip-{encoder['name']}")[:NAME]
    weights = wandb.Artifact(name, "model", metadata=plain(encoder))
    weights.add_reference(f"sha256:{sha}", "weights", checksum=False)
    # What use_artifact does, which refuses offline runs.
    run._log_artifact(weights, is_user_created=True, use_after_commit=True)


@contextlib.contextmanager
def _files_in(folder: Path) -> Iterator[None]:
    """Let W&B write into the run's folder what else goes to the home folder.

    Its own process reads these variables when it starts, artifacts when they are made.
    """
    names = {"WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data"}
    borrowed = [name for name in names if name not in os.environ]
    for name in borrowed:
        os.environ[name] = str((folder / "wandb" / names[name]).resolve())
    try:
        yield
    finally:
        for name in borrowed:
            del os.environ[name]


def _group(folder: Path, config: Config) -> str | None:
    """The sweep's name; of a single run task, model and prompt, which seeds share."""
    if config.log.group or "WANDB_RUN_GROUP" in os.environ:
        return config.log.group
    for above in [*folder.resolve().parents][:3]:  # a task's name may have a slash
        if (above / "multirun.yaml").exists():
            return shorten(above.name, NAME)
    names = config.task.name, config.clip.name, " / ".join(config.prompts)
    return shorten(", ".join(names), NAME)


def _variable(wrong: Mapping[str, Any]) -> str:
    """The variable, or else the setting, that W&B cannot read, and why."""
    setting = str(wrong["loc"][0])
    alike = (
        name
        for name in os.environ
        if name.startswith("WANDB_")
        and setting.endswith(name[len("WANDB_") :].strip("_").lower())
    )
    name = max(alike, key=len, default=f"its setting {setting}")
    return f"{name}: {wrong['msg']}"
