"""SAM of the first version: a tiny model of transformers, behind the interface of SAM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SamConfig, SamModel

from ovseg_batch import scenes
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.methods.resized_masks import above
from ovseg_batch.models import zoo
from ovseg_batch.models.missing import MissingModels
from ovseg_batch.models.sam import Sam
from ovseg_batch.models.sam1 import DECODER_EPS, Sam1, renamed
from ovseg_batch.stages.plans import embedding_shapes
from tests.support.tiny_sam1 import save_tiny_sam1

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam1(tmp_path_factory.mktemp("sam1"))


@pytest.fixture(scope="module")
def sam(folder: Path) -> Sam1:
    loaded = Sam.load(zoo.resolve("sam", f"local-dir:{folder}"), CPU, "fp32", points=2)
    assert isinstance(loaded, Sam1)
    return loaded


def theirs(folder: Path) -> Any:
    config: Any = SamConfig.from_pretrained(folder, attn_implementation="eager")
    config.mask_decoder_config.layer_norm_eps = DECODER_EPS
    return SamModel.from_pretrained(folder, config=config).eval()


def test_masks_equal_those_of_transformers(folder: Path, sam: Sam1) -> None:
    image = scenes.render(7).image[:200, :150]
    points = np.array([[30.0, 40.0], [100.0, 120.0], [75.0, 10.0]], np.float32)
    boxes = np.array([[10, 20, 90, 110], [0, 0, 149, 199], [5, 5, 20, 20]], np.float32)
    [embedding] = sam.embed([image])
    scale = 128 / 200
    with torch.inference_mode():
        found = theirs(folder)(
            pixel_values=sam.preprocess(image)[None],
            input_points=torch.from_numpy(points * scale)[None, :, None],
            input_labels=torch.ones(1, 3, 1, dtype=torch.long),
            input_boxes=torch.from_numpy(boxes * scale)[None],
            multimask_output=False,
        )
    logits, rated = sam.decode(embedding, points, boxes, multimask=False)
    assert torch.allclose(logits, found.pred_masks[0], atol=1e-4) and torch.allclose(
        rated, found.iou_scores[0], atol=1e-5
    )
    square, _ = sam.predict(embedding, points, boxes, multimask=False)
    assert square.shape == (3, 1, 32, 32)
    whole = (sam.resized(logits, (200, 150), (200, 150))[:, 0] > 0).numpy()
    again = np.stack([above(one, (200, 150)).placed().whole((200, 150)) for one in square[:, 0]])
    assert (whole != again).mean() < 0.05


def test_masks_of_boxes_alone_equal_those_of_transformers(folder: Path, sam: Sam1) -> None:
    image = scenes.render(7).image[:200, :150]
    boxes = np.array([[10, 20, 90, 110], [0, 0, 149, 199], [5, 5, 20, 20]], np.float32)
    [embedding] = sam.embed([image])
    with torch.inference_mode():
        found = theirs(folder)(
            pixel_values=sam.preprocess(image)[None],
            input_boxes=torch.from_numpy(boxes * 128 / 200)[None],
            multimask_output=False,
        )
    logits, rated = sam.decode(embedding, None, boxes, multimask=False)
    assert torch.allclose(logits, found.pred_masks[0], atol=1e-4)
    assert torch.allclose(rated, found.iou_scores[0], atol=1e-5)


def test_the_last_attention_is_that_of_transformers_without_the_padding(folder: Path, sam: Sam1) -> None:
    image = scenes.render(7).image[:120, :200]
    found = sam.last_attention(image)
    rows, columns = found.grid
    assert found.grid == (4, 8)  # 77 of 128 pixels, in patches of 16
    seen: list[torch.Tensor] = []
    model = theirs(folder)
    model.vision_encoder.layers[-1].attn.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    with torch.inference_mode():
        model.vision_encoder(sam.preprocess(image)[None])
    expected = seen[0].view(2, 8, 8, 8, 8)[:, :rows, :columns, :rows, :columns].reshape(2, 32, 32)
    assert torch.allclose(torch.stack(list(found.heads)), expected, atol=1e-6)
    assert found.values.shape == (2, 32, 16)


def test_names_of_meta_are_those_of_transformers() -> None:
    pairs = {
        "image_encoder.blocks.3.norm1.weight": "vision_encoder.layers.3.layer_norm1.weight",
        "image_encoder.neck.3.bias": "vision_encoder.neck.layer_norm2.bias",
        "prompt_encoder.mask_downscaling.4.weight": "prompt_encoder.mask_embed.layer_norm2.weight",
        "mask_decoder.transformer.layers.1.norm4.bias": "mask_decoder.transformer.layers.1.layer_norm4.bias",
        "mask_decoder.x_mlps.2.layers.2.bias": "mask_decoder.x_mlps.2.proj_out.bias",
        "mask_decoder.iou_prediction_head.layers.1.bias": "mask_decoder.iou_prediction_head.layers.0.bias",
    }
    assert list(renamed(dict.fromkeys(pairs, torch.zeros(1)))) == list(pairs.values())


def test_a_stored_embedding_gives_the_same_masks(folder: Path, sam: Sam1) -> None:
    image = scenes.render(7).image
    [embedding] = sam.embed([image])
    arrays = sam.arrays_of(embedding)
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == embedding_shapes(zoo.resolve("sam", f"local-dir:{folder}"))
    again = sam.embedding_of(arrays, image.shape[:2])
    assert torch.allclose(embedding.coarse, again.coarse, atol=0.01)


def test_the_named_model_has_random_weights_or_says_what_is_missing(tmp_path: Path) -> None:
    spec = zoo.resolve("sam", "sam1-base", "random:3")
    assert spec.is_sam1 and spec.window == 1024 and not zoo.resolve("sam", "demo").is_sam1
    with pytest.raises(MissingModels, match=r"sam_vit_b_01ec64\.pth"):
        zoo.resolve("sam", "sam1-base")
    with pytest.raises(UsageError, match=r"no readable config\.json of a SAM"):
        zoo.resolve("sam", f"local-dir:{tmp_path}")


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    torch.save({"image_encoder.pos_embed": torch.zeros(1)}, tmp_path / "own.pth")
    with pytest.raises(OvsegError, match="do not fit the SAM"):
        Sam.load(zoo.resolve("sam", f"local-dir:{folder}", str(tmp_path / "own.pth")), CPU, "fp32")
