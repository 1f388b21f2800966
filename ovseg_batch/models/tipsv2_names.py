"""The names of a TIPSv2's tensors: as published, and as the modules of transformers have them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

#: pattern of a published name → replacement; all are applied in this order
RENAMED: tuple[tuple[str, str], ...] = (
    (r"^text_encoder\.", "text_model."),
    (r"^text_model\.ln_final\.", "text_model.final_layer_norm."),
    (r"^text_model\.token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^text_model\.transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^(text_model\.encoder\.layers\.\d+)\.ln_([12])\.", r"\1.layer_norm\2."),
    (r"^(text_model\.encoder\.layers\.\d+)\.attn\.", r"\1.self_attn."),
    (r"^vision_encoder\.", "vision_model."),
    (r"^vision_model\.patch_embed\.proj\.", "vision_model.embeddings.patch_embeddings.projection."),
    (r"^vision_model\.(cls_token|mask_token|register_tokens)$", r"vision_model.embeddings.\1"),
    (r"^vision_model\.pos_embed$", "vision_model.embeddings.position_embeddings"),
    (r"^vision_model\.norm\.", "vision_model.layernorm."),
    (r"^vision_model\.blocks\.", "vision_model.encoder.layer."),
    (r"^(vision_model\.encoder\.layer\.\d+)\.attn\.proj\.", r"\1.attention.o_proj."),
    (r"^(vision_model\.encoder\.layer\.\d+)\.attn\.", r"\1.attention."),
    (r"^(vision_model\.encoder\.layer\.\d+)\.ls([12])\.gamma$", r"\1.layer_scale\2.lambda1"),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.mlp\.w3\.", ".mlp.down_proj."),
)
#: end of a name of a tensor that joins others along its first dimension → the ends of their names
JOINED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"\.in_proj_(weight|bias)$", (r".q_proj.\1", r".k_proj.\1", r".v_proj.\1")),
    (r"\.qkv\.(weight|bias)$", (r".q_proj.\1", r".k_proj.\1", r".v_proj.\1")),
    (r"\.w12\.(weight|bias)$", (r".gate_proj.\1", r".up_proj.\1")),
)


def of_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a published file under the names of transformers. Other names stay as they are."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for published, own in RENAMED:
            name = re.sub(published, own, name)
        pattern, parts = next((one for one in JOINED if re.search(one[0], name)), ("", ()))
        if not parts or tensor.ndim == 0 or tensor.shape[0] % len(parts):
            found[name] = tensor
            continue
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            found[re.sub(pattern, part, name)] = piece
    return found
