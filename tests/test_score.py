"""`python -m vlmrm_exp.score` against the same files, embedded and rewarded by hand."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vlmrm_exp import composition, score
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.score import Asked, report, score_pictures
from vlmrm_exp.studies import strip
from vlmrm_exp.studies.pictures import PictureFile, find_files
from vlmrm_exp.studies.strip import (
    Column,
    Scores,
    choose_shown,
    plot_curves,
    plot_strip,
    read_again,
)
from vlmrm_exp.vlm.encoder import load_encoder
from vlmrm_exp.words import to_keys

from studies import damaged_model, run_config  # isort: skip

pytestmark = pytest.mark.slow

KNEELING, STANDING = "a humanoid robot kneeling", "a humanoid robot standing up"
ROBOT = "a humanoid robot"


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """The humanoid standing, kneeling, doing the splits: (3, 96, 96, 3)."""
    from vlmrm_exp.envs.humanoid import WORLD
    from vlmrm_exp.envs.poses import ARMS, LEGS, PoseLibrary

    library = PoseLibrary()
    wanted = ("standing", "kneeling", "splits")
    legs = [next(pose for pose in LEGS if pose.name == name) for name in wanted]
    task = run_config("task=kneeling", "task.camera=fixed").task
    renderer = WORLD.make_renderer(task, 96, False)
    rendered = renderer.render(np.array([library.state(p, ARMS[0]) for p in legs]))
    renderer.close()
    return rendered


@pytest.fixture
def folder(tmp_path: Path, frames) -> Path:
    made = tmp_path / "frames"
    made.mkdir()
    for name, frame in zip(("1", "2", "10"), frames, strict=True):
        Image.fromarray(frame).save(made / f"{name}.png")
    return made


@pytest.fixture(scope="module")
def by_hand() -> Callable[..., np.ndarray]:
    """Rewards (B,) of frames of one size, by the encoder and the paper's formula."""
    encoder = load_encoder(run_config("clip=nano").clip, torch.device("cpu"))

    def rewards(frames, prompt: str, baseline: str = "", alpha: float = 0):
        states = encoder.embed_frames(np.array(frames)).double().numpy()
        goal, base = encoder.embed_prompts([prompt, baseline or "-"]).double().numpy()
        along = (goal - base) / np.linalg.norm(goal - base)
        projected = base + ((states - base) @ along)[:, None] * along
        mixed = alpha * projected + (1 - alpha) * states
        return 1 - ((mixed - goal) ** 2).sum(1) / 2

    return rewards


def asked(*words: Any) -> Asked:
    """What `python -m vlmrm_exp.score WORDS` would do."""
    keys = to_keys([str(word) for word in words], score.PLURAL, files=True)
    return score.check(composition.compose("score", *keys))


def run(out: Path, *words: Any) -> pd.DataFrame:
    out.mkdir(parents=True, exist_ok=True)
    score.score(asked("clip=nano", *words, f"out={out}"))
    return pd.read_csv(out / "scores.csv")


def close(expected: np.ndarray) -> Any:
    return pytest.approx(expected, abs=2e-6)


def test_several_prompts_are_scored_each_by_itself(
    tmp_path: Path, folder, frames, by_hand, capsys
):
    out = tmp_path / "out"
    sheet = run(out, folder, f"prompts=[{KNEELING}, {STANDING}]")
    assert list(sheet) == ["file", "frame", "time_s", KNEELING, STANDING]
    assert sheet["file"].tolist() == [str(folder / f"{n}.png") for n in (1, 2, 10)]
    assert sheet["frame"].tolist() == [0, 0, 0]
    assert sheet["time_s"].isna().all()
    for prompt in (KNEELING, STANDING):
        assert sheet[prompt].to_numpy() == close(by_hand(frames, prompt))
    assert sheet[KNEELING].idxmax() == 1
    assert sheet[STANDING].idxmax() == 0
    said = capsys.readouterr().out
    assert "knows the pictures of this project's worlds alone" in said
    assert "3 pictures in 3 files" in said
    assert {path.name for path in out.iterdir()} == {
        "scores.csv", "score.json", "strip.png", "strip.svg"
    }  # fmt: skip
    saved = json.loads((out / "score.json").read_text())
    assert (saved["files"], saved["frames"], saved["clip"]) == (3, 3, "nano")
    first, _ = saved["columns"]
    assert (first["prompt"], first["baseline"], first["alpha"]) == (KNEELING, None, 0)
    assert first["mean"] == pytest.approx(sheet[KNEELING].mean())
    assert first["highest"] == pytest.approx(sheet[KNEELING].max())
    assert saved["versions"]["encoder"]["name"] == "nano"


