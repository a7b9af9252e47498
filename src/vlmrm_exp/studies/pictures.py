"""Pictures out of files: images, animations and videos, one at a time, as RGB.

Images are put upright (EXIF), transparency is laid on white, 16 bits of grey become 8;
a video's transparency is not read.
"""

import contextlib
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np

from vlmrm_exp.config import ConfigError
from vlmrm_exp.files import natural, reason

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = tuple(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .gif .tif .tiff .avif .ppm .pgm .apng .tga "
    ".jp2".split()
)
"""What is taken from a folder; a file that is named may be of any kind."""
VIDEO_SUFFIXES = tuple(".mp4 .webm .mov .avi .mkv .m4v .mpg .mpeg .wmv .ogv".split())
ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")
"""Formats whose further pictures follow in time, and are not pages or previews."""
MOST_PIXELS = 1_000_000_000
SHOWN = re.compile(r"\[Parsed_showinfo.* pts_time:(\S+).* s:(\d+)x(\d+) ")
"""A frame's line in ffmpeg's log."""
FAILED = re.compile(
    r"(?:\[(?!image2pipe)[^]]* @ \w+\] )*"
    r"\[(?:error|fatal|warning(?=.*corrupt))\] (.*)"
)
"""An error in it; that times do not rise is no fault of a picture."""
NO_VIDEO = re.compile(
    r"\[.*misdetection possible|\[info\] Input #0, (\w+_pipe|mjpeg|gif|apng|webp)"
    r"|\[info\] +major_brand +: (avi|hei|mif)"
)
"""A guess, or an image that Pillow could not read: ffmpeg would drop its transparency,
or show one tile of it."""


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
    """image, animation, pages (Pillow reads them) or video (ffmpeg does)."""

    @property
    def moves(self) -> bool:
        """Whether its pictures follow in time."""
        return self.kind in ("animation", "video")


def find_files(paths: Sequence[str]) -> list[PictureFile]:
    """Open images, videos, and those that lie in folders, just far enough to know them.

    A folder's files come in natural order (2 before 10); its subfolders, hidden files
    and files of other kinds are left out.

    Of several, a damaged one is told of when it is read, by `read_pictures`.

    Raises:
        ConfigError: no such file, not a picture, or a folder without any.
    """
    found: list[Path] = []
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
    files = []
    for path in found:
        try:
            kind = _kind(path)
        except ConfigError:
            pictures = IMAGE_SUFFIXES + VIDEO_SUFFIXES
            if len(found) == 1 or path.suffix.lower() not in pictures:
                raise
            kind = "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image"
        files.append(PictureFile(path, kind))
    return files


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Visible files of a folder with these suffixes (".png"), 2 before 10."""
    found = [path for path in _visible(folder) if path.suffix.lower() in suffixes]
    return sorted(found, key=lambda path: (natural(path.name), path.name))


def left_out(paths: Sequence[str]) -> str:
    """What `find_files` does not take from folders, for people; empty: nothing."""
    folders = [path for path in (Path(p).expanduser() for p in paths) if path.is_dir()]
    suffixes = [path.suffix.lower() for one in folders for path in _visible(one)]
    others = [s for s in suffixes if s not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)]
    kinds = Counter(suffix or "no suffix" for suffix in others)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"Left out, as of other kinds: {told}." if told else ""


def _visible(folder: Path) -> list[Path]:
    """A folder's files, without hidden ones."""
    return [p for p in folder.iterdir() if p.name[0] != "." and p.is_file()]


def read_pictures(file: PictureFile, every: int = 1) -> Generator[Picture, None, None]:
    """Read a file's pictures in order, one at a time; a ConfigError if it is damaged.

    Of an animation or a video, each picture whose place divides by `every`.
    """
    if file.kind == "video":
        return _read_video(file.path, every)
    return _read_image(file, every)


def read_one(path: Path) -> np.ndarray:
    """The picture of a file, (H, W, 3) uint8; a ConfigError if it may hold several."""
    file = PictureFile(path, _kind(path))
    if file.kind != "image":
        raise ConfigError(f"{path} may hold several pictures: give one in each file.")
    return next(read_pictures(file)).pixels


