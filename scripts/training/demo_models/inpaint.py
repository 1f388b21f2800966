"""Train the small inpainting pipeline's text model and UNet over the codes of its autoencoder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from open_clip.tokenizer import bytes_to_unicode
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo_models.autoencoder import as_tensor, certain, make_vae
from demo_models.clock import Clock
from demo_models.inpaint_examples import BEHIND, SIDE, Example, Examples, open_behind
from demo_models.pool import Pool

library: Any = diffusers  # typed in parts only

LATENT = SIDE // 4
CONTEXT = 24  # tokens
EMA = 0.999
SCHEDULE = ((0.5, 64, 32), (1.0, SIDE, 16))  # until this share of the time: pixels a side, images a step
TIMESTEPS = 1000


def write_tokenizer(folder: Path, merges: Path) -> Any:
    """The tokenizer of the embedded CLIP in the files that transformers reads."""
    learnt = gzip.decompress(merges.read_bytes()).decode().split("\n")[1:]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(line.replace(" ", "") for line in learnt)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *learnt]) + "\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=CONTEXT)


class Trainer:
    """The text model and the UNet."""

    def __init__(self, pool: Pool, out: Path, state: Path, minutes: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.out = out
        self.tokenizer = write_tokenizer(state / "tokenizer", out / "bpe.txt.gz")
        behind = open_behind(state, pool)
        self.examples = Examples(pool, behind, range(pool.train))
        self.dev = Examples(pool, behind, range(pool.train, len(pool.sizes)))
        shipped = out / "inpaint"
        if (state / "inpaint-vae.pt").exists():
            trained = torch.load(state / "inpaint-vae.pt", weights_only=True)
            self.vae = make_vae()
            self.vae.load_state_dict(trained["model"])
            self.vae.register_to_config(scaling_factor=trained["scale"])
        else:
            self.vae = library.AutoencoderKL.from_pretrained(str(shipped / "vae"), dtype=torch.float32)
        certain(self.vae)
        self.vae = self.vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                projection_dim=128,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        self.unet = library.UNet2DConditionModel(
            sample_size=LATENT,
            in_channels=9,
            out_channels=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 96, 112),
            layers_per_block=1,
            cross_attention_dim=128,
            attention_head_dim=(8, 32, 8),  # heads of the third, channels a head of the second
            norm_num_groups=2,
        ).to(memory_format=torch.channels_last)
        self.unet.set_attn_processor(AttnProcessor())  # the fused one's backward is twice as slow on a CPU
        self.scheduler = library.DDIMScheduler(
            TIMESTEPS,
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
            steps_offset=1,
        )
        self.models = nn.ModuleDict({"text": self.text, "unet": self.unet})
        self.optimiser = torch.optim.AdamW(self.models.parameters(), 1e-3, (0.9, 0.98), weight_decay=0.01)
        self.clock = Clock(state / "inpaint.pt", minutes, self._state)
        saved = self.clock.resume()
        if saved is not None:
            self.models.load_state_dict(saved["models"])
            self.optimiser.load_state_dict(saved["optimiser"])
        elif (shipped / "unet").is_dir():  # from the weights that are there; delete the folder to begin anew
            self.text.load_state_dict(load_file(shipped / "text_encoder" / "model.safetensors"))
            self.unet.load_state_dict(load_file(shipped / "unet" / "diffusion_pytorch_model.safetensors"))
        self.ema = {k: v.clone() for k, v in (saved["ema"] if saved else self.models.state_dict()).items()}
        self.rng = np.random.default_rng([seed, self.clock.step])
        self.loss = 0.0

    def _state(self) -> dict[str, Any]:
        return {"models": self.models.state_dict(), "optimiser": self.optimiser.state_dict(), "ema": self.ema}

    def train(self) -> None:
        exported = self.clock.spent
        for step in self.clock.steps(lambda: f"loss {self.loss:.4f}  {self._dev()}"):
            for group in self.optimiser.param_groups:
                group["lr"] = self.clock.rate(1e-3)
            side, count = next(size for until, *size in SCHEDULE if self.clock.fraction <= until)
            loss = self._loss([self.examples.draw(self.rng, side) for _ in range(count)])
            self.optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.models.parameters(), 1.0)
            self.optimiser.step()
            self.loss = 0.98 * self.loss + 0.02 * loss.item()
            decay = min(EMA, (1 + step) / (10 + step))
            for name, value in self.models.state_dict().items():
                self.ema[name].lerp_(value, 1 - decay) if value.is_floating_point() else self.ema[name].copy_(value)
            if self.clock.spent - exported > 300:
                self.export()
                exported = self.clock.spent
        self.export()

    def _loss(self, batch: list[Example]) -> Tensor:
        mask = torch.from_numpy(np.stack([e.mask for e in batch])).float()[:, None]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            both = as_tensor([e.image for e in batch]), as_tensor([e.seen for e in batch]) * (mask < 0.5)
            latents = self.vae.encode(torch.cat(both).contiguous(memory_format=torch.channels_last)).latent_dist.mean
        wanted, shown = (latents.float() * self.vae.config.scaling_factor).chunk(2)
        small = F.interpolate(mask, size=wanted.shape[-2:])
        noise = torch.randn_like(wanted)
        share = (torch.arange(len(batch)) + torch.rand(1)) / len(batch)
        share = 1 - (1 - share) ** 5  # half of them above 95 % of noise, where few steps spend most
        when = ((share * TIMESTEPS).long().clamp(max=TIMESTEPS - 1))[torch.randperm(len(batch))]
        noisy = self.scheduler.add_noise(wanted, noise, when)
        target = self.scheduler.get_velocity(wanted, noise, when)
        tokens = self.tokenizer([e.words for e in batch], padding="max_length", max_length=CONTEXT, truncation=True)
        with torch.autocast("cpu", torch.bfloat16):
            words = self.text(torch.tensor(tokens.input_ids))[0]
            entered = torch.cat([noisy, small, shown], 1).contiguous(memory_format=torch.channels_last)
            predicted = self.unet(entered, when, words).sample
        weight = 0.1 + F.max_pool2d(small, 3, 1, 1)
        error = (predicted.float() - target).pow(2).mean(1, keepdim=True)
        loss: Tensor = (error * weight).sum() / weight.sum()
        return loss

    def pipeline(self) -> Any:
        """The pipeline with the averaged weights."""
        current = {k: v.clone() for k, v in self.models.state_dict().items()}
        self.models.load_state_dict(self.ema)
        text, unet = CLIPTextModel(self.text.config), library.UNet2DConditionModel.from_config(self.unet.config)
        text.load_state_dict(self.text.state_dict())
        unet.load_state_dict(self.unet.state_dict())
        self.models.load_state_dict(current)
        return library.StableDiffusionInpaintPipeline(
            vae=self.vae,
            text_encoder=text,
            tokenizer=self.tokenizer,
            unet=unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    @torch.no_grad()
    def _dev(self) -> str:
        """PSNR inside the mask of things taken away, over the scenes that are never trained on, in one step."""
        rng = np.random.default_rng(5)
        drawn = [make(k, rng) for k in self.dev.chosen for make in (self.dev.behind, self.dev.bare)]
        cases = [case for case in drawn if case is not None][:32]
        pipe = self.pipeline()
        pipe.set_progress_bar_config(disable=True)
        again = pipe(
            [BEHIND] * len(cases),
            image=as_tensor([c.seen for c in cases]) / 2 + 0.5,
            mask_image=torch.from_numpy(np.stack([c.mask for c in cases])).float()[:, None],
            height=SIDE,
            width=SIDE,
            num_inference_steps=1,
            guidance_scale=1.0,
            output_type="np",
            generator=[torch.Generator().manual_seed(k) for k in range(len(cases))],
        ).images
        errors, plain = [], []
        for case, image in zip(cases, again, strict=True):
            inside = case.mask > 0
            errors.append(np.square(image[inside] * 255 - case.image[inside]).mean())
            filled = cv2.inpaint(case.seen, case.mask, 5, cv2.INPAINT_TELEA)
            plain.append(np.square(filled[inside].astype(float) - case.image[inside]).mean())
        ours, theirs = (float(np.mean(10 * np.log10(255**2 / np.array(part)))) for part in (errors, plain))
        return f"dev PSNR in the mask {ours:.2f} dB, OpenCV's {theirs:.2f}"

    def export(self) -> None:
        pipe = self.pipeline().to(torch.float16)
        pipe.save_pretrained(self.out / "inpaint")
        self.vae.float()
