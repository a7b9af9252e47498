"""Pretrained weights over HTTP: a hub on loopback, a child process that loads from it.

Each load is in a process of its own, because the hub's client reads its environment
when it is imported: forked from one that has imported the rest. What is loaded is
open_clip's true tag ViT-B-32/laion2b_s34b_b79k under that tag's repository and file
names; only the architecture is shrunk, through open_clip's own `add_model_config`, so
that the weights are 20 MB instead of 600.
"""

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save

from vlmrm_exp.vlm.imported import open_clip

pytestmark = pytest.mark.slow

CONF = Path(__file__).resolve().parents[1] / "conf" / "clip"
REPO = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
WEIGHTS = "open_clip_model.safetensors"
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 96,
        "heads": 2,
        "layers": 1,
    },
}
CHILD = """
import json, os, sys, time
import torch
from omegaconf import OmegaConf
from vlmrm_exp.config import ClipConfig, ConfigError
from vlmrm_exp.vlm.imported import open_clip

for line in sys.stdin:
    architecture, clip, environment = json.loads(line)
    if os.fork():
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        continue
    os.environ.clear()
    os.environ.update(environment)
    for name in list(sys.modules):  # the client, and what has taken names from it
        if name.startswith(("huggingface_hub", "transformers", "vlmrm_exp.vlm")):
            del sys.modules[name]
    from vlmrm_exp.vlm.encoder import load_encoder

    open_clip.add_model_config(architecture)
    clip = OmegaConf.merge(OmegaConf.structured(ClipConfig), clip)
    start = time.monotonic()
    try:
        encoder = load_encoder(OmegaConf.to_object(clip), torch.device("cpu"))
    except ConfigError as error:
        # Most of this is waiting, which a busy machine does as fast as an idle one.
        assert time.monotonic() - start < 30, "too long for a person to wait"
        print(json.dumps(str(error)))
    else:
        print(json.dumps(encoder.embed_prompts(["a dog"])[0].tolist()))
    break
"""
TAG = {"name": "vitb32", "model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}


class Hub(http.server.ThreadingHTTPServer):
    """A hub with one repository, answering as huggingface.co does for large files.

    HEAD of a file names its size and SHA-256 and redirects to another host, the store
    (here the same server by its other name), where GET takes ranges.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], repo: str = REPO):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.repo = files, repo
        self.cuts: list[int] = []
        """Bytes after which each of the next downloads is cut."""
        self.sent = files
        """What the store really sends."""
        self.commit = "1"
        self.ranges: list[str | None] = []
        """The Range header of each download."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        repo, _, name = self.path.removeprefix("/").partition("/resolve/main/")
        if repo != self.server.repo or name not in self.server.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            body = self.server.files[name]
            self.send_response(302)
            store = self.server.url.replace("127.0.0.1", "localhost")
            self.send_header("Location", f"{store}/store/{name}")
            self.send_header("X-Repo-Commit", self.server.commit * 40)
            self.send_header("X-Linked-Size", str(len(body)))
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        place, _, name = self.path.rpartition("/")
        if place != "/store":
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        whole = self.server.sent[name]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            last = len(whole) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(whole)}")
        self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(whole[start : start + cut if cut else None])
        self.close_connection = bool(cut)


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    torch.manual_seed(1)
    return open_clip.CLIP(**SMALL).eval()


@pytest.fixture(scope="module")
def embedding(model) -> torch.Tensor:
    """The text embedding the child must arrive at, computed here."""
    with torch.no_grad():
        text = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(["a dog"]))[0]
    return text / text.norm()


@pytest.fixture
def hub(model):
    weights = save({k: v.contiguous() for k, v in model.state_dict().items()})
    with Hub({WEIGHTS: weights}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def child():
    """CHILD, which has imported what takes long."""
    command = [sys.executable, "-c", CHILD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def load(child, tmp_path):
    """Load a `clip` in a process of its own: its embedding, or the error's sentence."""
    architecture = tmp_path / "ViT-B-32.json"
    architecture.write_text(json.dumps(SMALL))

    def run(url: str, clip: dict = TAG, **env: str) -> torch.Tensor | str:
        kept = {k: v for k, v in os.environ.items() if not k.upper().endswith("PROXY")}
        kept |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), **env}
        kept["HF_HUB_OFFLINE"] = env.get("HF_HUB_OFFLINE", "0")
        print(json.dumps([str(architecture), clip, kept]), file=child.stdin, flush=True)
        told = []
        while not told or told[-1] not in ("0", "1"):
            told.append(child.stdout.readline().strip())
            assert told[-1] or len(told) == 1, "ended"
        assert told[-1] == "0", told
        answer = json.loads(told[-2])
        return answer if isinstance(answer, str) else torch.tensor(answer)

    return run


def blobs(tmp_path: Path) -> list[Path]:
    return [p for p in (tmp_path / "hf/hub").glob("models--*/blobs/*") if p.is_file()]