def test_alpha_and_baselines(tmp_path: Path, folder, frames, by_hand):
    """One baseline for all or one for each, and a column for each alpha."""
    prompts = f"prompts=[{KNEELING}, {STANDING}]"
    one = run(tmp_path / "1", folder, prompts, f"baseline={ROBOT}", "alpha=0.5")
    for prompt in (KNEELING, STANDING):
        expected = by_hand(frames, prompt, ROBOT, 0.5)
        assert one[prompt].to_numpy() == close(expected)
    baselines = f"baselines=[{ROBOT}, a robot]"
    two = run(tmp_path / "2", folder, prompts, baselines, "alpha=0,0.5,1")
    assert list(two)[3:] == [
        f"{prompt} (alpha={alpha})"
        for prompt in (KNEELING, STANDING)
        for alpha in ("0", "0.5", "1")
    ]
    for prompt, baseline in ((KNEELING, ROBOT), (STANDING, "a robot")):
        for alpha in (0, 0.5, 1):
            expected = by_hand(frames, prompt, baseline, alpha)
            assert two[f"{prompt} (alpha={alpha})"].to_numpy() == close(expected)


def test_a_task_gives_what_is_not_given(folder):
    def said(*words: str) -> list[tuple]:
        jobs = asked(folder, *words).jobs
        return [(job.prompts, job.baselines, job.alpha) for job in jobs]

    assert said("task=kneeling") == [([KNEELING], [ROBOT], 0)]
    assert said("task=kneeling", "prompt=a, b", "alpha=0.5") == [
        (["a, b"], [ROBOT], 0.5)
    ]
    assert said("task=kneeling", 'prompts=["a, b", [c, d]]', "alpha=0,1") == [
        (["a, b"], [ROBOT], 0),
        (["a, b"], [ROBOT], 1),
        (["c", "d"], [ROBOT], 0),
        (["c", "d"], [ROBOT], 1),
    ]


def test_the_model_is_told_as_to_a_run(folder):
    def clip(*words: str) -> Any:
        return asked(folder, "prompt=a", *words).jobs[0].clip

    assert clip() == run_config("clip=base").clip
    assert clip("task=mountaincar").name == "tiny"
    paper = clip("experiment=paper", "clip=nano", "clip.batch_size=3")
    assert (paper.name, paper.preprocess, paper.batch_size) == ("nano", "squash", 3)
    assert clip("clip=vitl14", "experiment=paper").preprocess == "squash"
    assert clip("clip=vitl14").preprocess == "pad"


def test_a_video_is_scored_frame_by_frame(tmp_path: Path, frames, by_hand):
    shown = np.repeat(frames, 4, axis=0)  # 4 frames each, at 8 a second
    video = tmp_path / "a.mp4"
    writer = imageio_ffmpeg.write_frames(
        video, (96, 96), fps=8, quality=10, pix_fmt_out="yuv444p"
    )
    writer.send(None)
    for frame in shown:
        writer.send(frame)
    writer.close()
    out = tmp_path / "out"
    sheet = run(out, video, f"prompt={KNEELING}", "pictures=5")
    assert sheet["frame"].tolist() == list(range(12))
    assert sheet["time_s"].tolist() == pytest.approx(np.arange(12) / 8)
    # H.264 loses a little.
    expected = by_hand(shown, KNEELING)
    assert sheet[KNEELING].to_numpy() == pytest.approx(expected, abs=0.05)
    assert expected.max() - expected.min() > 0.1
    assert (out / "curve.svg").is_file()
    some = run(tmp_path / "some", video, f"prompt={KNEELING}", "every=5")
    assert some["frame"].tolist() == [0, 5, 10]
    assert some[KNEELING].to_numpy() == close(sheet[KNEELING].to_numpy()[::5])


