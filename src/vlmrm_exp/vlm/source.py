"""Which weights a `clip` config means, where they lie, what pictures they want.

What open_clip only warns of, or takes silently, is an error here: weights trained with
another activation (QuickGELU) or another normalisation than they would be run with, and
weights that were not found.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vlmrm_exp.checks import check_colour, did_you_mean
from vlmrm_exp.config import VIDEO_MODEL, ClipConfig, ConfigError
from vlmrm_exp.vlm.hub import hub_file
from vlmrm_exp.vlm.imported import open_clip
from vlmrm_exp.vlm.model_files import (
    CONFIG_FILE,
    TORCHSCRIPT,
    is_torchscript,
    read_description,
    read_sizes,
)

EMBEDDED = Path(__file__).parent / "weights"  # the project's own models, a folder each
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FOLDER_OR_REPO = "give a local folder by clip.model=local-dir:/path/to/folder"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model's weights come from and how they want their pictures."""

    model: str  # what open_clip builds from: an architecture, or `local-dir:` + folder
    file: Path | None = None  # weights; None: `repo` has them, or they are random
    repo: str | None = None  # on the hub
    names: tuple[str, ...] = ()  # files in `repo` that would do, the best first
    mean: tuple[float, ...] = ()  # RGB, of values in 0..1
    std: tuple[float, ...] = ()  # both empty while an `hf-hub:` model is not fetched
    interpolation: str = "bicubic"
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    """open_clip's description of the architecture; {} while not fetched."""

    @property
    def folder(self) -> Path | None:
        """The folder with open_clip's description, where there is one."""
        schema, _, rest = self.model.partition(":")
        return Path(rest) if schema == "local-dir" else None


def find(clip: ClipConfig) -> Source:
    """Resolve names to a source of weights, without network and without reading them.

    Raises:
        ConfigError: unknown or missing model, tag or file; QuickGELU or normalisation
            that contradict what is known of the weights, or are not known at all.
    """
    if not clip.name:
        raise ConfigError("clip.name is empty: give the model a name.")
    if clip.model.startswith(VIDEO_MODEL):
        raise ConfigError(
            f"clip={clip.name} ({clip.model}) is a video model, which reads several "
            "frames at once: give reward=xclip in a run, or another clip."
        )
    schema, _, rest = clip.model.partition(":")
    folder = EMBEDDED / clip.name
    listed = schema not in ("embedded", "local-dir", "hf-hub")
    if clip.quick_gelu is not None and not (listed and _weights_file(clip)):
        raise ConfigError(
            f"clip.quick_gelu is {clip.quick_gelu}, but is asked for a weights file "
            "alone, of an architecture that open_clip lists: leave it out."
        )
    if schema not in ("embedded", "local-dir") and folder.is_dir():
        raise ConfigError(
            f"clip={clip.name} has the small pictures of an embedded model, which do "
            f"not suit clip.model={clip.model}: copy conf/clip/vitb32.yaml, write that "
            "model's name, model and pretrained there, and choose it."
        )
    if listed:
        return _find_architecture(clip)
    if clip.pretrained is not None:
        raise ConfigError(
            f"clip.model={clip.model} has weights of its own, but clip.pretrained is "
            f"{clip.pretrained!r}: set clip.pretrained=null."
        )
    if schema == "hf-hub":
        try:
            validate_repo_id(rest)
        except HFValidationError as error:
            raise ConfigError(
                f"clip.model={clip.model} names no repository: give "
                "hf-hub:organisation/repository, without a revision."
            ) from error
        return Source(clip.model, repo=rest, names=WEIGHTS_FILES)
    if schema == "local-dir":
        folder = Path(rest).expanduser()
    elif not folder.is_dir():
        made = sorted(p.name for p in EMBEDDED.glob("*") if p.is_dir())
        raise ConfigError(
            f"There is no embedded model {clip.name!r} (there is: "
            f"{', '.join(made) or 'none'}): choose another clip, or make it with "
            f"python -m vlmrm_exp.pretrain clip={clip.name}."
        )
    return _find_in_folder(clip, folder)