@pytest.mark.slow
def test_download_is_used_and_reused_offline(hub, load, embedding, tmp_path):
    assert torch.allclose(load(hub.url), embedding, atol=1e-5)
    (blob,) = blobs(tmp_path)
    assert blob.read_bytes() == hub.files[WEIGHTS]
    hub.shutdown()
    hub.server_close()
    again = load(hub.url, HF_HUB_OFFLINE="1")
    assert torch.allclose(again, embedding, atol=1e-5)
    assert hub.ranges == [None]


def test_no_network_and_no_cache_is_one_sentence(load):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = load(f"http://127.0.0.1:{port}", big_clip())
    assert_sentence_of_big_clip(error)


@pytest.mark.slow
def test_network_that_never_answers_is_one_sentence(load):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        error = load(f"http://127.0.0.1:{mute.getsockname()[1]}", big_clip())
    assert_sentence_of_big_clip(error)


def big_clip() -> dict:
    clip = OmegaConf.to_container(OmegaConf.load(CONF / "bigG.yaml"))
    assert isinstance(clip, dict)
    return clip


def assert_sentence_of_big_clip(error):
    for part in (
        "clip=bigG (ViT-bigG-14 laion2b_s39b_b160k, a download of 10.2 GB)",
        "HF_HUB_OFFLINE=1",
        "give a local file by clip.pretrained=FILE",
    ):
        assert part in error
    assert "\n" not in error
    assert error.endswith(".")


@pytest.mark.slow
def test_cut_download_is_resumed(hub, load, embedding, tmp_path):
    hub.cuts = [12 * 1024 * 1024]
    assert torch.allclose(load(hub.url), embedding, atol=1e-5)
    # The client keeps what came in whole pieces of 10 MiB.
    assert hub.ranges == [None, f"bytes={10 * 1024 * 1024}-"]
    (blob,) = blobs(tmp_path)
    assert blob.read_bytes() == hub.files[WEIGHTS]


@pytest.mark.slow
def test_download_that_breaks_off_for_good_leaves_nothing(hub, load, tmp_path):
    hub.cuts = [1024] * 100
    error = load(hub.url)
    assert "broke off" in error
    assert "run the same command again" in error
    assert blobs(tmp_path) == []


@pytest.mark.slow
def test_corrupted_download_is_refused_and_deleted(hub, load, embedding, tmp_path):
    damaged = bytearray(hub.files[WEIGHTS])
    damaged[-1] ^= 1  # one bit of one weight: the file still loads
    hub.sent = {WEIGHTS: bytes(damaged)}
    assert "arrived damaged" in load(hub.url)
    assert blobs(tmp_path) == []
    hub.sent = hub.files
    assert torch.allclose(load(hub.url), embedding, atol=1e-5)


@pytest.mark.slow
def test_truncated_cache_names_the_file_to_delete(hub, load, tmp_path):
    load(hub.url)
    (blob,) = blobs(tmp_path)
    blob.write_bytes(blob.read_bytes()[:-1000])
    assert f"delete {blob}" in load(hub.url)


@pytest.mark.long
def test_a_newer_version_of_the_repository_changes_no_weights(
    hub, load, model, tmp_path
):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "dog": 2}, "<unk>"))
    written = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>", eos_token="dog"
    ).save_pretrained(tmp_path / "tokenizer")
    text = {**SMALL["text_cfg"], "hf_tokenizer_name": REPO}
    asked = {"mean": [0.5] * 3, "std": [0.5] * 3}
    description = {"model_cfg": {**SMALL, "text_cfg": text}, "preprocess_cfg": asked}
    hub.files |= {Path(one).name: Path(one).read_bytes() for one in written}
    hub.files["open_clip_config.json"] = json.dumps(description).encode()
    clip = {"name": "own", "model": f"hf-hub:{REPO}"}
    first = load(hub.url, clip)
    assert isinstance(first, torch.Tensor)
    zeros = {
        name: torch.zeros_like(value) for name, value in model.state_dict().items()
    }
    assert torch.equal(load(hub.url, clip, HF_HUB_OFFLINE="1"), first)
    hub.files[WEIGHTS], hub.commit = save(zeros), "2"
    assert torch.equal(load(hub.url, clip), first)


@pytest.mark.long
def test_repository_of_its_own_loads_without_safetensors(
    hub, load, model, embedding, tmp_path
):
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    asked = {"mean": [0.5] * 3, "std": [0.5] * 3}
    hub.files.clear()
    hub.files["open_clip_pytorch_model.bin"] = (tmp_path / "weights.bin").read_bytes()
    hub.files["open_clip_config.json"] = json.dumps(
        {"model_cfg": SMALL, "preprocess_cfg": asked}
    ).encode()
    clip = {"name": "own", "model": f"hf-hub:{REPO}"}
    assert torch.allclose(load(hub.url, clip), embedding, atol=1e-5)
    (link,) = (tmp_path / "hf/hub").glob("models--*/snapshots/*/open_clip_config.json")
    blob = link.resolve()
    blob.write_bytes(blob.read_bytes()[:-9])
    assert f"delete {blob}, so that it is downloaded again" in load(hub.url, clip)
