"""Pipelines of diffusers that inpaint, tiny and with random values, saved in the layout of the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
)

library: Any = diffusers
models: Any = transformers

SIDE = 64  # pixels of the autoencoders' configurations
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>"]
BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 16}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "head_dim": 16,
}


def autoencoder(**values: Any) -> Any:
    """Return an autoencoder that halves the sides of an image."""
    given = {"latent_channels": 4, "sample_size": SIDE, "shift_factor": 0.1, **BLOCKS, **values}
    levels = len(given["block_out_channels"])
    names = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return library.AutoencoderKL(**names, **given)


def bytes_tokenizer() -> Any:
    """Return a tokenizer of Qwen2 whose tokens are single bytes."""
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: number for number, letter in enumerate([*sorted(letters), *SPECIAL])}
    spoken = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], pad_token="<|endoftext|>", additional_special_tokens=SPECIAL, model_max_length=2048
    )
    spoken.chat_template = CHAT
    return spoken


def clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5() -> tuple[Any, Any]:
    """Return a text encoder and a tokenizer with two words."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0), ("cat", -2.0)]
    pieces = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=2))
    spoken = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return T5EncoderModel(T5Config(vocab_size=5, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)), spoken


def sd3(words: CLIPTokenizer) -> Any:
    transformer = library.SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=16,
    )
    encoder, pieces = t5()
    config = clip_config(words)
    return library.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=library.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(latent_channels=16),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=words,
        text_encoder_3=T5EncoderModel(T5Config(**{**encoder.config.to_dict(), "d_model": 64})),
        tokenizer_3=pieces,
    )


def flux_kontext(words: CLIPTokenizer) -> Any:
    transformer = library.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    encoder, pieces = t5()
    return library.FluxKontextPipeline(
        scheduler=library.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(block_out_channels=(8,) * 5, norm_num_groups=4, mid_block_add_attention=False),
        text_encoder=models.CLIPTextModel(clip_config(words)),
        tokenizer=words,
        text_encoder_2=encoder,
        tokenizer_2=pieces,
        transformer=transformer,
    )


def chroma(words: CLIPTokenizer) -> Any:
    transformer = library.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    encoder, pieces = t5()
    return library.ChromaPipeline(
        scheduler=library.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(),
        text_encoder=encoder,
        tokenizer=pieces,
        transformer=transformer,
    )


def _qwen3() -> Any:
    return models.Qwen3ForCausalLM(models.Qwen3Config(vocab_size=300, **{**TEXT, "num_hidden_layers": 28}))


def flux2_klein(words: CLIPTokenizer, distilled: bool = False) -> Any:
    vae = library.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=SIDE,
        **BLOCKS,
    )
    transformer = library.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return library.Flux2KleinPipeline(
        scheduler=library.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=_qwen3(),
        tokenizer=bytes_tokenizer(),
        transformer=transformer,
        is_distilled=distilled,
    )


def z_image(words: CLIPTokenizer) -> Any:
    transformer = library.ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[2048, 64, 64],
    )
    return library.ZImagePipeline(
        scheduler=library.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(latent_channels=16),
        text_encoder=models.Qwen3Model(models.Qwen3Config(vocab_size=300, **TEXT)),
        tokenizer=bytes_tokenizer(),
        transformer=transformer,
    )


def _qwen_parts(levels: int) -> dict[str, Any]:
    tokenizer = bytes_tokenizer()
    named = {name.strip("<|>"): tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    text = {**TEXT, "vocab_size": 300, "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 4]}}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = models.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "fullatt_block_indexes": [0]},
        image_token_id=named["image_pad"],
        video_token_id=named["video_pad"],
        vision_start_token_id=named["vision_start"],
        vision_end_token_id=named["vision_end"],
    )
    return {
        "scheduler": library.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": library.AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1] * (levels + 1),
            num_res_blocks=1,
            temperal_downsample=[False] * levels,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        "text_encoder": models.Qwen2_5_VLForConditionalGeneration(config),
        "tokenizer": tokenizer,
        "transformer": library.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(8, 4, 4),
        ),
    }


def qwen_image(words: CLIPTokenizer) -> Any:
    return library.QwenImagePipeline(**_qwen_parts(1))


def qwen_image_edit(words: CLIPTokenizer, kind: str = "QwenImageEditPipeline") -> Any:
    parts = _qwen_parts(4)
    eyes = models.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112)
    processor = models.Qwen2VLProcessor(eyes, parts["tokenizer"], chat_template=CHAT, video_processor=_video())
    return getattr(library, kind)(**parts, processor=processor)


def _video() -> Any:
    return models.Qwen2VLVideoProcessor(min_pixels=56 * 56, max_pixels=112 * 112)


def kandinsky22(words: CLIPTokenizer) -> Any:
    unet = library.UNet2DConditionModel(
        sample_size=8,
        in_channels=9,
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=32,
        attention_head_dim=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=16,
    )
    movq = library.VQModel(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        num_vq_embeddings=12,
        norm_type="spatial",
        vq_embed_dim=4,
        latent_channels=4,
        norm_num_groups=16,
    )
    prior = library.PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, embedding_dim=32, num_embeddings=24
    )
    vision = models.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=32,
        image_size=32,
        patch_size=16,
    )
    return library.KandinskyV22InpaintCombinedPipeline(
        unet=unet,
        scheduler=library.DDIMScheduler(prediction_type="epsilon"),
        movq=movq,
        prior_prior=prior,
        prior_image_encoder=models.CLIPVisionModelWithProjection(vision),
        prior_text_encoder=CLIPTextModelWithProjection(clip_config(words)),
        prior_tokenizer=words,
        prior_scheduler=library.UnCLIPScheduler(prediction_type="sample", num_train_timesteps=1000),
        prior_image_processor=models.CLIPImageProcessor(size=32, crop_size=32),
    )


#: name → the pipeline, and the side in pixels of the square that the test paints
TINY: dict[str, tuple[Callable[[CLIPTokenizer], Any], int]] = {
    "sd3": (sd3, 64),
    "flux-kontext": (flux_kontext, 1024),
    "chroma": (chroma, 64),
    "flux2-klein": (flux2_klein, 64),
    "z-image": (z_image, 64),
    "qwen-image": (qwen_image, 64),
    "qwen-image-edit": (qwen_image_edit, 1024),
    "kandinsky22": (kandinsky22, 64),
}


def write(name: str, folder: Path, words: CLIPTokenizer) -> None:
    """Save a pipeline of `TINY` with random values."""
    torch.manual_seed(0)
    TINY[name][0](words).save_pretrained(folder)
    if name == "chroma":  # a value that the files of the hub have, and that diffusers reads
        file = folder / "transformer" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "guidance_embeds": False}))