def test_sizes_may_differ(tmp_path: Path, frames, by_hand):
    """Also one after another."""
    shown = frames[0], frames[1][20:70], frames[2]
    for name, frame in enumerate(shown):
        Image.fromarray(frame).save(tmp_path / f"{name}.png")
    sheet = run(tmp_path / "out", tmp_path, f"prompt={KNEELING}")
    expected = [by_hand([frame], KNEELING)[0] for frame in shown]
    assert sheet[KNEELING].to_numpy() == close(np.array(expected))


def test_the_csv_survives_commas_quotes_and_letters(tmp_path: Path, folder):
    odd = 'a robot, "kneeling"'
    other = "ein Röboter"
    shutil.copy(folder / "1.png", folder / 'b, "c".png')
    prompts = f"prompts=['{odd}', '{other}']"
    sheet = run(tmp_path / "out", folder / 'b, "c".png', prompts)
    assert list(sheet) == ["file", "frame", "time_s", odd, other]
    assert sheet["file"].tolist() == [str(folder / 'b, "c".png')]


@pytest.fixture
def made(monkeypatch) -> list:
    """The figures that are saved, as they are laid out."""
    figures, save = [], strip.save

    def keep(figure, path: Path) -> None:
        save(figure, path)
        figure.draw_without_rendering()  # at the figure's own resolution
        figures.append(figure)

    monkeypatch.setattr(strip, "save", keep)
    return figures


def still(names: list[str], columns: list[Column], rewards: np.ndarray) -> Scores:
    """Scores of one still image a file."""
    files = [PictureFile(Path(f"{name}.png"), "image") for name in names]
    number = np.arange(len(files))
    return Scores(files, columns, number, 0 * number, np.nan * number, rewards)


def test_the_strip_shows_the_pictures_and_longer_bars(tmp_path: Path):
    colours = np.array([(250, 20, 20), (20, 20, 250)], np.uint8)
    pictures = [np.broadcast_to(c, (40, 60, 3)) for c in colours]
    # $ and Chinese: the first means nothing here, and the font lacks the second.
    columns = [Column("costs $5 or $6 跪", "", None, 0.0), Column("b", "", None, 0.0)]
    scores = still(["a", "b"], columns, np.array([[0.1, 0.3], [0.4, 0.2]], np.float32))
    plot_strip(tmp_path / "strip", scores, np.arange(2), pictures)
    page = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB")).astype(int)
    boxes = []
    for colour in colours:
        rows, lines = np.nonzero((np.abs(page - colour) < 8).all(-1))
        boxes.append((lines.min(), lines.max() + 1, rows.min(), rows.max() + 1))
    (left, right, top, bottom), (other_left, other_right, *others) = boxes
    assert (right - left) / (bottom - top) == pytest.approx(1.5, abs=0.03)
    assert right - left == pytest.approx(1.9 * 150, rel=0.1)  # inches, dots
    assert others == pytest.approx([top, bottom], abs=1)
    assert right < other_left
    # Beneath: the first column's bar (the palette's blue) is longer for the second.
    blue = (np.abs(page - (0x00, 0x72, 0xB2)) < 8).all(-1)[bottom + 10 :]
    first = blue[:, left:right].sum(1).max()
    second = blue[:, other_left:other_right].sum(1).max()
    assert 0 < first < 10
    assert second > 0.5 * (right - left)
    assert not list(tmp_path.glob(".*"))


