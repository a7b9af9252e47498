"""What a run tells: metrics.jsonl always, W&B or TensorBoard when asked, and progress.

The same keys go to all, over `env_steps`: train/, loss/, eval/, reward/ and perf/.
Only perf/ may differ between two runs of one seed. Runs reach wandb through this module
alone, and only when `log.mode` asks for it.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from tqdm import tqdm

from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.files import lock, plain, reason, shorten, write_json

PACKAGES = (
    "vlmrm_exp",
    "gymnasium",
    "huggingface_hub",
    "hydra-core",
    "mujoco",
    "numpy",
    "omegaconf",
    "open_clip_torch",
    "pillow",
    "timm",
    "torch",
    "torchvision",
    "wandb",
)
CHECKOUT = Path(__file__).resolve().parents[2]
"""Of our code, unless it was installed otherwise."""
WANDB_UNREAD = tuple(
    f"WANDB_{x}" for x in "MODE DISABLED PROJECT NAME DIR JOB_TYPE".split()
)
"""Variables of W&B's in whose place our settings stand."""
WANDB_NAME = 128
"""Characters of the names of groups and artifacts, at most."""
WANDB_SUMMARIES = (
    "train/reward_mean",
    "train/return_mean",
    "train/success_rate",
    "reward/error",
)
"""Of these the summary has the lowest, the highest and the last value. Those of eval/
are no part: there the summary has what the kept policy reaches in new episodes."""
WANDB_INIT_S = 30.0
"""Seconds within which the W&B server must answer before a run starts."""
WANDB_FINISH_S = 300.0
"""Seconds for the last uploads; what is left stays on disk for `wandb sync`."""


SHOWN = ("train/reward_mean", "train/return_mean", "train/success_rate")
"""Metrics beside the progress bar."""
SHOWN_AFTER_S = 2.0
"""Seconds of work that show no progress."""
LOG_EVERY_S = 10.0
"""Seconds between lines of progress where there is no terminal, as in a log file."""


