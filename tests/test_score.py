"""`python -m vlmrm_exp.score` against the same files, embedded and rewarded by hand."""

import json
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
from PIL import Image
from vlmrm_exp.study.pictures import PictureFile, find_files
from vlmrm_exp.study.strip import Column, Scores, draw_curves, draw_strip

from vlmrm_exp.config import ConfigError
from vlmrm_exp.figures import COLORS
from vlmrm_exp.score import (
    ScoreConfig,
    choose_shown,
    columns_of,
    main,
    parse,
    read_again,
    score,
    score_pictures,
    table,
)

KNEELING, STANDING = "a humanoid robot kneeling", "a humanoid robot standing up"
ROBOT = "a humanoid robot"


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """The humanoid standing, kneeling, doing the splits: (3, 96, 96, 3)."""
    from vlmrm_exp import cli
    from vlmrm_exp.envs import make_renderer
    from vlmrm_exp.envs.poses import ARMS, LEGS, PoseLibrary

    library = PoseLibrary()
    wanted = ("standing", "kneeling", "splits")
    legs = [next(pose for pose in LEGS if pose.name == name) for name in wanted]
    renderer = make_renderer(
        cli.composed("task=kneeling", "task.camera=fixed").task, 96, False
    )
    rows = np.array([library.row(pose, ARMS[0]) for pose in legs])
    drawn = renderer.render(rows)
    renderer.close()
    return drawn


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
    import torch

    from vlmrm_exp import cli
    from vlmrm_exp.vlm.encoder import load_encoder

    encoder = load_encoder(cli.composed("clip=base").clip, torch.device("cpu"))

    def rewards(frames, prompt: str, baseline: str = "", alpha: float = 0):
        states = encoder.embed_frames(np.array(frames)).double().numpy()
        goal, base = encoder.embed_prompts([prompt, baseline or "-"]).double().numpy()
        along = (goal - base) / np.linalg.norm(goal - base)
        projected = base + ((states - base) @ along)[:, None] * along
        mixed = alpha * projected + (1 - alpha) * states
        return 1 - ((mixed - goal) ** 2).sum(1) / 2

    return rewards


def run(out: Path, *arguments: Any) -> pd.DataFrame:
    score(parse([*map(str, arguments), f"out={out}"]))
    return pd.read_csv(out / "scores.csv")


def close(expected: np.ndarray) -> Any:
    return pytest.approx(expected, abs=2e-6)


def test_several_prompts_are_scored_each_by_itself(
    tmp_path: Path, folder, frames, by_hand, capsys
) -> None:
    out = tmp_path / "out"
    sheet = run(out, folder, f"prompt=[{KNEELING}, {STANDING}]")
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
    assert not (out / "curve.png").exists()  # there is no video


def test_alpha_and_baselines(tmp_path: Path, folder, frames, by_hand) -> None:
    """One baseline for all or one for each, and a column for each alpha."""
    prompts = f"prompt=[{KNEELING}, {STANDING}]"
    one = run(tmp_path / "1", folder, prompts, f"baseline={ROBOT}", "alpha=0.5")
    for prompt in (KNEELING, STANDING):
        expected = by_hand(frames, prompt, ROBOT, 0.5)
        assert one[prompt].to_numpy() == close(expected)
    two = run(
        tmp_path / "2", folder, prompts, f"baseline=[{ROBOT}, a robot]", "alpha=0,0.5,1"
    )
    assert list(two)[3:] == [
        f"{prompt} (alpha={alpha})"
        for prompt in (KNEELING, STANDING)
        for alpha in ("0", "0.5", "1")
    ]
    for prompt, baseline in ((KNEELING, ROBOT), (STANDING, "a robot")):
        for alpha in (0, 0.5, 1):
            expected = by_hand(frames, prompt, baseline, alpha)
            assert two[f"{prompt} (alpha={alpha})"].to_numpy() == close(expected)


def test_a_task_gives_what_is_not_given() -> None:
    asked = parse(["x.png", "task=kneeling"])
    assert (asked.prompt, asked.baseline) == ([KNEELING], [ROBOT])
    assert asked.alpha == [0.0]
    assert parse(["x.png", "task=kneeling", "prompt=null", "out=null"]) == asked
    assert parse(["x.png", "task=null", "prompt=a"]).task is None
    asked = parse(["x.png", "task=kneeling", "prompt=a, b", "alpha=0.5"])
    assert (asked.prompt, asked.baseline, asked.alpha) == (["a, b"], [ROBOT], [0.5])


