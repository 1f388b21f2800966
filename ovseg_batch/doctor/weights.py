"""Check the weights that the settings need: whether they exist, can be read, and have the published hash.

Sources of published hashes:
- embedded models, and any folder with this file: `SHA256SUMS` in the format of sha256sum;
- files in the hub's cache: links to blobs that are named by their hash (SHA-256, or Git's SHA-1 for small files);
- files under the names of OpenAI's and open_clip's downloads: the hash in the download's URL.
For files of other sources, the computed hash is only reported.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ovseg_batch.doctor.records import Check, failed, ok, one_line
from ovseg_batch.errors import OvsegError
from ovseg_batch.io.hashing import GIT_SHA1, SHA256, file_digest
from ovseg_batch.models import pipelines, presets, zoo
from ovseg_batch.models.layouts import is_torchscript
from ovseg_batch.models.weights import read_state_dict
from ovseg_batch.runs.needed_models import NeededModel, needed_models
from ovseg_batch.settings import Config
from ovseg_batch.stages.registry import stage_names
from ovseg_batch.units import size

SUMS = "SHA256SUMS"
DEPTH = 3  # parent folders that are searched for SHA256SUMS: that of demo/inpaint/unet/ is in demo/
TOKENIZER = "demo/bpe.txt.gz"  # of the embedded CLIP


def check_weights(config: Config) -> list[Check]:
    """Check every model that the stages of these settings load. Labels are not needed."""
    checks = [_check_model(one) for one in needed_models(config)]
    if "embed" in stage_names(config) and config.classify.scorer == "mask-tokens" and config.classify.tuned:
        checks.append(_check_files("classify.tuned weights", config.classify.tuned, [Path(config.classify.tuned)], ""))
    return checks


def _check_model(needed: NeededModel) -> Check:
    if needed.kind == "inpaint":
        return _check_inpainting(needed.model)
    return _check_weights(needed.kind, needed.key, needed.model, needed.weights)


def _check_weights(kind: presets.Kind, key: str, model: str, weights: str | None) -> Check:
    name = f"{kind} weights"
    try:
        spec = zoo.resolve(kind, model, weights)
    except Exception as error:  # parsers of damaged config files raise many classes
        return _unresolved(name, f"{key} {model!r}{f' with {weights}' if weights else ''}", error)
    if spec.weights.startswith(zoo.RANDOM):
        return ok(name, f"{model}: {spec.weights}, random weights for speed tests; the masks are meaningless.")
    files = [Path(spec.weights)]
    if spec.embedded:
        beside = (spec.architecture, TOKENIZER) if kind == "clip" else (spec.architecture,)
        files += [zoo.embedded_file(one) for one in beside]
    return _check_files(name, model, files, _fetch(model, spec.embedded))


def _check_inpainting(model: str) -> Check:
    name = "inpaint weights"
    try:
        spec = zoo.resolve_inpainting(model)
    except Exception as error:
        return _unresolved(name, f"inpaint.model {model!r}", error)
    fetch = _fetch(model, model == "demo")
    broken = [one for one in sorted(spec.folder.rglob("*")) if one.is_symlink() and not one.exists()]
    if broken:
        return failed(name, f"{model}: {broken[0]} is a link to a missing file.", fetch)
    files = sorted({path for pattern in pipelines.USED for path in spec.folder.rglob(pattern) if path.is_file()})
    if not any(path.suffix == ".safetensors" for path in files):
        return failed(name, f"{model}: {spec.folder} has no .safetensors file.", fetch)
    return _check_files(name, model, files, fetch)


def _unresolved(name: str, what: str, error: Exception) -> Check:
    """Report a model that cannot be found. The messages of `zoo` end with the command that fetches it."""
    if isinstance(error, OvsegError):
        message = str(error)
        command = re.search(r"`(ovseg-batch models fetch [^`]+)`", message)
        return failed(name, message, f"Run `{command[1]}`." if command else "Correct the setting, or install the file.")
    advice = "Replace the file, or choose another model (see `ovseg-batch models list`)."
    return failed(name, f"{what} cannot be read: {one_line(error)}", advice)


def _fetch(model: str, embedded: bool) -> str:
    if embedded:
        return "Install ovseg_batch again, or restore checkpoints/demo."
    known = model in pipelines.PIPELINES or any(model in group for group in presets.NAMED.values())
    return f"Delete the file, then run `ovseg-batch models fetch {model}`." if known else "Get the file again."


def _check_files(name: str, model: str, files: Sequence[Path], advice: str) -> Check:
    """Read every file once. Compare its hash with the published one, and check that its tensors can be read."""
    advice = advice or "Get the file again."
    compared, alone, total = 0, "", 0
    for file in files:
        try:
            total += file.stat().st_size
            published, source = published_hash(file)
            found = file_digest(file, "sha1" if len(published) == GIT_SHA1 else "sha256")
            if not published:
                alone = alone or found
            elif not found.startswith(published):
                reason = f"{file} has the hash {found[:16]}…, and {source} has {published[:16]}…."
                return failed(name, f"{model}: wrong hash: {reason}", advice)
            else:
                compared += 1
            _require_tensors(file)
        except OSError as error:
            return failed(name, f"{model}: {file} cannot be read: {error.strerror or error}", advice)
        except Exception as error:  # OvsegError, or errors of parsers for damaged files
            text = str(error) if isinstance(error, OvsegError) else f"{file} cannot be read: {one_line(error)}"
            return failed(name, f"{model}: {text}", advice)
    where = f"{files[0]}, {size(total)}" if len(files) == 1 else f"{len(files)} files, {size(total)}"
    if compared == len(files):
        return ok(name, f"{model}: {where}, hash as published.")
    if compared:
        return ok(name, f"{model}: {where}, {compared} hashes as published; the others have no published hash.")
    return ok(name, f"{model}: {where}, SHA-256 {alone}; there is no published hash.")


def _require_tensors(file: Path) -> None:
    """Raise an error if a file is not a readable weights file. Of safetensors, only the header is read."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(file), "pt") as opened:
            if not list(opened.keys()):
                raise OvsegError(f"{file} holds no tensor.")
    elif file.suffix in zoo.WEIGHT_SUFFIXES:
        read_state_dict(str(file))


