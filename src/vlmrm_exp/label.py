"""Let people judge states or episodes: python -m vlmrm_exp.label task=... ...

Serves a page on which raters see one picture or video after another, and writes what
they say (label.csv, for `epic` and `evaluate`) and how far they agree (label.json).
"""

import contextlib
import hashlib
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from vlmrm_exp import app, figures
from vlmrm_exp.checks import at_least, check_extra, no_effect, one_of, to_config
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import check_world, world_of
from vlmrm_exp.evaluate import SEED_OFFSET, checkpoint_in
from vlmrm_exp.files import lock, sha256, unusable, write_json
from vlmrm_exp.labelling import agreement, label_file
from vlmrm_exp.labelling.raters import Raters
from vlmrm_exp.labelling.shown import CONTENT, Item, Played, Session
from vlmrm_exp.log.versions import versions
from vlmrm_exp.run_folder import load_run_config
from vlmrm_exp.studies import settings, state_sets
from vlmrm_exp.studies.pictures import PictureFile, read_one, read_pictures
from vlmrm_exp.studies.state_files import picture_states, save_states, stored_states
from vlmrm_exp.studies.state_sets import StateSet

if TYPE_CHECKING:
    from vlmrm_exp.labelling.page import Labelling

SCALES = ("goal", "buckets")
LOOK = "task.camera task.textures task.frame_height"
UNREAD = {
    "label": "name prompt baseline wording stages alpha renormalise env_steps render "
    "clip algo reward compute evaluation log",
    "frames": f"states runs state_set videos episodes checkpoint cache {LOOK}",
    "state_set": "states runs videos episodes checkpoint cache",
    "videos": "states runs task cache",
}
"""Settings and groups of them that have no effect with these."""
CRITERIA = {
    "kneeling": "Both knees on the floor; it neither loses balance nor kneels in the "
    "air.",
    "lotus": "Seated, both knees on the floor and outwards, the feet inwards.",
    "standing_up": "Standing, not falling.",
    "arms_raised": "Standing with both arms raised.",
    "splits": "On the floor in side splits, the legs stretched out on it.",
    "hands_on_hips": "Standing with both hands at the base of the hips, not at the "
    "chest.",
    "arms_crossed": "Standing with crossed arms; arms that only touch are not enough.",
    "one_leg": "Only one foot on the floor, in balance.",
    "cartpole": "The pole is upright, and the cart is on its track.",
    "mountaincar": "The car is at the flag on the peak.",
}
"""What counts as the goal: of the humanoid what the paper's rater went by (Table 2)."""
EPISODES = {
    "cartpole": "The pole stays upright, and the cart on its track, to the end.",
    "mountain_car": "The car gets to the flag on the peak.",
    "humanoid": "{} So for at least half of the video.",
}
"""What counts as success where a whole episode gets 0 or 1; by world."""
SHEET = 24
"""Pictures in label.png at most."""


@dataclass
class LabelConfig(Config):
    """See conf/label.yaml."""

    states: int = 200
    runs: list[str] = field(default_factory=list)
    state_set: str | None = None
    frames: str | None = None
    videos: list[str] = field(default_factory=list)
    episodes: int = 20
    checkpoint: str = "best"
    scale: str | None = None
    question: str | None = None
    serve: bool = True
    host: str = ""
    port: int = 0
    cache: str = ""
    out: str | None = None


ConfigStore.instance().store(name="label_schema", node=LabelConfig)


@dataclass(frozen=True)
class Asked:
    """What is to be judged, and how; all of it is known to be possible."""

    settings: LabelConfig
    task: Config
    """Of `videos`: the first run's."""
    runs: list[Played]
    """Of `videos`."""
    states: StateSet | None
    """Of `frames` or `state_set`; None: they are to be sampled."""
    buckets: bool
    question: str
    out: Path
    contents: dict[str, str]
    """SHA-256 of what is judged, by the path that was given."""

    def about(self) -> dict[str, Any]:
        """Settings that decide what is judged; a session cannot go on with others."""
        asked, task = self.settings, self.task.task
        kept = "seed states runs state_set frames videos episodes checkpoint"
        found = {name: getattr(asked, name) for name in kept.split()}
        look = {} if asked.frames or asked.videos else {"look": asdict(task)}
        scale = SCALES[self.buckets]
        contents = {f"{CONTENT}{path}": told for path, told in self.contents.items()}
        return {"task": task.name, "scale": scale, "question": self.question,
                **found, **look, **contents}  # fmt: skip


