"""Inpainting pipelines of the other families, tiny and with random values, saved by diffusers and loaded by us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ovseg_batch.errors import UsageError
from ovseg_batch.models.diffusion import Inpainter, Request
from ovseg_batch.models.pipelines import resolve_pipeline
from ovseg_batch.models.zoo import checkpoint_folders
from tests.harness.image_variants import disc
from tests.support.tiny_generators import clip_config

library: Any = diffusers

BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 16}


@pytest.fixture(scope="module")
def words() -> Any:
    folder = next(f for f in checkpoint_folders() if (f / "demo").is_dir()) / "demo" / "inpaint" / "tokenizer"
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=24)


def autoencoder() -> Any:
    names = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return library.AutoencoderKL(**names, latent_channels=4, sample_size=64, shift_factor=0.1, **BLOCKS)


def write_sdxl(folder: Path, words: Any, channels: int = 9) -> None:
    unet = library.UNet2DConditionModel(
        sample_size=32,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,  # 6 × 8 of the sizes and 32 of the words
        cross_attention_dim=64,
        **BLOCKS,
    )
    config = clip_config(words)
    library.StableDiffusionXLInpaintPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=library.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    ).save_pretrained(folder)


def write_flux(folder: Path, words: Any, fill: bool = False) -> None:
    transformer = library.FluxTransformer2DModel(
        patch_size=1,
        in_channels=48 if fill else 16,  # noise, the picture without the hole, the mask: codes by 2 × 2, so 16 each
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0), ("cat", -2.0)]
    pieces = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=2))
    spoken = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    t5 = T5Config(vocab_size=5, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    kind = library.FluxFillPipeline if fill else library.FluxPipeline
    kind(
        scheduler=library.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(),
        text_encoder=CLIPTextModel(clip_config(words)),
        tokenizer=words,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=spoken,
        transformer=transformer,
    ).save_pretrained(folder)


def write_flux_fill(folder: Path, words: Any) -> None:
    write_flux(folder, words, fill=True)


@pytest.mark.parametrize(
    ("write", "guidance"),
    [(write_sdxl, 7.5), (write_flux, 3.5), (write_flux_fill, 30.0)],
    ids=["sdxl", "flux", "flux-fill"],
)
def test_other_families_load_and_paint(write: Any, guidance: float, tmp_path: Path, words: Any) -> None:
    torch.manual_seed(0)
    write(tmp_path, words)
    spec = resolve_pipeline(str(tmp_path), None)
    assert spec.usual == spec.removing == (50, guidance)
    painter = Inpainter.load(spec, torch.device("cpu"), "fp32")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    requests = [Request(image, disc(64, 64), "a cat", "a dog", seed) for seed in (1, 1, 2)]
    first, again, other = (np.asarray(picture) for picture in painter.paint(requests, 2, 3.0, 1.0))
    assert first.shape == (64, 64, 3) and np.isfinite(first).all()
    assert np.abs(first - again).max() < 1e-4  # the noise is the seed's; the place in the batch shows in the last bits
    assert np.abs(first - other).max() > 1e-2
    auto = library.FluxFillPipeline if write is write_flux_fill else library.AutoPipelineForInpainting
    direct = auto.from_pretrained(tmp_path)(
        prompt="a cat",
        image=Image.fromarray(image),
        mask_image=Image.fromarray(disc(64, 64).astype(np.uint8) * 255),
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=3.0,
        strength=1.0,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
        **({"negative_prompt": "a dog"} if write is write_sdxl else {}),
    )
    assert np.abs(first - direct.images[0]).max() < 1e-4


def test_a_text_to_image_sdxl_is_refused(tmp_path: Path, words: Any) -> None:
    write_sdxl(tmp_path, words, channels=4)
    with pytest.raises(UsageError, match="not for inpainting"):
        resolve_pipeline(str(tmp_path), None)