def test_long_names_stay_under_their_pictures(tmp_path: Path, made):
    names = ["跪" * 40, "W" * 40, "x" * 40, "short"]
    scores = still(names, [Column("a", "a", None, 0.0)], np.ones((4, 1), np.float32))
    pictures = [np.zeros((60, 60, 3), np.uint8)] * 4
    plot_strip(tmp_path / "strip", scores, np.arange(4), pictures)
    beneath = made[0].axes[4:]
    titles = [axes.get_title(loc="left") for axes in beneath]
    assert [title[-4:] for title in titles] == [".png"] * 4
    assert titles[3] == "short.png"
    for axes in beneath:
        assert axes.get_tightbbox().width < 1.05 * axes.bbox.width


def test_curves_of_alphas_have_panels_of_their_own(tmp_path: Path, made):
    files = [PictureFile(Path(f"{n}.mp4"), "video") for n in "ab"]
    columns = [Column(f"p {alpha}", "p", "q", alpha) for alpha in (0.0, 1.0)]
    # The second alpha's rewards are a hundred times smaller, and rise just as well.
    rise = np.tile(np.linspace(0, 1, 60, dtype=np.float32), 2)
    rewards = np.stack([rise, 0.9 + rise / 100], axis=1)
    number, frame = np.repeat([0, 1], 60), np.tile(np.arange(60), 2)
    scores = Scores(files, columns, number, frame, frame / 10, rewards)
    plot_curves(tmp_path / "curve", scores, [0, 1], 4)
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    panels = made[0].axes
    assert len(panels) == 4
    for place, axes in enumerate(panels):
        (line,) = axes.lines
        assert np.array_equal(line.get_ydata(), rewards[:60, place % 2])
        assert np.array_equal(line.get_xdata(), frame[:60] / 10)
        low, high = axes.get_ylim()
        assert np.ptp(line.get_ydata()) > 0.8 * (high - low), "it is flat"
    plot_curves(tmp_path / "few", scores, [0, 1], 3)
    assert len(made[1].axes) == 3


def test_shown_pictures_are_chosen_evenly():
    assert choose_shown([1, 1, 1], 12).tolist() == [0, 1, 2]
    assert choose_shown([101], 5).tolist() == [0, 25, 50, 75, 100]
    assert choose_shown([9], 1).tolist() == [4]
    # More files than places: some of them, the middle of each.
    assert choose_shown([3, 3, 3, 3, 3], 3).tolist() == [1, 7, 13]
    # Still images keep a place each; the longer video gets more of what is left.
    assert choose_shown([1, 40, 1, 80], 8).tolist() == [0, 1, 40, 41, 42, 68, 95, 121]
    assert choose_shown([2, 3], 12).tolist() == [0, 1, 2, 3, 4]


def test_the_pictures_shown_are_those_that_were_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    greys = np.arange(10, 250, 20)
    images = [Image.new("RGB", (8, 6), (int(grey),) * 3) for grey in greys]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    images[-1].save(tmp_path / "b.png")
    monkeypatch.setattr("vlmrm_exp.score.BATCH", 5)
    column = Column("brightness", "", None, 0.0)
    every = Asked(
        find_files([str(tmp_path)]),
        [column],
        [Config()],
        every=2,
        pictures=4,
        folder=tmp_path,
    )

    def brightness(frames: np.ndarray) -> np.ndarray:
        assert len(frames) <= 5
        return frames.mean((1, 2, 3), dtype=np.float32)[:, None]

    scores = score_pictures(every, brightness)
    assert scores.reward[:, 0].tolist() == [*greys[::2], greys[-1]]
    shown = choose_shown(np.bincount(scores.file), 4)
    pictures = read_again(scores, shown, every=2)
    assert [p.mean() for p in pictures] == scores.reward[shown, 0].tolist()
    assert [p.mean() for p in pictures] == [10, 90, 210, 230]