def fetch(clip: ClipConfig) -> Source:
    """What `find` says, and the weights themselves, downloaded if they are not here.

    Raises:
        ConfigError: as `find`; they cannot be had, or a repository's description does
            not say how its pictures are normalised.
    """
    source = find(clip)
    if source.repo is None:
        return source
    size = f", a download of {clip.download_gb:g} GB" if clip.download_gb else ""
    named = " ".join(filter(None, (clip.model, clip.pretrained)))
    what = f"clip={clip.name} ({named}{size})"
    if not clip.model.startswith("hf-hub:"):
        instead = "give a local file by clip.pretrained=FILE"
        file = hub_file(source.repo, source.names, what, instead)
        return dataclasses.replace(source, file=file)
    fetch_description(clip)
    hub_file(source.repo, source.names, what, FOLDER_OR_REPO)
    # Again: the repository may have changed between an old description and new weights.
    return _find_in_folder(clip, fetch_description(clip))


def fetch_description(clip: ClipConfig) -> Path:
    """The folder of the hub's cache with the description of an `hf-hub:` model."""
    repo, what = clip.model.removeprefix("hf-hub:"), f"The description of {clip.model}"
    return hub_file(repo, (CONFIG_FILE,), what, FOLDER_OR_REPO).parent


def described(clip: ClipConfig) -> Source:
    """Where the description is: of a repository downloaded, without the weights."""
    source = find(clip)
    if source.model.startswith("hf-hub:"):
        folder = fetch_description(clip)
        config = read_description(folder)["model_cfg"]
        return Source(f"local-dir:{folder}", config=config)
    return source


def _weights_file(clip: ClipConfig) -> Path | None:
    """The file that `clip.pretrained` names; None: a tag, or none."""
    known = open_clip.get_pretrained_cfg(clip.model, clip.pretrained or "")
    if clip.pretrained in (None, "random") or known:
        return None
    return Path(clip.pretrained).expanduser()


def _find_architecture(clip: ClipConfig) -> Source:
    """A model of open_clip's list, with a tag, a file or random weights."""
    config = open_clip.get_model_config(clip.model)
    if config is None:
        raise ConfigError(
            f"clip.model={clip.model} is no architecture that open_clip knows: give one"
            " of its names, hf-hub:organisation/repository, local-dir:/path/to/folder "
            f"or embedded.{did_you_mean(clip.model, open_clip.list_models())}"
        )
    known = {
        tag: open_clip.get_pretrained_cfg(clip.model, tag)
        for tag in open_clip.list_pretrained_tags_by_model(clip.model)
    }
    tags = ", ".join(known) or "none"
    if clip.pretrained is None:
        raise ConfigError(
            f"clip.model={clip.model} needs weights: set clip.pretrained to a tag that "
            f"open_clip lists for it ({tags}), to a file, or to random."
        )
    tag = open_clip.get_pretrained_cfg(clip.model, clip.pretrained)
    if tag:
        _check_quick_gelu(clip, config, {bool(tag.get("quick_gelu"))})
        repo, _, name = tag["hf_hub"].rpartition("/")
        safetensors = f"{name.rpartition('.')[0]}.safetensors"
        names = (safetensors, name) if name else WEIGHTS_FILES
        mean, std = _colours(clip, tag)
        way = tag["interpolation"]
        return Source(clip.model, None, repo, names, mean, std, way, config)
    file = _weights_file(clip)
    if file is not None:
        if not file.is_file():
            what = f"is no tag that open_clip lists for {clip.model}"
            if file.name and file.exists():
                what = "is a folder" if file.is_dir() else "is no file on a disk"
            elif file.suffix or len(file.parts) > 1:
                what = "does not exist"
            raise ConfigError(
                f"clip.pretrained={clip.pretrained} {what}: give one of {tags}, or the "
                f"path of a weights file.{did_you_mean(clip.pretrained, known)}"
            )
        if is_torchscript(file):
            raise ConfigError(f"The file {file} {TORCHSCRIPT}")
        if file.suffix == ".safetensors":  # others are read when they are loaded
            read_sizes(file)
        _check_told(clip, known)
        trained = {bool(one.get("quick_gelu")) for one in known.values()}
        if clip.quick_gelu is not None:
            trained = {clip.quick_gelu}
        _check_quick_gelu(clip, config, trained)
    ways = {c["interpolation"] for c in known.values()}
    way = ways.pop() if len(ways) == 1 else "bicubic"
    mean, std = _colours(clip, {}, list(known.values()))
    return Source(clip.model, file, None, (), mean, std, way, config)


