"""What words are to CLIP: encoded without padding, kept between runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch

from ovseg_batch.errors import UsageError
from ovseg_batch.io.bank_file import FORMAT, read_bank, write_bank
from ovseg_batch.io.marks import check_replaceable, has_mark
from ovseg_batch.io.text_cache import text_embeddings
from ovseg_batch.methods.vocabulary import TEMPLATES
from ovseg_batch.models.text import encode_tokens
from tests.conftest import Command

TOWERS: list[dict[str, object]] = [{}, {"proj_bias": True}, {"no_causal_mask": True, "pool_type": "last"}]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((kind, text) for kind in (open_clip.CLIP, open_clip.CustomTextCLIP) for text in TOWERS),
        (open_clip.CustomTextCLIP, {"embed_cls": True}),
    ],
)
@torch.inference_mode()
def test_text_without_padding_is_open_clips_own(kind: type, text: dict[str, object]) -> None:
    """Towers that attend to their padding, or pool another token, run at full length."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
    tower = {"context_length": 20, "vocab_size": 50, "width": 64, "heads": 2, "layers": 2, **text}
    model = kind(embed_dim=32, vision_cfg=vision, text_cfg=tower).eval()
    tokens = torch.zeros(6, 20, dtype=torch.long)
    for row, length in enumerate((4, 9, 6, 9, 20, 4)):
        tokens[row, :length] = torch.tensor([48, *torch.randint(1, 47, (length - 2,)), 49])
    tokens[3, :5], tokens[5] = tokens[1, :5], tokens[0]  # a prompt that begins like another, and one twice
    torch.testing.assert_close(encode_tokens(model, tokens), model.encode_text(tokens), atol=2e-6, rtol=1e-5)


@torch.inference_mode()
def test_the_templates_of_a_word_are_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower computes every distinct prefix once. More prefixes than fit take several passes."""
    clip = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).eval()
    tokenize = open_clip.get_tokenizer("ViT-B-16-quickgelu")
    passes: list[int] = []
    clip.transformer.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape[1]))
    tokens = tokenize([template.format("wall-other") for template in TEMPLATES["openai80"]])
    found = encode_tokens(clip, tokens)
    prefixes = {tuple(row[:k]) for row in tokens.tolist() for k in range(1, row.index(max(row)) + 2)}
    assert passes == [len(prefixes)] and len(prefixes) < 0.7 * (tokens != 0).sum()
    torch.testing.assert_close(found, clip.encode_text(tokens), atol=2e-6, rtol=1e-5)
    passes.clear()
    monkeypatch.setattr("ovseg_batch.models.text.PREFIXES", 20)
    several = encode_tokens(clip, tokens[:12])
    assert len(passes) > 3 and max(passes) <= 20
    torch.testing.assert_close(several, found[:12], atol=2e-6, rtol=1e-5)


def test_text_embeddings_are_shared_between_runs(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    own = {"OVSEG_CACHE": str(tmp_path / "cache")}
    alone = ("--set", "background=none")
    first = command("run", few_scenes / "images", "-o", tmp_path / "one", "--labels", "sky, car", *alone, **own)
    assert "text embeddings: 0 of 2 labels from the cache" in first.stderr
    labels = "car, sky, cat"
    second = command("run", few_scenes / "images", "-o", tmp_path / "two", "--labels", labels, *alone, **own)
    assert "text embeddings: 2 of 3 labels from the cache" in second.stderr
    [file] = (tmp_path / "cache").rglob("*.parquet")
    assert set(pq.read_table(file).column_names) == {"label", "prompt", "template", "embedding"}


def test_a_damaged_text_cache_is_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One flipped bit anywhere in the file changes no embedding."""
    rng = np.random.default_rng(0)
    vectors = {label: rng.standard_normal((2, 16)).astype(np.float32) for label in ("sky", "tree", "car")}
    templates = ("a {}.", "the {}.")

    def encode(prompts: list[str]) -> np.ndarray:
        return vectors[prompts[0].split()[1].rstrip(".")]

    def cached() -> dict[str, np.ndarray]:
        return text_embeddings(list(vectors), templates, encode, "model", tmp_path)

    cached()
    [file] = tmp_path.rglob("*.parquet")
    whole, encoded = file.read_bytes(), 0
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        caplog.clear()
        found = cached()
        assert all(np.array_equal(found[label], vectors[label]) for label in vectors), place
        encoded += "is damaged and is computed again" in caplog.text
    assert encoded > 50


def is_bank(file: Path) -> bool:
    return has_mark(file, FORMAT)


def test_a_damaged_bank_is_refused(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    file = tmp_path / "bank.parquet"
    write_bank(file, 8, [([f"image-{k}" for k in range(20)], features)], {"clip": "demo"})
    whole, refused, bank = file.read_bytes(), 0, read_bank(file)
    check_replaceable(file, is_bank)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="did not write it"):
        check_replaceable(tmp_path / "mine.txt", is_bank)
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        try:
            found = read_bank(file)
        except UsageError:
            refused += 1
        else:
            assert np.array_equal(found.features, bank.features) and np.array_equal(found.images, bank.images), place
            assert found.made_of == bank.made_of, place
    assert refused > 50
