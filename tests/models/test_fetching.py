"""`models fetch` against a server of our own: what it fetches, resumes, refuses and explains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import open_clip
import pytest
from safetensors.torch import save

from ovseg_batch.models import presets
from ovseg_batch.models.zoo import checkpoint_folders
from tests.support.fake_hub import COMMIT, FakeHub, etag

CLIP, SAM = presets.CLIP["openai-b16"].hub, presets.SAM["sam2.1-large"].hub
WEIGHTS = "open_clip_model.safetensors"
CHUNK = 10 << 20  # bytes that huggingface_hub writes at once
Fetched = subprocess.CompletedProcess[str]
Run = Callable[..., Fetched]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """Two repositories of presets. The files have the right names, and no weights in them."""
    files = {CLIP: {"README.md": b"#", WEIGHTS: b"clip" * 1000, "open_clip_pytorch_model.bin": b"other"}}
    files[SAM] = {"sam2.1_hiera_large.pt": b"sam" * 1000, "model.safetensors": b"other", "config.json": b"{}"}
    with FakeHub(files).serve() as served:
        yield served


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    """The fake hub instead of the real one, and an empty cache."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OVSEG_"))}
    return {**own, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Run `ovseg-batch` in a process of its own: the hub's library reads its environment when it is imported."""

    def go(*arguments: str, **variables: str) -> Fetched:
        command = [sys.executable, "-m", "ovseg_batch", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**environment, **variables})

    return go


def blobs(tmp_path: Path, repository: str) -> Path:
    return tmp_path / "home" / "hub" / f"models--{repository.replace('/', '--')}" / "blobs"


def states(listed: Fetched) -> dict[str, str]:
    return {line["name"]: line["state"] for line in json.loads(listed.stdout) if line["name"] != "demo"}


