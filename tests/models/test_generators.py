"""The classes of diffusers that inpaint: the table against the installed diffusers, and each class tiny."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines import auto_pipeline
from PIL import Image
from transformers import CLIPTokenizer

from ovseg_batch.errors import UsageError
from ovseg_batch.models.diffusion import Inpainter, Request
from ovseg_batch.models.generators import FAMILIES, OWN_LICENCE, REFUSED, inpainting_class
from ovseg_batch.models.pipelines import PIPELINES, resolve_pipeline
from ovseg_batch.models.zoo import checkpoint_folders
from ovseg_batch.stages.edit.plan import InpaintParameters
from tests.harness.image_variants import disc, settings
from tests.support.tiny_generators import TINY, write

library: Any = diffusers
DEMO = next(f for f in checkpoint_folders() if (f / "demo").is_dir()) / "demo" / "inpaint"
DOCS = Path(__file__).parents[2] / "docs" / "editing.md"

#: what the classes are called with beside image, mask, prompt and seed; the signatures were read in diffusers 0.42
CALLS: dict[str, dict[str, Any]] = {
    "sd3": {"guidance_scale": 3.0, "negative_prompt": "a dog", "strength": 1.0},
    "flux-kontext": {"guidance_scale": 3.0, "strength": 1.0},
    "chroma": {"guidance_scale": 3.0, "negative_prompt": "a dog", "strength": 1.0},
    "flux2-klein": {"guidance_scale": 3.0, "strength": 1.0},
    "z-image": {"guidance_scale": 3.0, "negative_prompt": "a dog", "strength": 1.0},
    "qwen-image": {"true_cfg_scale": 3.0, "negative_prompt": "a dog", "strength": 1.0},
    "qwen-image-edit": {"true_cfg_scale": 3.0, "negative_prompt": "a dog", "strength": 1.0},
    "kandinsky22": {"guidance_scale": 3.0, "negative_prompt": "a dog"},
}
MEGAPIXEL = pytest.mark.slow("a class that computes a megapixel paints what a direct call paints")


@pytest.fixture(scope="module")
def words() -> CLIPTokenizer:
    spoken: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(DEMO / "tokenizer"), model_max_length=24)
    return spoken


def named(kind: str, folder: Path, **index: Any) -> str:
    """Write a folder with an index alone."""
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))
    return str(folder)


@pytest.mark.parametrize("name", [pytest.param(n, marks=MEGAPIXEL if n == "qwen-image-edit" else ()) for n in TINY])
def test_each_class_paints_what_a_direct_call_paints(name: str, tmp_path: Path, words: CLIPTokenizer) -> None:
    """The direct call gets Pillow images, and the arguments of the class by their names."""
    write(name, tmp_path, words)
    spec, side = resolve_pipeline(str(tmp_path), None), TINY[name][1]
    image, mask = np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8), disc(side, side)
    painter = Inpainter.load(spec, torch.device("cpu"), "fp32")
    request = Request(image, mask, "a cat", "a dog", 5)
    [painted] = painter.paint([request], 2, 3.0, 1.0)
    assert painted is not None and painted.shape == (side, side, 3) and np.isfinite(painted).all()
    direct = getattr(library, spec.loader).from_pretrained(tmp_path)
    result = direct(
        prompt="a cat",
        image=Image.fromarray(image),
        mask_image=Image.fromarray(mask.astype(np.uint8) * 255),
        height=side,
        width=side,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
        **CALLS[name],
    ).images[0]
    assert np.abs(painted - result).max() < 1e-4
    if side <= 64:  # outside the mask, all that moves is what the decoder spreads
        [longer] = painter.paint([request], 3, 3.0, 1.0)
        assert longer is not None
        moved = np.abs(painted - longer).mean(axis=2)
        assert moved[mask].mean() > 2 * moved[~mask].mean()
        alone = [one for seed in (5, 6) for one in painter.paint([_seeded(request, seed)], 2, 3.0, 1.0)]
        for one, other in zip(painter.paint([request, _seeded(request, 6)], 2, 3.0, 1.0), alone, strict=True):
            assert one is not None and other is not None and np.abs(one - other).max() < 1e-3


def _seeded(request: Request, seed: int) -> Request:
    return Request(request.image, request.mask, request.prompt, request.negative_prompt, seed)


def test_a_guided_pipeline_reads_the_negative_prompt_and_a_distilled_one_does_not(
    tmp_path: Path, words: CLIPTokenizer
) -> None:
    image, mask = np.full((64, 64, 3), 99, np.uint8), disc(64, 64)
    for name, reads in (("qwen-image", True), ("z-image", True), ("flux2-klein", False)):
        write(name, tmp_path / name, words)
        painter = Inpainter.load(resolve_pipeline(str(tmp_path / name), None), torch.device("cpu"), "fp32")
        none, named_dog = (
            np.asarray(painter.paint([Request(image, mask, "a cat", no, 1)], 2, 3.0, 1.0)[0]) for no in ("", "a dog")
        )
        assert np.array_equal(none, named_dog) != reads


@pytest.mark.parametrize("kind", ["StableDiffusionPAGInpaintPipeline", "StableDiffusionPipeline"])
def test_a_folder_of_another_class_is_loaded_by_the_class_that_inpaints(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(DEMO, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    spec = resolve_pipeline(str(folder), None)
    assert spec.kind == kind and spec.loader == (kind if "PAG" in kind else "StableDiffusionInpaintPipeline")
    image, mask = np.full((96, 96, 3), 99, np.uint8), disc(96, 96)
    request = Request(image, mask, "a cat", "a dog", 1)
    [painted] = Inpainter.load(spec, torch.device("cpu"), "fp32").paint([request], 2, 2.0, 1.0)
    direct = getattr(library, spec.loader).from_pretrained(folder, dtype=torch.float32)(
        prompt="a cat",
        negative_prompt="a dog",
        image=Image.fromarray(image),
        mask_image=Image.fromarray(mask.astype(np.uint8) * 255),
        height=96,
        width=96,
        num_inference_steps=2,
        guidance_scale=2.0,
        strength=1.0,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    )
    assert painted is not None and np.abs(painted - direct.images[0]).max() < 1e-4


def test_the_defaults_are_those_of_the_class(tmp_path: Path) -> None:
    def usual(kind: str, **index: Any) -> tuple[int, float]:
        return resolve_pipeline(named(kind, tmp_path, **index), None).usual

    assert usual("QwenImageEditPlusPipeline") == (50, 4.0)
    assert usual("Flux2KleinPipeline") == usual("Flux2KleinPipeline", is_distilled=False) == (50, 4.0)
    assert usual("Flux2KleinPipeline", is_distilled=True) == (4, 1.0)
    assert (
        resolve_pipeline(named("ZImagePipeline", tmp_path), None).licence == f"Apache-2.0 as published; {OWN_LICENCE}"
    )


@pytest.mark.parametrize("kind", [*REFUSED, "Flux2Pipeline", "PixArtSigmaPipeline", "NewInpaintPipeline", ""])
def test_a_class_that_cannot_inpaint_is_refused_with_those_that_can(kind: str, tmp_path: Path) -> None:
    """Only the index is there: nothing else is read before."""
    with pytest.raises(UsageError, match="is not for inpainting") as refused:
        resolve_pipeline(named(kind, tmp_path), None)
    assert (kind or "without a class") in str(refused.value) and REFUSED.get(kind, "") in str(refused.value)
    assert all(name in str(refused.value) for name in FAMILIES)


def test_the_table_holds_what_the_installed_diffusers_can_load() -> None:
    """Every class that the automatic class maps to, and every class with an inpainting name, is listed or refused."""
    maps = auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING
    found = {name for name in dir(diffusers) if re.search(r"Inpaint\w*Pipeline$|FillPipeline$", name)}
    found = {name for name in found if name != "AutoPipelineForInpainting"} | {one.__name__ for one in maps.values()}
    assert found - {*REFUSED} == {*FAMILIES} and found >= {*FAMILIES}
    sources: list[Mapping[str, Any]] = [
        auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    ]
    for key, loader in maps.items():
        for kind in (one[key].__name__ for one in sources if key in one and loader.__name__ in FAMILIES):
            inpainting = inpainting_class(kind)
            pixels = "Kandinsky" in kind  # their text-to-image UNet has other channels
            assert (inpainting is None) if pixels else inpainting is not None and inpainting[0] == loader.__name__


@pytest.mark.parametrize(
    ("kind", "side", "problem"),
    [
        ("FluxFillPipeline", 520, "multiples of 16"),
        ("QwenImageEditPipeline", 512, "squares of 1024 pixels alone"),
        ("Flux2KleinPipeline", 1040, "at most 1024"),
        ("QwenImagePipeline", 1040, ""),
    ],
)
def test_a_size_that_the_model_cannot_compute_is_refused(kind: str, side: int, problem: str, tmp_path: Path) -> None:
    spec = resolve_pipeline(named(kind, tmp_path), None)
    config = settings("remove", "edit.drop=cat", f"inpaint.size={side}")
    if not problem:
        assert InpaintParameters.of(config, spec).size == side
        return
    with pytest.raises(UsageError, match=problem):
        InpaintParameters.of(config, spec)


def test_the_documentation_lists_every_class_with_its_values() -> None:
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 7
    }
    assert {*rows} == {*FAMILIES}
    for name, family in FAMILIES.items():
        usual = f"{family.usual.steps}, {family.usual.guidance:g}"
        if family.distilled:
            usual += f"; distilled {family.distilled.steps}, {family.distilled.guidance:g}"
        side = str(family.size) if family.only_size else f"× {family.multiple}"
        side += f", at most {family.largest}" if family.largest else ""
        negative = "yes" if family.negative_prompt else "no"
        assert rows[name][:5] == [usual, f"`{family.guidance_key}`", negative, side, family.licence], name


def test_a_hub_id_of_a_named_pipeline_has_its_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Path(named("ZImagePipeline", tmp_path)) / "model_index.json"
    monkeypatch.setattr("ovseg_batch.models.pipelines.cached", lambda repository, names: index)
    by_name, by_id = (resolve_pipeline(one, None) for one in ("z-image-turbo", PIPELINES["z-image-turbo"].hub))
    assert by_name.usual == by_id.usual == (8, 0.0)
