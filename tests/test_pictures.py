"""Pictures out of real files, against the arrays that were written into them."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from vlmrm_exp.config import ConfigError
from vlmrm_exp.studies.pictures import PictureFile, find_files, read_pictures

pytestmark = pytest.mark.slow

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def write_video(path: Path, greys: list[int], fps: int, *options: str) -> Path:
    """A video of one shade of grey per frame, 64 x 48."""
    raw = b"".join(bytes([grey]) * (64 * 48 * 3) for grey in greys)
    command = [FFMPEG, "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt"]
    command += ["rgb24", "-video_size", "64x48", "-framerate", str(fps), "-i", "-"]
    subprocess.run([*command, *options, str(path)], input=raw, check=True)
    return path


def read_one(path: Path) -> np.ndarray:
    """The pixels of a file that holds one picture."""
    (file,) = find_files([str(path)])
    assert file.kind == "image"
    (picture,) = read_pictures(file)
    assert (picture.frame, picture.time_s) == (0, None)
    assert picture.pixels.dtype == np.uint8
    return picture.pixels


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "gif"])
def test_lossless_images_give_their_pixels(tmp_path: Path, noise, suffix) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(file, lossless=True)
    assert np.array_equal(read_one(file), noise)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)  # black: opaque, half, not there
    pixels[0, :, 3] = 255, 128, 0
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    assert read_one(tmp_path / "rgba.png")[0, :, 0].tolist() == [0, 127, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert read_one(tmp_path / "palette.png")[0].tolist() == [[255] * 3, [200, 0, 0]]


def test_exif_orientation_is_applied(tmp_path: Path, noise) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture is shown turned a quarter clockwise
    Image.fromarray(noise).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_one(tmp_path / "turned.png"), np.rot90(noise, -1))


def test_grey_of_8_and_16_bits_is_the_same_grey(tmp_path: Path) -> None:
    grey = np.array([[0, 1, 127, 128, 254, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    wide = (grey.astype(np.uint16) * 257).byteswap().tobytes()
    (tmp_path / "16.pgm").write_bytes(b"P5 6 1 65535\n" + wide)
    expected = np.repeat(grey[..., None], 3, axis=-1)
    assert np.array_equal(read_one(tmp_path / "8.png"), expected)
    assert np.array_equal(read_one(tmp_path / "16.png"), expected)
    assert np.array_equal(read_one(tmp_path / "16.pgm"), expected)


def test_pages_after_the_first_are_no_animation(tmp_path: Path, noise) -> None:
    first, second = Image.fromarray(noise), Image.fromarray(255 - noise)
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[second])
    assert np.array_equal(read_one(tmp_path / "pages.tif"), noise)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_has_each_frame_at_its_time(tmp_path: Path, suffix) -> None:
    greys, lengths = [10, 90, 170, 250], [100, 300, 50, 200]  # ms
    images = [Image.new("RGB", (8, 6), (grey,) * 3) for grey in greys]
    path = tmp_path / f"a.{suffix}"
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=lengths, lossless=True
    )
    (file,) = find_files([str(path)])
    pictures = list(read_pictures(file))
    assert [p.pixels[0, 0, 0] for p in pictures] == greys
    assert [p.time_s for p in pictures] == pytest.approx([0, 0.1, 0.4, 0.45])
    assert [p.frame for p in read_pictures(file, every=3)] == [0, 3]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov", "webm"])
def test_a_video_has_each_frame_in_order(tmp_path: Path, suffix) -> None:
    greys = [20, 220, 60, 180, 100, 140, 240]
    # An avi with frames that look ahead counts its times from the third.
    ahead = ("-bf", "2") if suffix == "avi" else ()
    path = write_video(tmp_path / f"a.{suffix}", greys, 10, *ahead)
    (file,) = find_files([str(path)])
    pictures = list(read_pictures(file))
    assert [p.frame for p in pictures] == list(range(7))
    assert [p.time_s for p in pictures] == pytest.approx(np.arange(7) / 10)
    assert pictures[0].pixels.shape == (48, 64, 3)
    assert [p.pixels.mean() for p in pictures] == pytest.approx(greys, abs=6)


def test_every_third_frame_of_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [20, 60, 100, 140, 180, 220, 240], 10)
    (file,) = find_files([str(path)])
    pictures = list(read_pictures(file, every=3))
    assert [p.frame for p in pictures] == [0, 3, 6]
    assert [p.time_s for p in pictures] == pytest.approx([0, 0.3, 0.6])
    assert [p.pixels.mean() for p in pictures] == pytest.approx([20, 140, 240], abs=6)


def test_a_video_of_uneven_times_gives_each_frame_at_its_own(tmp_path: Path) -> None:
    late = ("-vf", "setpts='if(gt(N,2),23,N)'", "-fps_mode", "passthrough")
    path = write_video(tmp_path / "a.mkv", [20, 60, 100, 140], 10, *late)
    (file,) = find_files([str(path)])
    pictures = list(read_pictures(file))
    assert [p.pixels.mean() for p in pictures] == pytest.approx(
        [20, 60, 100, 140], abs=6
    )
    assert [p.time_s for p in pictures] == pytest.approx([0, 0.1, 0.2, 2.3])
    assert [p.time_s for p in read_pictures(file, every=3)] == pytest.approx([0, 2.3])


def test_a_video_is_turned_as_its_file_says(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [50, 50], 10)
    turned = tmp_path / "turned:90.mp4"  # nor is this name a protocol
    command = [FFMPEG, "-loglevel", "error", "-display_rotation", "90", "-i", str(path)]
    subprocess.run([*command, "-c", "copy", f"file:{turned}"], check=True)
    (file,) = find_files([str(turned)])
    assert next(read_pictures(file)).pixels.shape == (64, 48, 3)


def test_a_folder_gives_its_pictures_in_natural_order(tmp_path: Path, noise) -> None:
    for name in ("f10.png", "f9.PNG", "b.png", ".hidden.png", "f1.png"):
        Image.fromarray(noise).save(tmp_path / name)
    write_video(tmp_path / "f2.mp4", [10, 20], 5)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "f0.png").mkdir()  # folders inside are not read
    files = find_files([str(tmp_path), str(tmp_path / "b.png")])
    names = [(file.path.name, file.kind) for file in files]
    assert names == [
        ("b.png", "image"),
        ("f1.png", "image"),
        ("f2.mp4", "video"),
        ("f9.PNG", "image"),
        ("f10.png", "image"),
        ("b.png", "image"),  # what is named twice comes twice
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", None, "There is no"),
        ("a.txt", b"hello", "a.txt is not a picture that can be read"),
        ("a.png", b"hello", "a.png is not a picture that can be read"),
        ("a.mp4", b"hello" * 99, "a.mp4 cannot be read to its end"),
        ("empty", "folder", "holds no image or video"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, name, content, reason) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        find_files([str(path)])
    assert "\n" not in str(caught.value)


def test_a_video_without_pictures_is_refused(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    command = [FFMPEG, "-loglevel", "error", "-f", "lavfi", "-i", "sine=duration=0.2"]
    subprocess.run([*command, str(sound)], check=True)
    with pytest.raises(ConfigError, match="cannot be read to its end"):
        find_files([str(sound)])


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("cut.png", "cut.jpg"):
        path = tmp_path / name
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        (file,) = find_files([str(path)])  # its beginning is in order
        with pytest.raises(ConfigError, match=f"{name} cannot be read to its end"):
            list(read_pictures(file))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.ones((2, 2), np.float32), "floating point"),
        (np.full((2, 2), 70_000, np.int32), "of 32 bits"),
        (np.full((2, 2), 200, np.int32), "of 32 bits"),
    ],
)
def test_pixels_without_a_known_white_are_refused(tmp_path, pixels, reason) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(ConfigError, match=reason):
        read_one(tmp_path / "a.tif")


def fake_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a shell script stand where imageio-ffmpeg looks for ffmpeg."""
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


def test_a_frame_that_is_cut_short_is_told(tmp_path: Path, monkeypatch) -> None:
    script = r"printf 'P6\n2 1\n255\nabcdefP6\n2 1\n255\nabc'"
    fake_ffmpeg(tmp_path, monkeypatch, script)
    file = PictureFile(tmp_path / "a.mp4", "video")
    pictures = read_pictures(file)
    assert next(pictures).pixels.tobytes() == b"abcdef"
    with pytest.raises(ConfigError, match="frame 1 is missing or damaged"):
        next(pictures)
