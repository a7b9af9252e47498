"""Videos, read back through ffmpeg."""

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import ImageColor

from vlmrm_exp import video
from vlmrm_exp.video import write_episodes

pytestmark = pytest.mark.slow


def smooth_frames(steps: int, height: int, width: int) -> np.ndarray:
    """Colour gradients that move with time: (T, H, W, 3) uint8."""
    t, y, x = np.meshgrid(
        np.arange(steps) / steps,
        np.linspace(0, 1, height),
        np.linspace(0, 1, width),
        indexing="ij",
    )
    return (255 * np.stack([(x + t) / 2, y, (1 - x + t) / 2], -1)).astype(np.uint8)


def ffmpeg(*arguments: str) -> subprocess.CompletedProcess:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *arguments]
    return subprocess.run(command, capture_output=True)


def describe(path: Path) -> str:
    """What ffmpeg tells of the file's video stream, in one line."""
    lines = ffmpeg("-i", str(path)).stderr.decode().splitlines()
    (line,) = [line for line in lines if "Video:" in line]
    return line


def read_back(path: Path) -> np.ndarray:
    """The file's frames: (T, H, W, 3) uint8."""
    size = re.search(r" (\d+)x(\d+)[ ,]", describe(path))
    assert size
    done = ffmpeg("-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:")
    return np.frombuffer(done.stdout, np.uint8).reshape(
        -1, int(size[2]), int(size[1]), 3
    )


