"""A tiny TIPSv2 with random weights, in a folder that transformers wrote, with a tokenizer of SentencePiece."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece
import torch
from transformers import Tipsv2Config, Tipsv2Model

from ovseg_batch import scenes

PIECES = 420  # of the tokenizer; 256 of them are bytes


def write_tokenizer(file: Path) -> Path:
    """Write a SentencePiece model of byte pairs with the numbers of TIPSv2's: padding is 0."""
    texts = [f"a photo of the {name}, in a bright scene with a large {name}." for name in scenes.CLASSES]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3),
        model_writer=written,
        model_type="bpe",
        vocab_size=PIECES,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        eos_id=2,
        bos_id=3,
        minloglevel=2,
    )
    file.write_bytes(written.getvalue())
    return file


def save_tiny_tipsv2(folder: Path, side: int = 56, swiglu: bool = False) -> Path:
    """Write a TIPSv2 of two blocks and two heads for images of `side` pixels, with patches of 14."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Tipsv2Config(
        text_config={"vocab_size": PIECES, "intermediate_size": 64, **blocks},
        vision_config={"image_size": side, "use_swiglu_ffn": swiglu, **blocks},
    )
    torch.manual_seed(8)
    model = Tipsv2Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        model.vision_model.embeddings.register_tokens.normal_()
    model.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.model")
    return folder