def test_one_command_fetches_all_that_a_configuration_needs(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    done = run("models", "fetch", "-c", "prompted")
    assert done.returncode == 0, done.stderr
    snapshot = tmp_path / "home" / "hub" / f"models--{CLIP.replace('/', '--')}" / "snapshots" / COMMIT
    assert f"openai-b16 is on this machine: {snapshot / WEIGHTS}" in done.stdout
    assert "sam2.1-large is on this machine:" in done.stdout
    assert f"{CLIP}: {WEIGHTS}, 4.0 kB" in done.stderr
    assert [path.name for path in snapshot.iterdir()] == [WEIGHTS]  # and no second format
    assert not list((tmp_path / "home").rglob("*.incomplete"))


def test_a_tokenizer_is_fetched_with_the_weights(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    """The tokenizer of a TIPSv2 is a separate file. No code of the repository is fetched."""
    repository = presets.CLIP["tipsv2-b14"].hub
    files = {"model.safetensors": b"weights" * 9, "config.json": b"{}", "modeling_tips.py": b"import os"}
    hub.repositories[repository] = dict(files)
    refused = run("models", "fetch", "tipsv2-b14")
    assert refused.returncode == 1 and "has none of the files that tipsv2-b14 needs" in refused.stderr
    assert states(run("models", "list", "--json"))["tipsv2-b14"] == "missing"
    hub.repositories[repository] = {**files, "tokenizer.model": b"words"}
    done = run("models", "fetch", "tipsv2-b14")
    assert done.returncode == 0 and "model.safetensors" in done.stdout, done.stderr
    [snapshot] = blobs(tmp_path, repository).parent.glob("snapshots/*")
    assert {path.name for path in snapshot.iterdir()} == {"model.safetensors", "tokenizer.model"}
    assert states(run("models", "list", "--json", HF_HUB_OFFLINE="1"))["tipsv2-b14"] == "here"


def test_what_was_fetched_is_used_offline_and_not_fetched_again(hub: FakeHub, run: Run) -> None:
    assert states(run("models", "list", "--json"))["openai-b16"] == "missing"
    assert run("models", "fetch", "openai-b16", "sam2.1-large").returncode == 0
    before = len(hub.requests)
    again = run("models", "fetch", "openai-b16", "-c", "prompted", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    listed = states(run("models", "list", "--json", HF_HUB_OFFLINE="1"))
    assert listed["openai-b16"] == listed["sam2.1-large"] == "here"
    assert listed["sam2.1-tiny"] == "missing"
    assert len(hub.requests) == before


def test_a_connection_that_breaks_is_taken_up_again(hub: FakeHub, run: Run) -> None:
    hub.repositories[CLIP][WEIGHTS] = os.urandom(CHUNK + 1000)
    hub.cut[WEIGHTS] = CHUNK + 10
    done = run("models", "fetch", "openai-b16")
    assert done.returncode == 0, done.stderr
    assert hub.ranges(WEIGHTS) == ["", f"bytes={CHUNK}-"]


def test_a_killed_download_resumes(hub: FakeHub, run: Run, environment: dict[str, str], tmp_path: Path) -> None:
    content = hub.repositories[CLIP][WEIGHTS] = os.urandom(CHUNK + 1000)
    hub.held[WEIGHTS] = CHUNK + 10
    partial = blobs(tmp_path, CLIP) / f"{etag(WEIGHTS, content)}.incomplete"
    command = [sys.executable, "-m", "ovseg_batch", "models", "fetch", "openai-b16"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not partial.exists() or partial.stat().st_size < CHUNK:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = run("models", "fetch", "openai-b16")
    assert done.returncode == 0, done.stderr
    assert hub.ranges(WEIGHTS) == ["", f"bytes={CHUNK}-"]
    assert Path(done.stdout.split()[-1]).read_bytes() == content
    assert not partial.exists()


def test_a_damaged_body_is_refused(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    hub.corrupt.add(WEIGHTS)
    refused = run("models", "fetch", "openai-b16")
    assert refused.returncode == 1
    assert f"{CLIP}/resolve/{COMMIT}/{WEIGHTS} does not have the published hash" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(blobs(tmp_path, CLIP).iterdir())
    hub.corrupt.clear()
    assert run("models", "fetch", "openai-b16").returncode == 0


def test_a_damaged_file_of_the_cache_is_replaced_once_it_is_deleted(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    file = Path(run("models", "fetch", "openai-b16").stdout.split()[-1])
    file.resolve().write_bytes(b"damaged")
    file.unlink()  # the link, as `doctor` advises; the damaged content stays
    assert run("models", "fetch", "openai-b16").returncode == 0
    assert file.read_bytes() == hub.repositories[CLIP][WEIGHTS]


def test_a_gated_repository_tells_how_to_get_access(hub: FakeHub, run: Run) -> None:
    repository = "black-forest-labs/FLUX.1-Fill-dev"
    hub.repositories[repository] = {"model_index.json": b"{}"}
    hub.gated.add(repository)
    refused = run("models", "fetch", "flux-fill")
    assert refused.returncode == 1
    assert f"{repository} is gated. Accept its licence at {hub.url}/{repository}" in refused.stderr
    assert "hf auth login" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("name", "variables", "sentence"),
    [
        ("openai-b16", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
        ("openai-b16", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("acme/gone", {}, "has no repository acme/gone, or it is private"),
    ],
)
def test_what_prevents_a_download_is_explained(run: Run, name: str, variables: dict[str, str], sentence: str) -> None:
    refused = run("models", "fetch", name, **variables)
    assert refused.returncode == 1
    assert sentence in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Nothing to fetch."),
        (("openai-b61",), "Did you mean 'openai-b16'?"),
        (("ViT-B-32",), "Write ViT-B-32:TAG. Tags: openai, "),
    ],
)
def test_names_that_mean_nothing(run: Run, arguments: tuple[str, ...], sentence: str) -> None:
    refused = run("models", "fetch", *arguments)
    assert refused.returncode == 2
    assert sentence in refused.stderr


def test_a_clip_of_the_hub_with_its_tokenizer_works_offline(hub: FakeHub, run: Run) -> None:
    """A text tower that needs a tokenizer of transformers, which lies in another repository."""
    tokenizer = next(f for f in checkpoint_folders() if (f / "demo").is_dir()) / "demo" / "inpaint" / "tokenizer"
    tower = {"width": 32, "heads": 2, "layers": 1, "vocab_size": 49408, "context_length": 24}
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {**tower, "hf_tokenizer_name": "acme/words"},
    }
    model = open_clip.model.CLIP(**{**config, "text_cfg": tower})
    files = {file.name: file.read_bytes() for file in tokenizer.iterdir()}
    hub.repositories["acme/words"] = {**files, "config.json": b'{"model_type": "clip"}'}
    hub.repositories["acme/clip"] = {
        "open_clip_config.json": json.dumps({"model_cfg": config, "preprocess_cfg": {}}).encode(),
        WEIGHTS: save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}),
    }
    missing = run("models", "check", "--clip", "hf-hub:acme/clip")
    assert missing.returncode == 1 and "`ovseg-batch models fetch hf-hub:acme/clip`" in missing.stderr
    done = run("models", "fetch", "hf-hub:acme/clip")
    assert done.returncode == 0, done.stderr
    checked = run("models", "check", "--clip", "hf-hub:acme/clip", HF_HUB_OFFLINE="1")
    assert checked.returncode == 0, checked.stderr


def test_a_pipeline_is_fetched_without_further_copies(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    folder = next(f for f in checkpoint_folders() if (f / "demo").is_dir()) / "demo" / "inpaint"
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    needed = {name for name in files if not name.endswith((".md", "SHA256SUMS"))}
    copies = ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "all.safetensors")
    hub.repositories["acme/inpaint"] = {**files, **dict.fromkeys(copies, b"copy")}
    done = run("models", "fetch", "acme/inpaint")
    assert done.returncode == 0, done.stderr
    snapshot = Path(done.stdout.split()[-1])
    assert {f.relative_to(snapshot).as_posix() for f in snapshot.rglob("*") if f.is_file()} == needed
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()  # as after an interrupted download
    setting = ("--set", "edit.mode=remove", "--set", "inpaint.model=acme/inpaint", "--set", "sam.model=demo")
    before = len(hub.requests)
    assert run("models", "fetch", "-c", "prompted", *setting, "--set", "clip.model=demo").returncode == 0
    assert len(hub.requests) > before
    assert (snapshot / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_pipeline_that_cannot_inpaint_is_refused_before_its_weights(hub: FakeHub, run: Run) -> None:
    index = {"_class_name": "Flux2Pipeline", "transformer": ["diffusers", "Flux2Transformer2DModel"]}
    weights = "transformer/diffusion_pytorch_model.safetensors"
    hub.repositories["acme/flux2"] = {"model_index.json": json.dumps(index).encode(), weights: b"much"}
    refused = run("models", "fetch", "acme/flux2")
    assert refused.returncode == 2 and "is not for inpainting: it is a Flux2Pipeline" in refused.stderr
    assert "QwenImageEditInpaintPipeline" in refused.stderr and not hub.ranges(weights)


def test_a_disk_without_space_is_noticed_before(hub: FakeHub, run: Run, tmp_path: Path) -> None:
    code = (
        "import shutil, collections; usage = collections.namedtuple('usage', 'total used free');"
        "shutil.disk_usage = lambda _: usage(100, 0, 100);"
        "from ovseg_batch.cli import main; main(['models', 'fetch', 'openai-b16'])"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert refused.returncode == 1
    assert "takes 4.0 kB" in refused.stderr and "100 B free" in refused.stderr
    assert not hub.ranges(WEIGHTS)


def test_listing_and_fetching_import_no_torch(environment: dict[str, str]) -> None:
    code = "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    code += "from ovseg_batch.cli import main; main(sys.argv[1:])"
    for arguments in (("models", "list"), ("models", "fetch", "openai-b16", "sam2.1-large")):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert not {"torch", "open_clip", "transformers", "diffusers"} & set(done.stderr.split())