def check(composed: Composed) -> Asked:
    """Resolve the settings; a ConfigError says what is wrong."""
    for name in ("prompt", "baseline"):  # a run of task=gym needs them, raters do not
        if OmegaConf.is_missing(composed.cfg, name):
            composed.cfg[name] = name
    asked: Any = OmegaConf.to_object(composed.cfg)
    for name in ("state_set", "frames", "out", "question", "cache"):
        if getattr(asked, name) == "":
            raise ConfigError(f"{name} is empty: give one, or leave it out.")
    for given, unread in UNREAD.items():
        for key, _, value in (key.lstrip("+").partition("=") for key in composed.keys):
            named = {key, key.partition(".")[0]} & {*unread.split()}
            if named and getattr(asked, given, True):
                raise no_effect(key, value, given)
    for package in ("nicegui", "nltk"):
        check_extra("label", package, "label", "epic's labels= with a table of yours")
    runs: list[Played] = []
    states = None
    if asked.videos:
        at_least("episodes", asked.episodes, 1)
        one_of("checkpoint", asked.checkpoint, ("best", "last"))
        settings.check_list("videos", asked.videos)
        runs = [_run(folder, asked.checkpoint) for folder in asked.videos]
        task = runs[0].config
        for run in runs:
            if (other := run.config.task.name) != task.task.name:
                raise ConfigError(
                    f"{run.folder} is of task={other}, but {runs[0].folder} of "
                    f"{task.task.name}: one session judges one task."
                )
    else:
        task = to_config(composed.cfg)
        check_world(task)
        if asked.frames:
            states = picture_states(Path(asked.frames).expanduser())
        elif asked.state_set:
            states, _ = stored_states(Path(asked.state_set).expanduser(), task.task)
        else:
            paths = [Path(run).expanduser() for run in asked.runs]
            state_sets.check_sampling(task.task, asked.states, paths)
    humanoid = task.task.env == "humanoid"
    share = bool(runs) and humanoid and not task.task.before
    scale = asked.scale or SCALES[share]
    one_of("scale", scale, SCALES)
    buckets = scale == "buckets"
    if buckets and not runs:
        raise ConfigError("scale=buckets is of videos, not of pictures: leave it out.")
    if buckets and task.task.before:
        raise ConfigError(
            f"scale=buckets counts steps in the goal, but task={task.task.name} is "
            "reached by its goals in order: leave it out."
        )
    question = asked.question or _criterion(task, bool(runs) and not buckets)
    if not 0 <= asked.port < 65536:
        raise ConfigError(f"port is {asked.port}, but must lie between 0 and 65535.")
    name = f"{task.task.name}{'-videos' if runs else ''}"
    out = Path(asked.out or f"outputs/label/{name}").expanduser()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={out} is a file: give a folder.")
    held = [name for name in settings.HELD if (out / name).exists()]
    if held and "items.json" not in held:
        raise ConfigError(f"{out} holds {held[0]} already: choose another out=....")
    contents = _contents(asked, runs, states.files if states else ())
    found = Asked(asked, task, runs, states, buckets, question, out, contents)
    Session(out, found.about())
    return found


def _contents(
    asked: LabelConfig, runs: Sequence[Played], files: Sequence[Path]
) -> dict[str, str]:
    """`Asked.contents`; a ConfigError if label.csv could not hold a name."""
    for file in files:
        if (shown := file.name.encode("utf-8", "replace").decode()) != file.name:
            raise ConfigError(
                f"{asked.frames} holds {shown}, whose name is not UTF-8, as label.csv "
                "is: rename it."
            )
    if asked.frames:
        told = [(file.name, sha256(file)) for file in files]
        return {asked.frames: hashlib.sha256(repr(told).encode()).hexdigest()}
    if asked.state_set:
        return {asked.state_set: sha256(Path(asked.state_set).expanduser())}
    return {run.folder: sha256(run.checkpoint) for run in runs}