def to_rgb(image: "Image.Image") -> np.ndarray:
    """An image of any mode, upright and on white: (H, W, 3) uint8.

    Raises:
        ValueError: 32 bits a pixel, which have no known black and white. (Pillow gives
            the 16 of a PGM as 32.)
    """
    from PIL import Image, ImageOps

    is_16_bits = image.mode.startswith("I;16") or image.format == "PPM"
    inverted = image.format == "TIFF" and image.getexif().get(262) == 0  # if of 16 bits
    image.load()
    try:
        with warnings.catch_warnings(action="ignore"):
            if image.getexif().get(0x0112, 1) != 1:  # its orientation; a turn copies
                image = ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged EXIF block tells the turn at most
        if not _is_damage(error):
            raise
    if image.mode.startswith("I"):
        if not is_16_bits:
            raise ValueError("its pixels are numbers of 32 bits, not 8 or 16")
        grey = np.asarray(image).astype(np.int64)
        grey[grey == image.info.get("transparency")] = 65535
        grey = 65535 - grey if inverted else grey
        return np.repeat((grey / 257).round().astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers, not 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _kind(path: Path) -> str:
    try:
        with _opened(path) as image:
            several = getattr(image, "is_animated", False)
            if several and image.format in (*ANIMATIONS, "TIFF"):
                return "pages" if image.format == "TIFF" else "animation"
            if image.format != "MPEG":  # which Pillow knows, but does not read
                return "image"
    except Exception as error:
        if not _is_damage(error):
            raise
    try:
        with contextlib.closing(_read_video(path, every=1)) as pictures:
            next(pictures)
    except ConfigError as error:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise
        raise ConfigError(
            f"{path} is not a picture that can be read: give an image (png, jpg, webp, "
            "gif, ...) or a video (mp4, webm, mov, avi, mkv, ...)."
        ) from error
    return "video"


@contextlib.contextmanager
def _opened(path: Path) -> "Iterator[Image.Image]":
    """An image that is not too large; Pillow's own limit is that of a large photo."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    with warnings.catch_warnings(action="ignore"):  # of a damaged EXIF block
        opened = Image.open(path)
    with opened as image:
        if image.width * image.height > MOST_PIXELS:
            raise ConfigError(
                f"{path} is too large: it has {image.width:,} x {image.height:,} "
                f"pixels, but at most {MOST_PIXELS:,} are read; make it smaller."
            )
        yield image


def _read_image(file: PictureFile, every: int) -> Generator[Picture, None, None]:
    try:
        with _opened(file.path) as image:
            if file.kind == "image":
                yield Picture(0, None, to_rgb(image))
                return
            milliseconds = 0.0
            # A PNG may begin with a picture for who cannot show the animation.
            first = int(getattr(image, "default_image", False))
            for frame in range(getattr(image, "n_frames", 1) - first):
                image.seek(frame + first)
                image.load()
                if frame % every == 0:
                    time_s = milliseconds / 1000 if file.moves else None
                    yield Picture(frame, time_s, to_rgb(image))
                milliseconds += image.info.get("duration", 0)
    except Exception as error:
        if not _is_damage(error):
            raise
        raise _unreadable(f"image {file.path}", reason(error)) from error


def _is_damage(error: Exception) -> bool:
    """Whether an image is to blame: a damaged one can raise nearly anything."""
    by_system = getattr(error, "filename", None) is not None
    return not by_system and not isinstance(error, (ConfigError, MemoryError))


def _read_video(path: Path, every: int) -> Generator[Picture, None, None]:
    """Let ffmpeg write picture after picture, upright and with square pixels.

    Its log tells when each is shown, how large it is and what is damaged;
    imageio_ffmpeg.read_frames hides the log, and whether ffmpeg failed.
    """
    import imageio_ffmpeg

    square = "scale='max(iw,iw*sar)':'max(ih,ih/sar)',setsar=1"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        *"-nostdin -nostats -loglevel level+info".split(),
        # No name, which could be a protocol's, and no files that this one names.
        *"-protocol_whitelist fd -i fd: -map 0:V:0 -fps_mode passthrough".split(),
        *("-noautoscale", "-vf", f"{square},format=rgb24,showinfo=checksum=0"),
        *"-f image2pipe -c:v rawvideo -".split(),
    ]
    with (
        path.open("rb") as file,
        tempfile.NamedTemporaryFile() as said,
        open(said.name, encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, stderr=said
        ) as ffmpeg,
    ):
        pipe: Any = ffmpeg.stdout
        frame, start = 0, None
        try:
            # A picture's line is in the log before the picture is in the pipe.
            while pipe.peek(1) and (found := _next_shown(path, frame, log)):
                time_s = None if found[1] == "NOPTS" else float(found[1])
                start = time_s if start is None else start
                width, height = int(found[2]), int(found[3])
                read = pipe.read(3 * width * height)
                if len(read) < 3 * width * height:
                    raise _damaged(path, frame)
                if frame % every == 0:
                    pixels = np.frombuffer(read, np.uint8).reshape(height, width, 3)
                    since = None if time_s is None or start is None else time_s - start
                    yield Picture(frame, since, pixels)
                frame += 1
            ffmpeg.wait()
            _next_shown(path, frame, log)
        finally:
            ffmpeg.kill()
        if frame == 0 or ffmpeg.returncode != 0:
            raise _damaged(path, frame)


def _next_shown(path: Path, frame: int, log: TextIO) -> re.Match[str] | None:
    """The next frame in ffmpeg's log, or None; a ConfigError of an error before it."""
    while line := log.readline():
        if found := SHOWN.match(line):
            return found
        if NO_VIDEO.match(line) or "matches no streams" in line:
            raise ConfigError(f"{path} has no video in it: leave it out.")
        if found := FAILED.match(line):
            raise _damaged(path, frame, f" or later; {found[1].strip(' .')}")
    return None


def _damaged(path: Path, frame: int, told: str = "") -> ConfigError:
    return _unreadable(f"video {path}", f"damaged at frame {frame}{told}")


def _unreadable(what: str, why: str) -> ConfigError:
    return ConfigError(
        f"The {what} cannot be read ({why}): save it anew, or leave it out."
    )