class RunLog:
    """The records of one run, in its folder, and its progress on stderr."""

    wandb_id: str | None
    """W&B's id of this run, by which a later run can go on in it; None without W&B."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        saved: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Open metrics.jsonl, and what else `log.mode` says.

        Args:
            folder: of the run.
            config: the run's.
            saved: a `state_dict` to go on from; what was written later is cut off.
            about: what versions.json holds, of which W&B gets the commit and the model.

        Raises:
            ConfigError: another process writes this run; W&B cannot be reached, or
                does not know who is logging.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        try:
            lock(self._metrics)
            for left in folder.rglob(".*.[0-9]*.part*"):  # by a killed process
                left.unlink()
            kept = saved["metrics_bytes"] if saved else 0
            if (folder / "metrics.jsonl").stat().st_size < kept:
                raise ConfigError(
                    f"{folder / 'metrics.jsonl'} is shorter than when the run's state "
                    "was saved: bring it back, or start anew under another name."
                )
            self._metrics.truncate(kept)
            run_id, self._wandb = (saved or {}).get("wandb_id"), None
            self._tensorboard = None
            if config.log.mode == "tensorboard":
                self._tensorboard = _start_tensorboard(folder)
            elif config.log.mode != "none":
                self._wandb = _start_wandb(folder, config, run_id, about or {})
        except BaseException:
            self._metrics.close()
            raise
        self.wandb_id = self._wandb.id if self._wandb else None
        self._progress = progress_bar(config.env_steps, "step", "training")
        self._laps: dict[str, float] = {}
        self._lap_started = time.perf_counter()
        self._started = self._lap_started - (saved["wall_s"] if saved else 0)
        self._first: tuple[float, int] | None = None  # report: when, and env steps
        self._last_steps = saved["env_steps"] if saved else 0
        self._progress.update(self._last_steps)

    def lap(self, key: str) -> None:
        """Time what was done since the last lap, for the next report, in s."""
        now = time.perf_counter()
        self._laps[key] = self._laps.get(key, 0.0) + now - self._lap_started
        self._lap_started = now

    def metrics(
        self,
        env_steps: int,
        values: Mapping[str, float],
        spreads: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Report numbers: one line of metrics.jsonl, written through at once.

        Args:
            env_steps: the x-axis, summed over environments.
            values: one number per key; what is not finite becomes null. Laps are
                added, and the rate of env steps.
            spreads: arrays of finite numbers, for W&B alone, as histograms.
        """
        line = {"env_steps": env_steps, **values, **self._laps}
        step, self._last_steps = env_steps - self._last_steps, env_steps
        if (rate := self.env_steps_per_s()) is not None:
            line["perf/env_steps_per_s"] = rate
        if self._first is None:
            self._first = time.perf_counter(), env_steps
        self._laps = {}
        self._metrics.write(json.dumps(plain(line), allow_nan=False) + "\n")
        self._metrics.flush()
        if self._wandb:
            import wandb

            drawn = {key: wandb.Histogram(value) for key, value in spreads.items()}
            self._wandb.log({**line, **drawn})
        if self._tensorboard:
            _add_scalars(self._tensorboard, line)
        shown = {k.split("/")[1].split("_")[0]: f"{values[k]:.3g}"
                 for k in SHOWN if k in values}  # fmt: skip
        self._progress.set_postfix(shown, refresh=False)
        self._progress.update(step)

    def state_dict(self) -> dict[str, Any]:
        """Where the records stand."""
        return {
            "metrics_bytes": self._metrics.tell(),
            "env_steps": self._last_steps,
            "wandb_id": self.wandb_id,
            "wall_s": time.perf_counter() - self._started,  # earlier pieces included
        }

    def env_steps_per_s(self) -> float | None:
        """The rate since the first report, all included; None before the second."""
        if self._first is None or self._last_steps == self._first[1]:
            return None
        seconds = time.perf_counter() - self._first[0]
        return (self._last_steps - self._first[1]) / seconds

    def video(self, env_steps: int, key: str, path: Path, caption: str) -> None:
        """Report an mp4 that lies in the run's folder; W&B gets the file as it is."""
        if self._wandb:
            import wandb

            video = wandb.Video(str(path), caption=caption, format="mp4")
            self._wandb.log({"env_steps": env_steps, key: video})

    def table(self, env_steps: int, key: str, columns: Mapping[str, Sequence]) -> None:
        """Report a table to W&B: columns of one length, by their names."""
        if self._wandb:
            import wandb

            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            with self._attaching(key):
                table = wandb.Table(columns=list(columns), data=plain(rows))
                self._wandb.log({"env_steps": env_steps, key: table})

    def policies(self, paths: Sequence[Path], facts: Mapping[str, Any]) -> None:
        """Make the policies an artifact of W&B's, which the run has as its output."""
        if self._wandb:
            import wandb

            with self._attaching("the policies"):
                artifact = wandb.Artifact(
                    f"policy-{self.wandb_id}", "policy", metadata=plain(facts)
                )
                for path in paths:
                    # Not copied: nobody writes these files any more.
                    artifact.add_file(str(path), policy="immutable")
                self._wandb.log_artifact(artifact)

    @contextlib.contextmanager
    def _attaching(self, what: str) -> Iterator[None]:
        """Tell of artifacts about which W&B cannot ask its server; the run goes on."""
        from wandb.errors import Error as WandbError

        try:
            with _wandb_in(self.folder):
                yield
        except WandbError as error:
            print(f"W&B: {what} could not be added ({reason(error)}).")

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write summary.json whole, and the same values to W&B's summary."""
        write_json(self.folder / "summary.json", values)
        if self._wandb:
            self._wandb.summary.update(plain(values))

    def close_progress(self) -> None:
        """Leave the terminal in order: training is over."""
        self._progress.close()

    def close(self, exit_code: int = 0) -> None:
        """Release the file and the W&B run; a second call does nothing.

        Args:
            exit_code: W&B marks the run as failed when it is not 0.
        """
        self._metrics.close()
        self.close_progress()
        if self._tensorboard:
            self._tensorboard.close()
        run, self._wandb = self._wandb, None
        if run is None:
            return
        import wandb

        last = Path(run.settings.sync_dir)  # after those of the run's earlier pieces
        pieces = sorted(last.parent.glob(f"{last.name.split('-')[0]}*-{run.id}"))
        kept = f"wandb sync {shlex.join(map(str, pieces or [last]))}"
        try:
            run.finish(exit_code=exit_code)
            if run.settings.mode == "offline":
                print(f"W&B: kept offline; upload with: {kept}")
        except TimeoutError:
            print(f"W&B: the upload did not end in time; go on with: {kept}")
        finally:
            # Offline, finish() returns before the records are on disk; this waits, and
            # ends W&B's own process, so that the next job of a multirun starts afresh.
            wandb.teardown()