def published_hash(file: Path) -> tuple[str, str]:
    """Return the published hash of a weights file (or its first digits), and its source.

    Returns:
        (hex digits, source): 40 digits are Git's SHA-1, other lengths are SHA-256. ("", "") if there is none.
    """
    blob = file.resolve().name if file.is_symlink() else ""
    if re.fullmatch(rf"[0-9a-f]{{{SHA256}}}|[0-9a-f]{{{GIT_SHA1}}}", blob):
        return blob, "the hub"
    for folder, sums in _sums(file):
        digest = sums.get(file.absolute().relative_to(folder).as_posix())
        if digest:
            return digest, str(folder / SUMS)
    for url in _urls():
        digest = hash_in_url(url)
        if digest and url.rpartition("/")[2] == file.name and (len(digest) < SHA256 or is_torchscript(file)):
            return digest, url
    return "", ""


def _sums(file: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield (folder, relative name → hash) of every SHA256SUMS above a file, the nearest first."""
    for folder in list(file.absolute().parents)[:DEPTH]:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            yield folder, read_sums(folder / SUMS)


def read_sums(file: Path) -> dict[str, str]:
    """Return name → SHA-256 of a file that sha256sum wrote. Other lines are ignored. Raises OSError."""
    lines = (re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in file.read_text(encoding="utf-8").splitlines())
    return {found[2].removeprefix("./"): found[1] for found in lines if found}


def hash_in_url(url: str) -> str:
    """Return the SHA-256, or its first digits, in the URL of a download. Empty if there is none.

    OpenAI's URLs have it in the path (`…/<64 digits>/ViT-B-16.pt`), open_clip's at the end of the name
    (`…-455df137.pt`).
    """
    found = re.search(r"/([0-9a-f]{64})/[^/]+$", url) or re.search(r"-([0-9a-f]{8})\.pth?$", url)
    return found[1] if found else ""


def _urls() -> set[str]:
    """Return the URLs of all weights in open_clip. Imports open_clip."""
    import open_clip

    pairs = open_clip.list_pretrained()
    return {str(open_clip.pretrained.get_pretrained_cfg(*pair).get("url", "")) for pair in pairs}