def _run(folder: str, checkpoint: str) -> Played:
    """A run that has such a checkpoint."""
    path = Path(folder).expanduser()
    config = load_run_config(path)
    file = checkpoint_in(path, checkpoint)
    if config.reward.model == "stages":
        raise ConfigError(
            f"The policy in {folder} acts by the stage that its reward tells, which "
            "label does not ask: show the run's own videos, or give other runs."
        )
    return Played(folder, config, file, config.seed + SEED_OFFSET)


def _criterion(task: Config, whole_episode: bool) -> str:
    """What counts as the goal."""
    told, name = task.task, task.task.name
    if told.env == "humanoid":
        name = told.goal
    elif told.goal not in ("", *world_of(told).goals[:1]):
        name = ""
    if name not in CRITERIA or told.before:
        raise ConfigError(
            f"What should raters look for in task={told.name}? Say it, as "
            'question="The pendulum is upright."'
        )
    if not whole_episode:
        return CRITERIA[name]
    return EPISODES.get(task.task.env, "{}").format(CRITERIA[name])


def label(asked: Asked) -> dict[str, Any]:
    """Make what is shown, serve the page until it is stopped, and write the results.

    Returns what label.json holds; a ConfigError if something cannot be had, or the port
    is taken.
    """
    given = asked.settings
    with contextlib.ExitStack() as opened:
        if given.serve:
            listening = opened.enter_context(_listen(given.host, given.port))
        try:
            asked.out.mkdir(parents=True, exist_ok=True)
            if given.serve or not (asked.out / "items.json").exists():
                lock(opened.enter_context((asked.out / ".lock").open("w")), "out")
        except OSError as error:
            raise ConfigError(f"{unusable(error, asked.out)}; give another.") from error
        session = Session(asked.out, asked.about())
        items = session.items or _make(asked, session)
        values = agreement.BUCKETS if asked.buckets else (0, 1)
        names = [item.key for item in items]
        raters = Raters(asked.out, names, values, given.seed, given.serve)
        opened.callback(raters.close)
        if given.serve:
            address = listening.getsockname()[:2]
            _serve(page_of(asked, items, raters, address), listening)
        return write_results(asked, items, raters)


