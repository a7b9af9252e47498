"""Sentences to tokens: each model's own tokenizer, and what it would not read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmrm_exp.checks import check_extra
from vlmrm_exp.config import ClipConfig, ConfigError
from vlmrm_exp.files import reason, shorten
from vlmrm_exp.vlm.hub import hub_file
from vlmrm_exp.vlm.imported import open_clip
from vlmrm_exp.vlm.source import Source, described, quiet


def check_prompts(clip: ClipConfig, prompts: Sequence[str]) -> None:
    """Refuse a prompt that the model would not read to its end; reads no weights.

    Raises:
        ConfigError: as `find`, or a prompt is cut; it shows what would be lost.
    """
    tokenizer: Any = load_tokenizer(clip)
    for prompt in prompts:
        if isinstance(tokenizer, open_clip.SimpleTokenizer):
            inner, special = tokenizer, 2  # start and end
            tokens = tokenizer.encode(prompt)
        else:  # a Hugging Face one, wrapped by open_clip
            inner = tokenizer.tokenizer
            clips = tokenizer.tokenizer_mode == "clips"
            special = 3 if clips else inner.num_special_tokens_to_add()
            text = tokenizer.clean_fn(prompt)
            tokens = inner(text, add_special_tokens=False)["input_ids"]
        room = int(tokenizer.context_length or 0) - special
        check_length(clip, prompt, tokens, room, inner)


def check_length(
    clip: ClipConfig, prompt: str, tokens: Sequence[int], room: int, tokenizer: Any
) -> None:
    """Refuse a prompt of more tokens than there is room for; show what would be lost.

    Raises:
        ConfigError: it would be cut.
    """
    if len(tokens) > room:
        lost = tokenizer.decode(tokens[room:]).strip()
        raise ConfigError(
            f'The prompt "{shorten(prompt, 200)}" has {len(tokens)} tokens, but '
            f"clip={clip.name} reads {room} and would not see its end, "
            f'"{shorten(lost, 200)}": shorten it.'
        )


def load_tokenizer(clip: ClipConfig) -> Any:
    """open_clip's tokenizer of the model: a SimpleTokenizer or an HFTokenizer."""
    source = described(clip)
    text = source.config["text_cfg"]
    wanted = text.get("hf_tokenizer_name")
    if not wanted:
        return _simple_tokenizer(source, text["vocab_size"])
    what = f"The tokenizer of clip={clip.name} ({wanted})"
    check_extra(what, "transformers", "hf", "another clip")
    own = clip.model.startswith("local-dir:")
    place = str(source.folder)
    if not own:
        file = hub_file(wanted, ("tokenizer_config.json",), what, "choose another clip")
        # What was loaded before is read from its folder. By the repository's name it
        # may be a newer version, and without a network none where config.json is not.
        is_whole = file.with_name("tokenizer.json").exists()
        place = str(file.parent) if is_whole else wanted
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    try:
        with quiet():
            # As open_clip.get_tokenizer does, which would also ask the hub for the
            # newest description of the model.
            return open_clip.tokenizer.HFTokenizer(
                place,
                context_length=length,
                tokenizer_mode=text.get("tokenizer_mode"),
                **text.get("tokenizer_kwargs", {}),
            )
    except Exception as error:  # of several packages, each with its own kinds
        mend = (
            f"put its files into {source.folder}" if own else "delete it from the cache"
        )
        raise ConfigError(
            f"{what} cannot be loaded ({reason(error, named=True)}): {mend}, or choose "
            "another clip."
        ) from error


def _simple_tokenizer(source: Source, vocab_size: int) -> Any:
    """CLIP's own tokenizer, with the merges in the model's folder where it has any."""
    merges = (source.folder or Path()) / "bpe.txt.gz"
    own: Any = {"bpe_path": str(merges)} if source.folder and merges.is_file() else {}
    put = f"put the merges of its training there as {merges.name}"
    try:
        with quiet():
            tokenizer: Any = open_clip.get_tokenizer(source.model, **own)
    except Exception as error:  # a damaged file can raise nearly anything
        if not own:
            raise
        raise ConfigError(
            f"{merges} cannot be read ({reason(error, named=True)}): {put}."
        ) from error
    made = tokenizer.vocab_size
    if made > vocab_size or (own and made < vocab_size):
        raise ConfigError(
            f"{merges if own else 'The tokenizer of CLIP'} makes {made} tokens, but "
            f"the model in {source.folder} knows {vocab_size}: {put}."
        )
    return tokenizer