def find_picture(canvas: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The part of the canvas where the frame's colours begin, below the title."""
    background = ImageColor.getrgb(video.BACKGROUND)
    distance = np.abs(canvas.astype(int) - background).max(-1)
    height, width = frame.shape[:2]
    left = (canvas.shape[1] - width) // 2
    shown = (distance > 24)[:, left : left + width].mean(1) > 0.95
    top = int(np.argmax(shown))
    return canvas[top : top + height, left : left + width]


def curve_pixels(canvas: np.ndarray) -> np.ndarray:
    """Where the canvas has the curve's colour, below its upper two thirds."""
    close = np.abs(canvas.astype(int) - ImageColor.getrgb(video.CURVE)).max(-1) < 85
    close[: int(0.82 * len(canvas))] = False  # picture, title and the present value
    return close


def test_video_is_h264_in_even_sizes_with_every_frame(tmp_path: Path) -> None:
    path = tmp_path / "videos" / "eval.mp4"
    episodes = [(smooth_frames(t, 301, 401), np.arange(t) / t) for t in (7, 5)]
    write_episodes(path, episodes, fps=25, title="a car")
    told = describe(path)
    assert "h264" in told
    assert "yuv420p(tv, bt709" in told
    assert " 25 fps" in told
    count, height, width, _ = read_back(path).shape
    assert (count, height % 2, width) == (12, 0, 402)
    assert list(path.parent.iterdir()) == [path]


def test_video_index_comes_before_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_episodes(path, [(smooth_frames(3, 240, 360), None)], 30, "a")
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_video_picture_equals_the_frames(tmp_path: Path) -> None:
    frames = smooth_frames(6, 300, 400)
    write_episodes(tmp_path / "a.mp4", [(frames, np.arange(6.0))], 30, "a car")
    for canvas, frame in zip(read_back(tmp_path / "a.mp4"), frames, strict=True):
        error = np.abs(find_picture(canvas, frame).astype(int) - frame)
        assert error.mean() < 2.5  # two neighbouring frames differ by 14


@pytest.mark.parametrize("colour", [(200, 30, 30), (30, 200, 30), (30, 30, 200)])
def test_video_keeps_colours(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = np.full((3, 240, 360, 3), colour, np.uint8)
    write_episodes(tmp_path / "a.mp4", [(frames, None)], 30, "")
    shown = read_back(tmp_path / "a.mp4")[:, 20:220, 20:340]
    assert np.abs(shown.astype(int) - colour).max() <= 4


def test_video_enlarges_small_frames_by_a_whole_factor(tmp_path: Path) -> None:
    frames = np.zeros((2, 96, 96, 3), np.uint8)
    frames[:, :48] = 255
    write_episodes(tmp_path / "a.mp4", [(frames, None)], 30, "")
    canvas = read_back(tmp_path / "a.mp4")[0]
    left = (canvas.shape[1] - 288) // 2
    bright = canvas.min(-1) > 128
    assert bright[:140, left + 4 : left + 284].all()
    assert not bright[148:288].any()
    assert not bright[:, : left - 4].any()


def test_video_curve_grows_with_the_episode(tmp_path: Path) -> None:
    frames = np.zeros((20, 300, 400, 3), np.uint8)
    rewards = np.sin(np.arange(20.0))
    write_episodes(tmp_path / "a.mp4", [(frames, rewards)], 30, "")
    shown = [curve_pixels(canvas) for canvas in read_back(tmp_path / "a.mp4")]
    right = [np.flatnonzero(pixels.any(0)).max() for pixels in shown]
    assert (np.diff(right) > 5).all()
    assert right[0] < 100
    assert right[-1] > 360


def test_video_curve_height_follows_the_reward(tmp_path: Path) -> None:
    frames = np.zeros((11, 300, 400, 3), np.uint8)
    rewards = np.where(np.arange(11) < 5, 1.0, -1.0)
    write_episodes(tmp_path / "a.mp4", [(frames, rewards)], 30, "")
    last = curve_pixels(read_back(tmp_path / "a.mp4")[-1])
    rows = [np.flatnonzero(last[:, x]).mean() for x in (120, 350)]
    assert rows[0] + 40 < rows[1]


def test_video_reward_axis_is_shared_by_the_episodes(tmp_path: Path) -> None:
    frames = np.zeros((4, 300, 400, 3), np.uint8)
    episodes = [(frames, np.full(4, value)) for value in (0.0, 1.0)]
    write_episodes(tmp_path / "a.mp4", episodes, 30, "")
    shown = read_back(tmp_path / "a.mp4")
    low, high = (np.flatnonzero(curve_pixels(shown[t])[:, 200]).mean() for t in (3, 7))
    assert high + 40 < low


def test_video_without_rewards_has_no_curve(tmp_path: Path) -> None:
    frames = np.zeros((3, 300, 400, 3), np.uint8)
    write_episodes(tmp_path / "a.mp4", [(frames, None)], 30, "a car")
    assert not any(curve_pixels(c).any() for c in read_back(tmp_path / "a.mp4"))


@pytest.mark.parametrize(
    "rewards", [[0.5] * 4, [np.nan, 1, np.inf, 2], [np.nan] * 4, [1e9, 2e9, -3e9, 0]]
)
def test_video_bears_unusual_rewards(tmp_path: Path, rewards: list[float]) -> None:
    frames = smooth_frames(4, 240, 360)
    write_episodes(tmp_path / "a.mp4", [(frames, np.array(rewards))], 30, "a")
    assert len(read_back(tmp_path / "a.mp4")) == 4


@pytest.mark.parametrize("title", ["", "x", "a humanoid robot " * 40, "y" * 300])
def test_video_title_leaves_the_picture_whole(tmp_path: Path, title: str) -> None:
    frames = np.full((1, 240, 360, 3), 128, np.uint8)
    write_episodes(tmp_path / "a.mp4", [(frames, None)], 30, title)
    canvas = read_back(tmp_path / "a.mp4")[0]
    grey = np.abs(canvas[:, 2:358].astype(int) - 128).max((1, 2)) < 24
    assert grey.sum() == 240
    assert len(canvas) < 400


def test_video_keeps_the_older_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    first, other_size = smooth_frames(2, 240, 360), smooth_frames(2, 100, 100)
    with pytest.raises(ValueError, match="size"):
        write_episodes(path, [(first, None), (other_size, None)], 30, "a")
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


# imageio_ffmpeg leaves the pipe to a killed ffmpeg open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_video_is_whole_although_ffmpeg_was_killed(tmp_path, monkeypatch) -> None:
    program, killed = tmp_path / "ffmpeg", tmp_path / "killed"
    program.write_text(
        f'#!/bin/bash\nif [[ "${{@: -1}}" == *.mp4 && ! -e {killed} ]]; then\n'
        f"touch {killed}; head -c 100000 > /dev/null; kill -9 $$\nfi\n"
        f'exec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    path = tmp_path / "videos" / "a.mp4"
    write_episodes(path, [(smooth_frames(20, 240, 360), None)], 30, "a")
    assert killed.exists()
    assert len(read_back(path)) == 20
    assert list(path.parent.iterdir()) == [path]


def test_video_that_ffmpeg_could_not_finish_is_not_there(tmp_path, monkeypatch) -> None:
    """As when the disk is full: the file begins well, and is cut."""
    program = tmp_path / "ffmpeg"
    program.write_text(
        f'#!/bin/bash\n{imageio_ffmpeg.get_ffmpeg_exe()} "$@" || exit\n'
        'if [[ "${@: -1}" == *.mp4 ]]; then truncate -s 3000 "${@: -1}"; exit 1; fi\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    path = tmp_path / "videos" / "a.mp4"
    with pytest.raises(OSError, match="ffmpeg"):
        write_episodes(path, [(smooth_frames(20, 240, 360), None)], 30, "a")
    assert list(path.parent.iterdir()) == []
