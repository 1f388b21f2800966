"""Load a model, run it once, and describe it: a check before a long run."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from ovseg_batch.errors import OvsegError
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.models import zoo
from ovseg_batch.models.device import resolve_device
from ovseg_batch.models.encoders import load_encoder
from ovseg_batch.models.precision import precision
from ovseg_batch.models.sam import Sam


def check_model(spec: zoo.ModelSpec, device: str = "auto") -> dict[str, Any]:
    """Load the model and run it on one grey image.

    Returns:
        Name → value of each fact, in display order.

    Raises:
        OvsegError: the model does not load, or its output is not finite.
    """
    target = resolve_device(device)
    kind = precision("auto", device, not spec.embedded)
    size = "seed" if spec.weights.startswith(zoo.RANDOM) else "blake2b"
    facts: dict[str, Any] = {"architecture": spec.architecture, "weights": spec.weights, size: spec.weights_hash()}
    loaded = load_encoder(spec, target, kind) if spec.kind == "clip" else Sam.load(spec, target, kind)
    facts["parameters"] = f"{sum(p.numel() for p in loaded.model.parameters()):,}"
    image = np.full((spec.window, spec.window, 3), 127, np.uint8)
    started = time.monotonic()
    if not isinstance(loaded, Sam):
        facts["activation"] = loaded.activation
        batch = loaded.normalise(torch.from_numpy(image)[None].to(target))
        output = loaded.patch_features(batch, VARIANTS["vanilla" if spec.is_tipsv2 else "csa"])
        facts["patches"] = f"{output.shape[1]} × {output.shape[2]} of {spec.window} pixels, {output.shape[3]} features"
    else:
        [embedding] = loaded.embed([image])
        output, _ = loaded.predict(embedding, np.array([[spec.window / 2, spec.window / 2]]))
        facts["masks"] = f"{output.shape[1]} of {output.shape[2]} × {output.shape[3]} a point"
    if not bool(torch.isfinite(output).all()):
        raise OvsegError(f"The model {spec.name!r} returns values that are not finite; its weights are damaged.")
    facts["runs on"] = f"{target} in {kind}, {time.monotonic() - started:.2f} s an image"
    facts["licence"] = spec.licence
    return facts