def test_the_report_lists_both_ends():
    rewards = np.arange(20, dtype=np.float32)[:, None] / 20
    files, columns = (
        [PictureFile(Path("a.mp4"), "video")],
        [Column("p", "p", "q", 0.25)],
    )
    frame = np.arange(20)
    lines = report(Scores(files, columns, 0 * frame, frame, frame / 10, rewards))
    lines = lines.splitlines()
    assert lines[0] == "20 pictures in 1 file"
    assert lines[2] == '"p", alpha 0.25, baseline "q"'
    assert lines[4].split() == ["picture", "reward"]
    assert lines[5].split() == ["a.mp4", "frame", "19,", "1.90", "s", "0.9500"]
    assert lines[10].strip() == "... 10 more"
    assert lines[-1].split() == ["a.mp4", "frame", "0,", "0.00", "s", "0.0000"]
    assert len(lines) == 5 + 5 + 1 + 5


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["prompt=a"], "No pictures are given"),
        (["x"], "No prompt is given"),
        (["x", "prompt=a", "prompts=[a, b]"], "prompt and prompts are both given"),
        (["x", "prompts=[]"], "prompts is an empty list"),
        (["x", "prompts=[a, ' ']"], "prompt is empty"),
        (["x", "prompt=a", "baselines=['']"], "baseline is empty"),
        (["x", "prompt=a", "baseline=b", "alpha=2"], "between 0 and 1"),
        (["x", "prompt=a", "baseline=b", "alpha=nan"], "between 0 and 1"),
        (["x", "prompt=a", "alpha=0.5,0.5"], "alpha names 0.5 twice"),
        (["x", "prompt=a", "alpha=0,0.5"], "alpha is 0.5, which needs a baseline"),
        (["x", "prompt=a", "baseline=a", "alpha=1"], "they must differ"),
        (["x", "prompts=[a, b, c]", "baselines=[d, e]"], "2 baselines for 3 prompts"),
        (["x", "prompts=[a, b, a]"], 'two columns "a"'),
        (["x", "prompt=frame"], 'two columns "frame"'),
        (["x", f"prompt={'word ' * 80}"], "would not see its end"),
        (["x", "prompt=a"], "There is no x: give images"),
        (["x", "prompt=a", "every=0"], "every is 0: give a whole number from 1 up"),
        (["x", "prompt=a", "pictures=0"], "pictures is 0"),
        (["x", "prompt=a", "task=gym"], "task=gym has no sentences of its own"),
        (["x", "task=kneel"], "task=kneel does not exist: .* Did you mean kneeling"),
        (["x", "task=a,b"], "task=a,b holds a comma"),
        (["x", "prompt=a", "reward=environment"], "is no reward of single pictures"),
        (["x", "prompt=a", "clip=nope"], "clip=nope does not exist"),
        (["x", "prompt=a", "clip=nano,tiny"], "clip names 2 models: give one"),
        (["x", "prompt=a", "clip=local-dir:/nowhere"], "There is no folder /nowhere"),
        (["x", "prompt=a", "clip=local-dir:/"], r"has no open_clip_config\.json"),
        (["x", "prompt=a", "compute=tpu"], "choose one of auto, cpu, gpu"),
        (["x", "prompt=a", "out="], "out is empty"),
        (["x", "promt=a"], "Did you mean prompt"),
    ],
)
def test_what_cannot_be_scored_is_refused(words, reason):
    """`check` runs before Hydra makes the folder, so nothing is left behind."""
    with pytest.raises(ConfigError, match=reason) as caught:
        asked(*words)
    assert "\n" not in str(caught.value)