def _start_tensorboard(folder: Path) -> Any:
    """Write event files anew from metrics.jsonl, which was cut to where a run goes on.

    So no point is there twice, and a run may change to TensorBoard later.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    writer = SummaryWriter(str(folder / "tensorboard"))
    with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            _add_scalars(writer, json.loads(line))
    return writer


def _add_scalars(writer: Any, line: Mapping[str, float | None]) -> None:
    for key, value in line.items():
        if key != "env_steps" and value is not None:
            writer.add_scalar(key, value, line["env_steps"])
    writer.flush()


def _start_wandb(
    folder: Path, config: Config, run_id: str | None, about: Mapping[str, Any]
) -> Any:
    """Start a W&B run that writes nowhere but into the folder, and asks nothing."""
    import wandb
    from pydantic import ValidationError
    from wandb.errors import Error as WandbError
    from wandb.errors import UsageError

    if dropped := [name for name in WANDB_UNREAD if name in os.environ]:
        print(
            f"W&B: {', '.join(dropped)}: set, but not read; log.mode, log.project and "
            "the run's folder decide."
        )
    online = config.log.mode == "online"
    settings = wandb.Settings(
        mode="online" if online else "offline",  # whatever WANDB_MODE says
        silent=True,
        console="off",  # leave the terminal to the progress bar
        init_timeout=WANDB_INIT_S,
        finish_timeout=WANDB_FINISH_S if online else 0.0,
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
    }
    try:
        with _wandb_in(folder):
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
                group=_wandb_group(folder, config),
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
        why, way_out = reason(error), "use log=none"
        if isinstance(error, ValidationError):
            why, way_out = _variable(error.errors()[0]), "correct or unset it"
        elif isinstance(error, UsageError):
            way_out = "correct log.project, or the WANDB_ variables that are set"
        elif online:
            way_out = (
                "check the network and `wandb login`, or use log=offline and upload "
                "later"
            )
        raise ConfigError(f"W&B did not start a run ({why}): {way_out}.") from error
    run.define_metric("*", step_metric="env_steps")
    for key in WANDB_SUMMARIES:
        run.define_metric(key, step_metric="env_steps", summary="min,max,last")
    if online:
        print(f"W&B: {run.url}")
    return run


def _use_weights(run: Any, encoder: Mapping[str, Any]) -> None:
    """Make a model's weights an input of the run: by their digest, not uploaded."""
    import wandb

    if (sha := encoder.get("weights_sha256")) is None:
        return
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"clip-{encoder['name']}")[:WANDB_NAME]
    weights = wandb.Artifact(name, "model", metadata=plain(encoder))
    weights.add_reference(f"sha256:{sha}", "weights", checksum=False)
    # What use_artifact does, which refuses offline runs.
    run._log_artifact(weights, is_user_created=True, use_after_commit=True)


@contextlib.contextmanager
def _wandb_in(folder: Path) -> Iterator[None]:
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


def _wandb_group(folder: Path, config: Config) -> str | None:
    """The sweep's name; of a single run task, model and prompt, which seeds share."""
    if config.log.group or "WANDB_RUN_GROUP" in os.environ:
        return config.log.group
    for above in [*folder.resolve().parents][:3]:  # a task's name may have a slash
        if (above / "multirun.yaml").exists():
            return shorten(above.name, WANDB_NAME)
    names = config.task.name, config.clip.name, " / ".join(config.prompts)
    return shorten(", ".join(names), WANDB_NAME)


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


class _Lines:
    """A log file in place of a terminal: each state of a bar on a line of its own."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """Write what tqdm would write over the line before."""
        if text := text.strip("\r\n "):
            self._file.write(f"{text}\n")

    def flush(self) -> None:
        """Pass it on."""
        self._file.flush()


def progress_bar(total: int | None, unit: str, desc: str) -> "tqdm[Any]":
    """How far long work is, on stderr: a bar on a terminal, else a line now and then.

    Args:
        total: how many units there are; None: not known.
        unit: what is counted.
        desc: what is done.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=unit,
        desc=desc,
        unit_scale=True,
        delay=SHOWN_AFTER_S,
        leave=False,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        mininterval=0.1 if terminal else LOG_EVERY_S,
        ncols=None if terminal else 100,
    )


def versions(about: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what a run ran on, for versions.json.

    Args:
        about: what only the run knows (device, GL renderer, encoder), added as it is
            where it has other names.
    """
    import torch

    own = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **_commit(CHECKOUT),
    }
    return {**own, **about, **own}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    # platform.processor() is empty on most Linux systems.
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit(checkout: Path) -> dict[str, Any]:
    """The source's commit when it runs from its own checkout, else nothing."""
    # An installed package may lie inside some other project's repository.
    if not (checkout / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "--verify", "HEAD"),
            "commit_is_dirty": bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