def _find_in_folder(clip: ClipConfig, folder: Path) -> Source:
    """A folder with open_clip's description and weights."""
    description = read_description(folder)
    asked, config = description["preprocess_cfg"], description["model_cfg"]
    known = {"interpolation": ("bicubic", "bilinear"), "mode": ("RGB",)}
    for part, ways in known.items():
        if asked.get(part) not in (None, *ways):
            raise ConfigError(
                f"{folder / CONFIG_FILE} asks for {part} {asked[part]!r}, but pictures "
                f"are made with {' or '.join(ways)} alone: choose another clip."
            )
    files = [folder / name for name in WEIGHTS_FILES if (folder / name).is_file()][:1]
    for pattern in () if files else ("*.safetensors", "*.bin", "*.pth"):
        files += sorted(file for file in folder.glob(pattern) if file.is_file())
    if len(files) != 1:
        several = f"several weights ({', '.join(file.name for file in files)})"
        raise ConfigError(
            f"The folder {folder} has {several if files else 'no weights'}: name the "
            f"right ones {' or '.join(WEIGHTS_FILES)}, or give another clip.model."
        )
    mean, std = _colours(clip, asked)
    way = asked.get("interpolation") or "bicubic"
    return Source(f"local-dir:{folder}", files[0], None, (), mean, std, way, config)


def _colours(
    clip: ClipConfig, own: dict[str, Any], alike: Sequence[dict[str, Any]] = ()
) -> Iterator[tuple[float, ...]]:
    """Mean and std that these weights were trained with, by their own description.

    Else those that `clip` gives, or that all models `alike` have.
    """
    for part in ("mean", "std"):
        given, trained = getattr(clip, part), own.get(part)
        own_part = f"clip={clip.name}: preprocess_cfg.{part}"
        for name, values in ((f"clip.{part}", given), (own_part, trained)):
            if values is not None:
                check_colour(name, values)
        if given and trained and not np.allclose(given, trained, atol=1e-3):
            raise ConfigError(
                f"clip.{part}={list(given)}, but the weights of clip={clip.name} were "
                f"trained with {list(trained)}: set clip.{part}=null."
            )
        kinds = {tuple(one[part]) for one in alike}
        if known := trained or given:
            yield tuple(known)
        elif len(kinds) == 1:
            yield kinds.pop()
        elif clip.pretrained == "random":
            yield getattr(open_clip, f"OPENAI_DATASET_{part.upper()}")
        else:
            shown = " or ".join(str(list(kind)) for kind in sorted(kinds))
            raise ConfigError(
                f"The weights of clip={clip.name} do not say which {part} their "
                "pictures are normalised with (models of this kind: "
                f"{shown or 'not known'}): give it, as clip.{part}=[0.5,0.5,0.5]."
            )


def _check_told(clip: ClipConfig, known: dict[str, Any]) -> None:
    """Refuse a weights file of a kind whose weights differ in what it does not say.

    `known` are open_clip's weights of its architecture, by tag.
    """

    def said(one: dict[str, Any], part: str) -> str:
        return json.dumps(one.get(part) or False, separators=(",", ":"))

    unsaid = [
        part
        for part in ("quick_gelu", "mean", "std")
        if getattr(clip, part) is None
        and len({said(one, part) for one in known.values()}) > 1
    ]
    if unsaid:
        ways: dict[str, list[str]] = {}
        for tag, one in known.items():
            told = " ".join(f"clip.{part}={said(one, part)}" for part in unsaid)
            ways.setdefault(told, []).append(tag)
        *few, (most, _) = sorted(ways.items(), key=lambda way: len(way[1]))
        listed = "; ".join(f"{told} as {', '.join(tags)}" for told, tags in few)
        raise ConfigError(
            f"{clip.pretrained} does not say how it was trained, and weights of "
            f"{clip.model} differ in it: give {listed}; {most} as its others."
        )


def _check_quick_gelu(
    clip: ClipConfig, config: dict[str, Any], trained: set[bool]
) -> None:
    """Refuse an activation that no known weights of this kind were trained with."""
    has = bool(config.get("quick_gelu"))
    plain = clip.model.removesuffix("-quickgelu")
    other = plain if has else f"{plain}-quickgelu"
    exists = other != clip.model and other in open_clip.list_models()
    # Of roberta-ViT-B-32 the architecture alone says so, and there is but one.
    unsaid = has and not exists and clip.quick_gelu is None
    if trained <= {has} or unsaid:
        return
    needs, does = ("without", "with") if has else ("with", "without")
    raise ConfigError(
        f"Weights like {clip.pretrained} were trained {needs} QuickGELU, but "
        f"clip.model={clip.model} computes {does} it, which gives wrong embeddings: "
        f"{f'set clip.model={other}' if exists else 'choose another model'}."
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence open_clip's progress reports, which go to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