def test_what_the_model_or_a_file_shows_later_is_refused(tmp_path: Path, folder):
    words = (f"prompt={KNEELING}", f"baseline={KNEELING.upper()}", "alpha=1")
    with pytest.raises(ConfigError, match="have the same embedding"):
        run(tmp_path / "out", folder, *words)
    for name in ("1", "2", "10"):
        path = folder / f"{name}.png"
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ConfigError, match=r"1\.png cannot be read"):
        run(tmp_path / "out", folder, f"prompt={KNEELING}")
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_files_are_told_and_the_others_scored(
    tmp_path: Path, folder, frames, by_hand, start
):
    video = tmp_path / "whole.mp4"
    writer = imageio_ffmpeg.write_frames(
        video, (96, 96), output_params=["-movflags", "+faststart"]
    )
    writer.send(None)
    for frame in np.random.default_rng(0).integers(0, 256, (20, 96, 96, 3), np.uint8):
        writer.send(frame)
    writer.close()
    (folder / "0.png").touch()
    (folder / "1.mp4").write_bytes(video.read_bytes()[:-40_000])
    (folder / "9.png").write_bytes((folder / "1.png").read_bytes()[:700])
    words = ("clip=nano", str(folder), f"prompt={KNEELING}", f"out={tmp_path}/out")

    def scored(composed: Composed) -> None:
        score.score(score.check(composed))

    ended = start(words, scored, "score", score.check, score.PLURAL, files=True)
    assert ended.code == 2
    told = ended.err.splitlines()[-4:]
    assert ["cannot be read" in line for line in told] == [True, True, True, False]
    for line, name in zip(told, ("0.png", "1.mp4", "9.png"), strict=False):
        assert f"/{name} " in line
    assert "3 of 6 files could not be read, as told above" in told[-1]
    sheet = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert sheet["file"].tolist() == [str(folder / f"{n}.png") for n in (1, 2, 10)]
    assert sheet[KNEELING].to_numpy() == close(by_hand(frames, KNEELING))
    assert (tmp_path / "out" / "strip.png").is_file()


def test_results_are_not_put_among_the_pictures(folder):
    with pytest.raises(ConfigError, match="is a folder whose pictures are scored"):
        asked(folder, "prompt=a", f"out={folder}/../{folder.name}")
    asked(folder / "1.png", "prompt=a", f"out={folder}")


def test_names_that_are_no_text_are_told_and_plotted(tmp_path, folder, start):
    """As from an old archive."""
    odd = os.fsdecode(os.fsencode(folder) + b"/\xe4\xf6.gif")
    frames = [Image.new("RGB", (96, 96), (grey,) * 3) for grey in (10, 200)]
    frames[0].save(odd, save_all=True, append_images=frames[1:])
    (folder / "notes.txt").touch()
    out = tmp_path / "out"
    words = ("clip=nano", str(folder), f"prompt={KNEELING}", "pictures=1",
             f"out={out}")  # fmt: skip
    ended = start(
        words,
        lambda composed: score.score(score.check(composed)),
        "score",
        score.check,
        score.PLURAL,
        files=True,
    )
    assert b"\xe4\xf6.gif" in (out / "scores.csv").read_bytes()
    assert {"strip.png", "curve.png"} <= {path.name for path in out.iterdir()}
    assert r"\udce4\udcf6.gif  frame 0" in ended.out
    assert "Left out, as of other kinds: 1 .txt." in ended.out


def test_weights_that_are_no_numbers_are_told(tmp_path: Path, folder):
    clip = f"clip={damaged_model(tmp_path / 'model')}"
    with pytest.raises(FloatingPointError, match=r"1\.png .* is nan, not a finite"):
        run(tmp_path / "out", folder, f"prompt={KNEELING}", clip)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.long
def test_the_program_writes_a_folder_of_its_own(tmp_path: Path, folder):
    words = ("frames", "prompts=[a robot, a car]", "clip=nano")
    command = [sys.executable, "-m", "vlmrm_exp.score", *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    (out,) = tmp_path.glob("outputs/score/*")
    assert f"saved {out}/scores.csv" in ended.stdout
    assert list(pd.read_csv(out / "scores.csv"))[3:] == ["a robot", "a car"]
    assert (out / ".hydra" / "overrides.yaml").is_file()


def test_each_job_of_a_sweep_has_a_folder_in_out(tmp_path: Path, folder, start):
    words = [str(folder), f"prompt={KNEELING}", "clip=nano", f"out={tmp_path}/o"]
    words += ["-m", "pictures=1,2"]

    def scored(composed: Composed) -> None:
        score.score(score.check(composed))

    for code in (0, 2):  # the second time nothing is replaced
        ended = start(words, scored, "score", score.check, score.PLURAL, files=True)
        assert ended.code == code
        assert all((tmp_path / "o" / name / "scores.csv").is_file() for name in "01")
    assert "holds a sweep already" in ended.err