def test_a_video_is_scored_frame_by_frame(tmp_path: Path, frames, by_hand) -> None:
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
    assert expected.max() - expected.min() > 0.2
    assert np.asarray(Image.open(out / "curve.png")).std() > 5
    some = run(tmp_path / "some", video, f"prompt={KNEELING}", "every=5")
    assert some["frame"].tolist() == [0, 5, 10]
    assert some[KNEELING].to_numpy() == close(sheet[KNEELING].to_numpy()[::5])


def test_sizes_may_differ(tmp_path: Path, frames, by_hand) -> None:
    """Also one after another, transparent, and turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = frames[0][20:70]
    on_white = frames[2].copy()
    on_white[:30] = 255
    clear = np.dstack([frames[2], np.full((96, 96), 255, np.uint8)])
    clear[:30, :, 3] = 0
    Image.fromarray(frames[1]).save(tmp_path / "1.png")
    Image.fromarray(wide).save(tmp_path / "2.png")
    Image.fromarray(clear).save(tmp_path / "3.png")
    Image.fromarray(np.rot90(wide)).save(tmp_path / "4.png", exif=exif)
    sheet = run(tmp_path / "out", tmp_path, f"prompt={KNEELING}")
    expected = [by_hand([x], KNEELING)[0] for x in (frames[1], wide, on_white, wide)]
    assert sheet[KNEELING].to_numpy() == close(np.array(expected))


def test_the_csv_survives_commas_quotes_and_letters(tmp_path: Path, folder) -> None:
    odd = 'a robot, "kneeling"'
    other = "ein Röboter"
    shutil.copy(folder / "1.png", folder / 'b, "c".png')
    sheet = run(tmp_path / "out", folder / 'b, "c".png', f"prompt=['{odd}', {other}]")
    assert list(sheet) == ["file", "frame", "time_s", odd, other]
    assert sheet["file"].tolist() == [str(folder / 'b, "c".png')]


def test_score_json_says_what_was_scored(tmp_path: Path, folder) -> None:
    sheet = run(tmp_path, folder, f"prompt={KNEELING}")
    saved = json.loads((tmp_path / "score.json").read_text())
    assert (saved["files"], saved["frames"], saved["clip"]) == (3, 3, "base")
    (column,) = saved["columns"]
    assert column["prompt"] == KNEELING
    assert column["mean"] == pytest.approx(sheet[KNEELING].mean())
    assert column["highest"] == pytest.approx(sheet[KNEELING].max())
    assert saved["versions"]["encoder"]["name"] == "base"
    assert not list(tmp_path.glob(".*.part*"))


def test_the_strip_shows_the_pictures_and_longer_bars(tmp_path: Path) -> None:
    colours = np.array([(250, 20, 20), (20, 20, 250)], np.uint8)
    pictures = [np.broadcast_to(c, (40, 60, 3)) for c in colours]
    files = [PictureFile(Path(f"{n}.png"), "image") for n in "ab"]
    # $ and Chinese: the first means nothing here, and the font lacks the second.
    columns = [Column("costs $5 or $6 跪", "", None, 0.0), Column("b", "", None, 0.0)]
    rewards = np.array([[0.1, 0.3], [0.4, 0.2]], np.float32)
    scores = Scores(np.arange(2), np.zeros(2, int), np.full(2, np.nan), rewards)
    draw_strip(tmp_path / "strip.png", files, scores, columns, np.arange(2), pictures)
    strip = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB")).astype(int)
    assert strip.shape[1] == 780  # 6.5 inches, the least, at 120 dots
    sizes = []
    for colour in colours:
        rows, lines = np.nonzero((np.abs(strip - colour) < 8).all(-1))
        sizes.append((np.ptp(lines) + 1, np.ptp(rows) + 1, lines.min(), rows.max()))
    (width, height, left, bottom), (_, _, right, other_bottom) = sizes
    assert (width, height) == pytest.approx((228, 152), abs=3)  # 1.9 inches, 3:2
    assert bottom == pytest.approx(other_bottom, abs=2)
    assert right - left == pytest.approx(264, abs=3)
    # Beneath: the first column's bar (the palette's blue) is longer for the second.
    beneath = (np.abs(strip - (0x00, 0x72, 0xB2)) < 8).all(-1)[bottom + 10 :]
    first, second = (beneath[:, x : x + 228].sum(1).max() for x in (left, right))
    assert 0 < first < 10
    assert second == pytest.approx(1.02 * 120, abs=4)


def test_curves_of_alphas_have_panels_of_their_own(tmp_path: Path) -> None:
    files = [PictureFile(Path(f"{n}.mp4"), "video") for n in "ab"]
    columns = [Column(f"p {alpha}", "p", "q", alpha) for alpha in (0.0, 1.0)]
    # The second alpha's rewards are a hundred times smaller, and rise just as well.
    rise = np.tile(np.linspace(0, 1, 60, dtype=np.float32), 2)
    rewards = np.stack([rise, 0.9 + rise / 100], axis=1)
    times = np.tile(np.arange(60) / 10, 2)
    scores = Scores(np.repeat([0, 1], 60), np.tile(np.arange(60), 2), times, rewards)
    draw_curves(tmp_path / "curve.png", files, scores, columns, [0, 1])
    drawn = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB")).astype(int)
    panel = round(2.3 * 120)
    body = drawn[-4 * panel - 12 : -12]
    for number in range(4):
        rows = body[number * panel : (number + 1) * panel]
        for c, colour in enumerate(COLORS[:2]):
            rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            found = np.nonzero((np.abs(rows - rgb) < 8).all(-1))[0]
            if c == number % 2:
                assert np.ptp(found) > 0.5 * panel, "it is flat"
            else:
                assert not len(found)


def test_shown_pictures_are_chosen_evenly() -> None:
    assert choose_shown([1, 1, 1], 12).tolist() == [0, 1, 2]
    assert choose_shown([101], 5).tolist() == [0, 25, 50, 75, 100]
    assert choose_shown([9], 1).tolist() == [4]
    # More files than places: some of them, the middle of each.
    assert choose_shown([3, 3, 3, 3, 3], 3).tolist() == [1, 7, 13]
    # Still images keep a place each; the longer video gets more of what is left.
    assert choose_shown([1, 40, 1, 80], 8).tolist() == [0, 1, 40, 41, 42, 68, 95, 121]
    assert choose_shown([2, 3], 12).tolist() == [0, 1, 2, 3, 4]


def test_the_pictures_shown_are_those_that_were_scored(tmp_path: Path) -> None:
    greys = np.arange(10, 250, 20)
    images = [Image.new("RGB", (8, 6), (int(grey),) * 3) for grey in greys]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    images[-1].save(tmp_path / "b.png")
    files = find_files([str(tmp_path)])

    def brightness(frames: np.ndarray) -> np.ndarray:
        assert len(frames) <= 5
        return frames.mean((1, 2, 3), dtype=np.float32)[:, None]

    scores = score_pictures(files, brightness, every=2, batch_size=5)
    assert scores.reward[:, 0].tolist() == [*greys[::2], greys[-1]]
    shown = choose_shown(np.bincount(scores.file), 4)
    pictures = read_again(files, scores, shown, every=2)
    assert [p.mean() for p in pictures] == scores.reward[shown, 0].tolist()
    assert [p.mean() for p in pictures] == [10, 90, 210, 230]


def test_the_table_lists_both_ends() -> None:
    rewards = np.arange(20, dtype=np.float32)[:, None] / 20
    files = [PictureFile(Path("a.mp4"), "video")]
    scores = Scores(np.zeros(20, int), np.arange(20), np.arange(20) / 10, rewards)
    lines = table(files, scores, [Column("p", "p", "q", 0.25)]).splitlines()
    assert lines[0] == "20 pictures in 1 file"
    assert lines[1] == '"p", alpha 0.25, baseline "q"'
    assert lines[3].split() == ["0.9500", "a.mp4", "frame", "19,", "1.90", "s"]
    assert lines[8].strip() == "... 10 more"
    assert lines[-1].split() == ["0.0000", "a.mp4", "frame", "0,", "0.00", "s"]
    assert len(lines) == 3 + 5 + 1 + 5


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "No pictures are given"),
        (["prompt=a"], "No pictures are given"),
        (["x", "compute=tpu"], "compute is 'tpu', but must be one of auto, cpu, gpu"),
        (["x", "clip=nano,tiny"], "clip is 'nano,tiny': give one model"),
        (["x", "clip=[nano]"], "give one model"),
        (["x", "every=0"], "every is 0: give at least 1"),
        (["x", "pictures=0"], "pictures is 0: give at least 1"),
        (["x", "task=kneel"], "task=kneel does not exist: .* Did you mean kneeling"),
        (["x", "task=a,b"], "task is 'a,b'"),
        (["x", "promt=a"], "Did you mean prompt"),
    ],
)
def test_parse_refuses(arguments, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(arguments)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({}, "No prompt is given"),
        ({"prompt": ["a", " "]}, "prompt is empty"),
        ({"prompt": ["a"], "baseline": [""]}, "baseline is empty"),
        ({"prompt": ["a"], "alpha": [2.0]}, "between 0 and 1"),
        ({"prompt": ["a"], "alpha": [float("nan")]}, "between 0 and 1"),
        ({"prompt": ["a"], "alpha": [0, 0.5]}, "alpha is 0.5, which needs a baseline"),
        ({"prompt": ["a"] * 3, "baseline": ["b"] * 2}, "2 baselines for 3 prompts"),
        ({"prompt": ["a", "b", "a"]}, 'two columns "a"'),
        ({"prompt": ["frame"]}, 'two columns "frame"'),
    ],
)
def test_columns_of_refuses(asked, reason) -> None:
    with pytest.raises(ConfigError, match=reason):
        columns_of(ScoreConfig(**{"alpha": [0.0], **asked}))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["clip=nope"], "clip=nope does not exist"),
        (["clip="], "clip"),
        (["clip=local-dir:/nowhere"], "There is no folder /nowhere"),
        (["clip=local-dir:/"], "has no open_clip_config.json"),
        ([f"prompt={'word ' * 60}"], "would not see its end"),
        (["alpha=1", f"baseline={KNEELING}"], "have the same embedding"),
    ],
)
def test_what_cannot_be_scored_leaves_nothing(
    tmp_path: Path, folder, arguments, reason
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=reason) as caught:
        run(out, folder, f"prompt={KNEELING}", *arguments)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_damaged_picture_leaves_nothing(tmp_path: Path, folder) -> None:
    (folder / "9.png").write_bytes((folder / "1.png").read_bytes()[:700])
    with pytest.raises(ConfigError, match=r"9\.png cannot be read to its end"):
        run(tmp_path / "out", folder, f"prompt={KNEELING}")
    assert not (tmp_path / "out").exists()


def test_older_scores_are_not_lost(tmp_path: Path, folder) -> None:
    (tmp_path / "scores.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds scores\.csv already"):
        run(tmp_path, folder, f"prompt={KNEELING}")
    assert (tmp_path / "scores.csv").read_text() == "mine"


def test_weights_that_are_no_numbers_are_told(
    tmp_path: Path, folder, frames, by_hand
) -> None:
    """A model's folder is a clip too; here one whose picture tower is damaged."""
    from safetensors.torch import load_file, save_file

    from vlmrm_exp.vlm.source import EMBEDDED

    model = tmp_path / "model"
    shutil.copytree(EMBEDDED / "base", model)
    clip = f"clip=local-dir:{model}"
    whole = run(tmp_path / "whole", folder, f"prompt={KNEELING}", clip)
    assert whole[KNEELING].to_numpy() == close(by_hand(frames, KNEELING))
    file = model / "open_clip_model.safetensors"
    weights = load_file(file)
    for name, value in weights.items():
        if name.startswith("visual.") and value.is_floating_point():
            value.fill_(float("nan"))
    save_file(weights, file)
    with pytest.raises(FloatingPointError, match=r"1\.png .* is nan, not a finite"):
        run(tmp_path / "out", folder, f"prompt={KNEELING}", clip)
    assert not (tmp_path / "out").exists()


def test_main_ends_bad_input_in_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["score", str(tmp_path / "a.png"), "prompt=a"])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    assert (caught.value.code, said.out) == (2, "")
    assert said.err == (
        f"vlmrm_exp.score: There is no {tmp_path / 'a.png'}: give images, videos, or "
        "folders of them.\n"
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import runpy, sys; sys.argv[1:] = ['--help'];"
        "runpy.run_module('vlmrm_exp.score', run_name='__main__');"
        "heavy = {'torch', 'mujoco', 'open_clip', 'matplotlib', 'pandas', 'PIL'};"
        "sys.exit(str(heavy & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "pictures=12" in done.stdout
