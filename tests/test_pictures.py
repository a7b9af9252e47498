"""Pictures out of real files, against the arrays that were written into them."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from vlmrm_exp.config import ConfigError
from vlmrm_exp.studies.pictures import (
    PictureFile,
    find_files,
    left_out,
    read_one,
    read_pictures,
)

pytestmark = pytest.mark.slow

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def write_video(path: Path, greys: list[int], fps: int, *options: str) -> Path:
    """A video of one shade of grey per frame, 64 x 48."""
    raw = b"".join(bytes([grey]) * (64 * 48 * 3) for grey in greys)
    command = [FFMPEG, "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt"]
    command += ["rgb24", "-video_size", "64x48", "-framerate", str(fps), "-i", "-"]
    subprocess.run([*command, *options, str(path)], input=raw, check=True)
    return path


def convert(source: Path, target: Path, *options: str) -> Path:
    """What ffmpeg makes of a file."""
    command = [FFMPEG, "-loglevel", "error", "-y", "-i", str(source), *options]
    subprocess.run([*command, f"file:{target}"], check=True)
    return target


def read_all(path: Path, every: int = 1) -> list:
    (file,) = find_files([str(path)])
    return list(read_pictures(file, every))


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


def test_16_bit_grey_is_on_white_and_not_inverted(tmp_path: Path) -> None:
    grey = np.array([[0, 257 * 7, 257 * 8, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "clear.png", transparency=257 * 7)
    assert read_one(tmp_path / "clear.png")[0, :, 0].tolist() == [0, 255, 8, 255]
    white_is_0 = Image.fromarray(65535 - grey)
    white_is_0.save(tmp_path / "inverted.tif", tiffinfo={262: 0})
    assert read_one(tmp_path / "inverted.tif")[0, :, 0].tolist() == [0, 7, 8, 255]


@pytest.mark.parametrize("end", ["cut", "whole"])
def test_a_broken_exif_block_says_nothing_but_the_turn(tmp_path, noise, end) -> None:
    """Entries that point nowhere, after the orientation."""
    entries = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + b"\x87\x69\0\x04\0\0\0\x01"
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x02" + entries + b"\xff\xff\xff\0\0\0\0\0"
    exif = exif[:20] if end == "cut" else exif
    Image.fromarray(noise).save(tmp_path / "a.png", exif=exif)
    expected = noise if end == "cut" else np.rot90(noise, -1)
    assert np.array_equal(read_one(tmp_path / "a.png"), expected)


@pytest.mark.filterwarnings("error")
def test_a_large_photo_is_opened_and_a_huge_one_is_told(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (20_000, 10_000)).save(path)
    assert find_files([str(path)]) == [PictureFile(path, "image")]
    monkeypatch.setattr("vlmrm_exp.studies.pictures.MOST_PIXELS", 199_999_999)
    with pytest.raises(ConfigError, match=r"a\.png is too large: .* 20,000 x 10,000"):
        find_files([str(path)])


def test_pages_are_read_one_by_one_without_a_time(tmp_path: Path, noise) -> None:
    first, second = Image.fromarray(noise), Image.fromarray(255 - noise)
    path = tmp_path / "pages.tif"
    first.save(path, save_all=True, append_images=[second])
    one, other = read_all(path)
    assert (one.frame, one.time_s, other.frame, other.time_s) == (0, None, 1, None)
    assert np.array_equal(one.pixels, noise)
    assert np.array_equal(other.pixels, 255 - noise)
    with pytest.raises(ConfigError, match="may hold several pictures"):
        read_one(path)


def test_a_hidden_first_picture_of_an_animation_is_left_out(tmp_path: Path) -> None:
    first, *others = (Image.new("RGB", (8, 6), (grey,) * 3) for grey in (1, 90, 200))
    path = tmp_path / "a.png"
    first.save(
        path, save_all=True, append_images=others, default_image=True, duration=100
    )
    found = [(p.frame, p.time_s, p.pixels[0, 0, 0]) for p in read_all(path)]
    assert found == [(0, 0, 90), (1, 0.1, 200)]


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


BASE = [20, 220, 60, 180, 100, 140, 240, 40, 200, 120] * 3


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(suffix, "cut") for suffix in ("mkv", "webm", "avi", "mpg", "wmv", "mp4")]
    + [(suffix, "zeros") for suffix in ("mkv", "avi", "mpg")],
)
def test_a_damaged_video_is_refused(tmp_path: Path, suffix, damage) -> None:
    """ffmpeg itself ends as if all were well."""
    smooth = ("-movflags", "+faststart") if suffix == "mp4" else ()
    noisy = ("-vf", "noise=alls=30:allf=t", "-r", "25")
    path = write_video(tmp_path / f"a.{suffix}", BASE, 25, *noisy, *smooth)
    assert len(read_all(path)) >= 30
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if damage == "cut":
        del data[middle:]
    else:
        data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    with pytest.raises(
        ConfigError, match=r"cannot be read .*damaged at frame"
    ) as error:
        read_all(path)
    assert "\n" not in str(error.value)


def test_times_places_and_sizes_go_on_where_the_size_changes(tmp_path: Path) -> None:
    one = write_video(tmp_path / "1.webm", [20, 60, 100, 140], 10)
    two = tmp_path / "2.webm"
    convert(write_video(two, [180, 220, 240], 10), tmp_path / "3.webm", "-s", "32x80")
    (tmp_path / "list").write_text(f"file {one}\nfile {tmp_path}/3.webm\n")
    command = [FFMPEG, "-loglevel", "error", "-f", "concat", "-safe", "0", "-i"]
    both = tmp_path / "both.webm"
    command += [str(tmp_path / "list"), "-c", "copy", str(both)]
    subprocess.run(command, check=True)
    found = read_all(both)
    assert [p.time_s for p in found] == pytest.approx(np.arange(7) / 10, abs=2e-3)
    assert [p.pixels.shape[:2] for p in found] == [(48, 64)] * 4 + [(80, 32)] * 3
    greys = [20, 60, 100, 140, 180, 220, 240]
    assert [p.pixels.mean() for p in found] == pytest.approx(greys, abs=6)
    some = read_all(both, every=3)
    assert [p.frame for p in some] == [0, 3, 6]
    assert [p.pixels.mean() for p in some] == pytest.approx([20, 140, 240], abs=6)


def test_pixels_are_square_whatever_the_file_has(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [9, 9], 10, "-vf", "setsar=2/1")
    assert read_all(path)[0].pixels.shape == (48, 128, 3)
    path = write_video(tmp_path / "b.mp4", [9, 9], 10, "-vf", "setsar=1/2")
    assert read_all(path)[0].pixels.shape == (96, 64, 3)


@pytest.mark.parametrize("name", ["a.ts", "a.flv", "a.3gp", "mp4.gif"])
def test_ffmpeg_decides_what_a_video_is(tmp_path: Path, name) -> None:
    path = write_video(tmp_path / "a.mp4", [50, 150], 10, "-c:v", "libx264")
    named = tmp_path / name
    if name == "mp4.gif":
        path.rename(named)
    else:
        convert(path, named, "-c", "copy")
    assert [p.pixels.mean() for p in read_all(named)] == pytest.approx([50, 150], abs=6)


def test_a_list_of_files_is_no_video(tmp_path: Path) -> None:
    """ffmpeg would open those that it names."""
    write_video(tmp_path / "a.mp4", [50, 150], 10)
    (tmp_path / "b.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        find_files([str(tmp_path / "b.mp4")])


def test_of_several_files_one_that_is_no_picture_is_refused_at_once(
    tmp_path: Path, noise
) -> None:
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "damaged.png").touch()
    (tmp_path / "notes.txt").write_text("no picture")
    names = [str(tmp_path / name) for name in ("a.png", "damaged.png", "notes.txt")]
    assert len(find_files(names[:2])) == 2
    with pytest.raises(ConfigError, match=r"notes\.txt is not a picture"):
        find_files(names)


def test_what_a_folder_holds_besides_is_told(tmp_path: Path, noise) -> None:
    for name in ("a.png", "b.jfif", "c.jpe", "d.tga", "e.JP2"):
        kind = {"jfif": "jpeg", "jpe": "jpeg"}.get(name[2:])
        Image.fromarray(noise).save(tmp_path / name, kind)
    for name in ("f.HEIC", "g.heic", "h", ".hidden"):
        (tmp_path / name).touch()
    assert len(find_files([str(tmp_path)])) == 5
    assert (
        left_out([str(tmp_path)])
        == "Left out, as of other kinds: 2 .heic, 1 no suffix."
    )
    assert left_out([str(tmp_path / "a.png")]) == ""


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
        ("a.mp4", b"hello" * 99, "a.mp4 cannot be read"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
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


def test_a_song_with_a_cover_is_no_video(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    command = [FFMPEG, "-loglevel", "error", "-f", "lavfi", "-i", "sine=duration=0.2"]
    subprocess.run([*command, str(sound)], check=True)
    Image.new("RGB", (10, 10)).save(tmp_path / "cover.png")
    cover = ("-i", str(tmp_path / "cover.png"), *"-map 0 -map 1 -c copy".split())
    song = convert(
        sound, tmp_path / "song.mp4", *cover, "-disposition:v:0", "attached_pic"
    )
    for path in (sound, song):
        with pytest.raises(ConfigError, match="has no video in it: leave it out"):
            find_files([str(path)])


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("cut.png", "cut.jpg"):
        path = tmp_path / name
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        (file,) = find_files([str(path)])  # its beginning is in order
        with pytest.raises(ConfigError, match=f"{name} cannot be read"):
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
    line = "[Parsed_showinfo_3 @ 0x1] [info] n: 0 pts: 0 pts_time:0 sar:1/1 s:2x1 i:P"
    script = f"echo '{line}' >&2; echo '{line}' >&2; printf abcdefabc"
    fake_ffmpeg(tmp_path, monkeypatch, script)
    (tmp_path / "a.mp4").touch()
    pictures = read_pictures(PictureFile(tmp_path / "a.mp4", "video"))
    assert next(pictures).pixels.tobytes() == b"abcdef"
    with pytest.raises(ConfigError, match="damaged at frame 1"):
        next(pictures)
