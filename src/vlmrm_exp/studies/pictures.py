"""Pictures out of files: images, animations and videos, one at a time, as RGB.

Images are put upright (EXIF), transparency is laid on white, 16 bits of grey become 8.
"""

import re
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np

from vlmrm_exp.config import ConfigError
from vlmrm_exp.files import natural, reason

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = tuple(
    ".png .jpg .jpeg .webp .bmp .gif .tif .tiff .avif .ppm .pgm .apng".split()
)
"""What is taken from a folder; a file that is named may be any that Pillow opens."""
VIDEO_SUFFIXES = tuple(".mp4 .webm .mov .avi .mkv .m4v .mpg .mpeg .wmv .ogv".split())
ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")
"""Formats whose further pictures follow in time, and are not pages or previews."""


class Picture(NamedTuple):
    """One picture of a file."""

    frame: int
    """Its place in the file, from 0."""
    time_s: float | None
    """Seconds after the first one; None in a still image, or if it is not known."""
    pixels: np.ndarray
    """(H, W, 3) uint8 RGB."""


@dataclass(frozen=True)
class PictureFile:
    """A file that has been opened once, so that its kind is known."""

    path: Path
    kind: str
    """image, animation (Pillow reads it) or video (ffmpeg does)."""


def find_files(paths: Sequence[str]) -> list[PictureFile]:
    """Open images, videos, and those that lie in folders, just far enough to know them.

    A folder's files come in natural order (2 before 10); its subfolders, hidden files
    and files of other kinds are left out.

    Raises:
        ConfigError: no such file, not a picture, or a folder without any.
    """
    found = []
    for path in (Path(p).expanduser() for p in paths):
        if path.is_dir():
            inside = files_in(path, IMAGE_SUFFIXES + VIDEO_SUFFIXES)
            if not inside:
                raise ConfigError(
                    f"The folder {path} holds no image or video (subfolders are not "
                    "read): name one that does."
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(
                f"There is no {path}: give images, videos, or folders of them."
            )
    return [PictureFile(path, _kind(path)) for path in found]


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files of these kinds, in natural order (2 before 10); hidden ones are left out.

    Args:
        folder: is there; its subfolders are not read.
        suffixes: in lower case, with the dot.
    """
    return [
        path
        for path in sorted(
            folder.iterdir(), key=lambda path: (natural(path.name), path.name)
        )
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        and path.is_file()
    ]


def read_pictures(file: PictureFile, every: int = 1) -> Generator[Picture, None, None]:
    """Read a file's pictures in their order, one at a time.

    Args:
        file: as `find_files` gives it.
        every: of an animation or a video, each picture whose place divides by this.

    Raises:
        ConfigError: the file is damaged.
    """
    if file.kind == "video":
        return _read_video(file.path, every)
    return _read_image(file.path, file.kind == "animation", every)


def to_rgb(image: "Image.Image") -> np.ndarray:
    """An image of any mode, upright and on white: (H, W, 3) uint8.

    Raises:
        ValueError: 32 bits a pixel, which have no known black and white. (Pillow gives
            the 16 of a PGM as 32.)
    """
    from PIL import Image, ImageOps

    has_16_bits = image.mode.startswith("I;16") or image.format == "PPM"
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        if not has_16_bits:
            raise ValueError("its pixels are numbers of 32 bits, save it with 8")
        grey = np.asarray(image).astype(np.int64)
        return np.repeat((grey / 257).round().astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers, save it with 8 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _kind(path: Path) -> str:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        pictures = _read_video(path, every=1)
        next(pictures)
        pictures.close()
        return "video"
    from PIL import Image

    try:
        with Image.open(path) as image:
            moves = image.format in ANIMATIONS and getattr(image, "is_animated", False)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise ConfigError(
            f"{path} is not a picture that can be read: give an image (png, jpg, webp, "
            "gif, ...) or a video (mp4, webm, mov, avi, mkv, ...)."
        ) from error
    return "animation" if moves else "image"


def _read_image(path: Path, moves: bool, every: int) -> Generator[Picture, None, None]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if not moves:
                yield Picture(0, None, to_rgb(image))
                return
            milliseconds = 0.0
            for frame in range(getattr(image, "n_frames", 1)):
                image.seek(frame)
                image.load()
                if frame % every == 0:
                    yield Picture(frame, milliseconds / 1000, to_rgb(image))
                milliseconds += image.info.get("duration", 0)
    except Exception as error:  # a damaged file can raise nearly anything
        raise _unreadable(f"image {path}", reason(error)) from error


def _read_video(path: Path, every: int) -> Generator[Picture, None, None]:
    """Let ffmpeg write picture after picture, each with its size before it (PPM).

    Its log tells when each is shown; imageio_ffmpeg.read_frames hides the log, and
    whether ffmpeg failed.
    """
    import imageio_ffmpeg

    shown = f"select=not(mod(n\\,{every})),setpts=PTS-STARTPTS,showinfo=checksum=0"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *("-nostdin", "-nostats"),
        # An absolute path, for ffmpeg would take "a:b.mp4" for a protocol.
        *("-i", str(path.resolve()), "-map", "0:v:0", "-fps_mode", "passthrough"),
        *("-vf", shown, "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"),
    ]
    with (
        tempfile.NamedTemporaryFile() as said,
        open(said.name, encoding="utf-8", errors="replace") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as ffmpeg,
    ):
        pipe = ffmpeg.stdout
        assert pipe is not None
        frame, cut = 0, False
        try:
            while head := pipe.readline() + pipe.readline() + pipe.readline():
                width, height = map(int, head.split()[1:3])
                read = pipe.read(3 * width * height)
                if cut := len(read) < 3 * width * height:
                    break
                pixels = np.frombuffer(read, np.uint8).reshape(height, width, 3)
                yield Picture(frame, _next_time(log), pixels)
                frame += every
            ffmpeg.wait()
        finally:
            ffmpeg.kill()
        if frame == 0 or cut or ffmpeg.returncode != 0:
            last = "".join(log.readlines()[-1:]).strip(" .\n")
            why = f"frame {frame} is missing or damaged; {last}"
            raise _unreadable(f"video {path}", why)


def _next_time(log: TextIO) -> float | None:
    """Read on to the next picture's line, which ffmpeg has written before it."""
    while line := log.readline():
        if found := re.match(r"\[Parsed_showinfo.* pts_time:(\S+)", line):
            return None if found[1] == "NOPTS" else float(found[1])
    return None


def _unreadable(what: str, why: str) -> ConfigError:
    return ConfigError(
        f"The {what} cannot be read to its end ({why}): repair it, or leave it out."
    )