def _make(asked: Asked, session: Session) -> list[Item]:
    """Render what will be shown; with sampled states their set is kept for `epic`."""
    given, task, states = asked.settings, asked.task, asked.states
    if asked.runs:
        return session.make_videos(asked.runs, given.episodes)
    if states is None:
        runs = [Path(run).expanduser() for run in given.runs]
        kept = Path(given.cache).expanduser() / "states"
        states = state_sets.sample(task.task, given.states, given.seed, runs, kept)
        save_states(asked.out / f"states-{states.world}.npz", states, {})
    return session.make_pictures(task, states)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, or a ConfigError: who comes too early for the page waits."""
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        both = family == socket.AF_INET6  # "::" is every address of IPv4, too
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # without the address
        raise ConfigError(
            f"The page cannot be served at {host}:{port} ({why}): give another "
            "port=... or host=...; port=0 takes a free one."
        ) from error


def page_of(
    asked: Asked, items: Sequence[Item], raters: Raters, address: tuple[str, int]
) -> "Labelling":
    """What the page is about at an address (IP and port)."""
    from vlmrm_exp.labelling.page import Labelling  # here, as --help is immediate

    host, port = ipaddress.ip_address(address[0]), address[1]
    name = socket.gethostname() if host.is_unspecified else str(host)
    name = f"[{name}]" if ":" in name else name
    return Labelling(
        items=items,
        shown=asked.out / "shown",
        raters=raters,
        question=asked.question,
        buckets=asked.buckets,
        token=raters.sign("token"),
        address=f"http://{name}:{port}",
    )


def _serve(labelling: "Labelling", listening: socket.socket) -> None:
    """Serve until Ctrl-C."""
    from vlmrm_exp.labelling.page import serve

    count = len(labelling.items)
    print(f"{count} to label: {labelling.link()}")
    for rater in labelling.raters:
        key = labelling.raters.key(rater.name)
        print(f"  {rater.name} ({len(rater.labels)}): {labelling.link(key)}")
    print("Ctrl-C ends it; every press is kept at once.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        serve(labelling, listening)
    print()


def write_results(
    asked: Asked, items: Sequence[Item], raters: Raters
) -> dict[str, Any]:
    """Write label.csv, one of each rater, label.json and label.png; print a summary."""
    out = asked.out
    labels = {rater.name: rater.labels for rater in raters if rater.labels}
    if not labels:
        print(f"Nobody has labelled anything yet; {out} keeps what is shown.")
        return {}
    found = agreement.tables(items, labels, asked.buckets)
    paces = {rater.name: rater.median_s for rater in raters}
    for row in found["raters"]:
        row["median_s"] = paces.get(row["rater"])
    result = {"settings": asked.about(), **found, "versions": versions({})}
    tables = {"label.csv": labels}
    if len(labels) > 1:
        mine = {r.path.stem: {r.name: r.labels} for r in raters if r.labels}
        tables |= {f"label-{stem}.csv": said for stem, said in mine.items()}
    column = "file" if asked.settings.frames else "index"
    for name, said in tables.items():
        label_file.write(out / name, items, said, column, asked.buckets)
    write_json(out / "label.json", result)
    print(agreement.report(found))
    _sheet(asked, items, found["differences"])
    print(f"\nsaved {out}/label.json, {', '.join(tables)}")
    for rater in raters:
        if left := len(items) - len(rater.labels):
            print(f"{rater.name} has {left} to go: the same command goes on.")
    for folder in asked.settings.videos:
        print(
            f"python -m vlmrm_exp.evaluate run={folder} labels={out}/label.csv"
            f" checkpoint={asked.settings.checkpoint}"
        )
    if not asked.runs and len(set().union(*labels.values())) == len(items):
        source = f"frames={asked.settings.frames}"
        if not asked.settings.frames:
            made = out / f"states-{asked.task.task.env}.npz"
            source = f"state_set={asked.settings.state_set or made}"
        print(
            f"python -m vlmrm_exp.epic task={asked.task.task.name} {source} "
            f"labels={out}/label.csv"
        )
    return result


def _sheet(
    asked: Asked, items: Sequence[Item], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write label.png: what raters, or they and the predicate, judge otherwise."""
    path = asked.out / "label"
    if not rows:
        for suffix in (".png", ".svg"):
            path.with_suffix(suffix).unlink(missing_ok=True)
        return
    files = {item.key: asked.out / "shown" / item.file for item in items}
    rows = rows[:SHEET]
    pictures = [_picture(files[row["item"]]) for row in rows]
    columns = min(len(rows), 4)
    lines = -(-len(rows) // columns)
    tallest = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    with figures.figure(2.6 * columns, (0.6 + 2.6 * tallest) * lines) as made:
        axes = made.subplots(lines, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, row, picture in zip(axes.flat, rows, pictures, strict=False):
            ax.imshow(picture)
            told = f"{row['item']}\n{row['labels']}"
            if "predicate" in row:
                told += f"\npredicate: {row['predicate']}"
            text = "\n".join(figures.wrap(line, 40, 2) for line in told.splitlines())
            ax.set_title(text, fontsize=7, loc="left")
        figures.save(made, path)


def _picture(path: Path) -> np.ndarray:
    """A picture, or the middle one of a video."""
    if path.suffix != ".mp4":
        return read_one(path)
    frames = [one.pixels for one in read_pictures(PictureFile(path, "video"))]
    return frames[len(frames) // 2]


if __name__ == "__main__":
    app.start(lambda composed: label(check(composed)), "label", check)
