"""Published protocols: each row has its settings, lists its split, resumes, and gives its figure."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from ovseg_batch import datasets, scenes
from ovseg_batch.cli.reproducing import _cells
from ovseg_batch.config import load_config
from ovseg_batch.datasets import protocols
from ovseg_batch.datasets.protocols import Row
from ovseg_batch.errors import UsageError
from ovseg_batch.io.manifest import Manifest
from ovseg_batch.runs.manifests import list_images
from ovseg_batch.runs.reproduce import config_of, find_row
from ovseg_batch.settings import Config
from ovseg_batch.settings.running import ManifestConfig
from ovseg_batch.stages.registry import make_vocabulary
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command, data_files
from tests.harness.job import Running
from tests.support import layouts

SEEDS = list(scenes.HELD_OUT_SEEDS[1100:1103])
ROWS = {row.name: row for row in protocols.rows()}
METHODS = {"corrclip": "regions", "corrclip-masks": "regions", "trident": "trident-map"}  # other rows have none


def without_files(row: Row) -> list[str]:
    """Return settings under which a row needs no file of its authors, for a look at its other settings."""
    return ["propose.masks=." if key == "propose.masks" else "dense.definition_weight=0" for key in row.files]


def values(config: Config) -> tuple[object, ...]:
    dense, refine = config.dense, config.refine
    sizes = dense.window, dense.stride, dense.short_side
    return (*sizes, dense.logit_scale, dense.prob_threshold, dense.area_threshold, refine.pamr, refine.output)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "sclip-voc21": (224, 112, 336, 65, 0.1, 0.1, 0, "semantic"),
        "sclip-coco-object": (224, 112, 336, 50, 0.1, 0, 0, "semantic"),
        "sclip-coco-stuff": (224, 112, 448, 40, 0, 0, 0, "semantic"),
        "sclip-cityscapes": (224, 112, 560, 40, 0, 0, 0, "semantic"),
        "naclip-voc21": (2048, 112, 336, 40, 0.1, 0, 10, "semantic"),
        "naclip-coco-stuff": (224, 112, 336, 40, 0, 0, 10, "semantic"),
        "naclip-cityscapes": (224, 112, 560, 40, 0, 0, 10, "semantic"),
        "naclip-no-pamr-voc21": (2048, 112, 336, 40, 0.1, 0, 0, "semantic"),
        "naclip-no-pamr-cityscapes": (224, 112, 560, 40, 0, 0, 0, "semantic"),
        "maskclip-voc21": (224, 112, 336, 65, 0.1, 0.1, 0, "semantic"),
        "maskclip-coco-stuff": (224, 112, 448, 40, 0, 0, 0, "semantic"),
        "itaclip-voc21": (224, 28, 336, 60, 0.1, 0.1, 10, "semantic"),
        "itaclip-context60": (224, 28, 336, 55, 0.1, 0, 10, "semantic"),
        "itaclip-coco-object": (224, 28, 336, 50, 0.1, 0, 10, "semantic"),
        "itaclip-coco-stuff": (224, 28, 448, 40, 0, 0, 10, "semantic"),
        "itaclip-cityscapes": (224, 28, 560, 40, 0, 0, 10, "semantic"),
        "clearclip-voc21": (448, 224, 448, 50, 0.5, 0, 0, "semantic"),
        "clearclip-cityscapes": (224, 224, 448, 50, 0, 0, 0, "semantic"),
        "corrclip-voc21": (336, 112, 336, 40, 0.2, 0, 0, "semantic"),
        "corrclip-ade20k": (336, 112, 448, 40, 0, 0, 0, "semantic"),
        "corrclip-cityscapes": (224, 112, 448, 40, 0, 0, 0, "semantic"),
        "trident-voc21": (336, 224, 448, 40, 0.2, 0, 0, "semantic"),
        "trident-voc20": (336, 112, 336, 40, 0, 0, 0, "semantic"),
        "trident-cityscapes": (336, 224, 688, 40, 0, 0, 0, "semantic"),
    }.items(),
)
def test_a_row_has_the_settings_of_the_published_config(name: str, expected: tuple[object, ...]) -> None:
    assert values(config_of(find_row(name), without_files(find_row(name)))) == expected


@pytest.mark.parametrize(
    ("dataset", "weight", "upright", "queries", "classes"),
    [
        ("voc21", 0.05, 0.7, 44 + 36, 20),
        ("context60", 0.15, 0.75, 1 + 74, 59),
        ("coco-object", 0.1, 0.75, 26 + 93, 80),
        ("coco-stuff", 0.2, 0.75, 183, 171),
        ("cityscapes", 0.05, 0.7, 26, 19),
    ],
)
def test_itaclip_mixes_a_text_into_the_words_of_each_class(
    dataset: str, weight: float, upright: float, queries: int, classes: int, tmp_path: Path
) -> None:
    row, file = find_row(f"itaclip-{dataset}"), tmp_path / "texts.txt"
    file.write_text("".join(f"{name} >=a text for {name}\n" for name in datasets.load(dataset).classes))
    config = config_of(row, [f"definitions={file}"])
    assert (config.dense.definition_weight, config.dense.view_weight, config.refine.closing) == (weight, upright, 3)
    assert (config.dense.attention, config.dense.views, config.refine.pamr_at) == ("itaclip", "itaclip", "original")
    vocabulary = make_vocabulary(config)
    assert len(vocabulary.queries) == queries and len(config.labels) == classes
    assert [label.definition for label in config.labels] == [f"a text for {label.name}" for label in config.labels]


@pytest.mark.parametrize("name", [row.name for row in ROWS.values() if row.files])
def test_a_row_with_files_of_others_names_what_to_download(name: str, command: Command, tmp_path: Path) -> None:
    [(key, file)] = ROWS[name].files.items()
    done = command("reproduce", name, "--root", tmp_path, "-o", tmp_path / "run")
    assert done.returncode == 2 and f"add --set {key}={file}" in done.stderr and not (tmp_path / "run").exists()
    assert f"Download {file} from {protocols.load(ROWS[name].method).files_at}" in done.stderr


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_its_classes_and_computes_in_fp16(name: str) -> None:
    row, config = ROWS[name], config_of(ROWS[name], without_files(ROWS[name]))
    dataset = datasets.load(row.dataset)
    assert tuple(label.name for label in config.labels) == dataset.classes
    assert make_vocabulary(config).has_background == bool(dataset.background)
    model = config.sam3 if config.method == "sam3" else config.clip
    assert model.precision == "fp16" and config.manifest.dataset == row.dataset
    for key, value in protocols.load(row.method).settings_of(row.dataset).items():
        if key != "dense.definition_weight":
            assert operator.attrgetter(key)(config) == value, "a preset sets no key that its protocol decides"
    if config.method == "dense":
        assert config.refine.method == METHODS.get(row.method, "none")
    assert config.protocol == row.method
    assert (config.refine.pamr_at == "original") == (row.method in ("naclip", "itaclip"))
    assert set(row.words) <= set(dataset.classes)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "trident-voc21": (1.2, False, False, 0.2),
        "trident-voc20": (0, False, False, 0.2),
        "trident-ade20k": (1.2, True, False, 0.05),
        "trident-cityscapes": (3, True, True, 0.1),
    }.items(),
)
def test_a_row_of_trident_has_its_own_settings(name: str, expected: tuple[object, ...]) -> None:
    config = config_of(find_row(name))
    own, refine = config.dense.trident, config.refine
    assert (own.cosine, own.raise_negative, own.halves, refine.prompt_floor) == expected
    assert (refine.min_region, refine.predicted_iou) == (225, 0.8)
    assert config_of(find_row(name), ["dense.trident.cosine=2"]).dense.trident.cosine == 2


def test_what_the_config_or_a_flag_says_has_priority() -> None:
    row = find_row("naclip-voc21")
    assert values(config_of(row, ["dense.window=336", "refine.pamr=0"]))[:1] == (336,)
    assert config_of(row, ["refine.pamr=0"]).refine.pamr == 0


def test_a_preset_without_a_protocol_takes_words_and_thresholds_alone() -> None:
    config, plain = (
        load_config("prompted", flags=flags, environment={}) for flags in ({"labels": "dataset:voc21"}, {})
    )
    assert config.dense.prob_threshold == 0.1 and config.clip.precision is None
    assert config.dense.window == plain.dense.window and config.refine == plain.refine


def test_a_data_set_without_a_row_brings_no_settings() -> None:
    config, plain = (
        load_config("naclip", flags={"labels": labels}, environment={}) for labels in ("dataset:scenes", "sky; cat")
    )
    assert (config.clip, config.dense, config.refine) == (plain.clip, plain.dense, plain.refine)
    assert config.manifest.dataset == "scenes" and len(config.labels) == 20


def test_clearclip_has_words_of_its_own() -> None:
    vocabulary = make_vocabulary(config_of(find_row("clearclip-voc21")))
    assert vocabulary.queries[0] == "background" and len(vocabulary.queries) == 21
    assert {"ship", "table", "person", "tvmonitor"} <= set(vocabulary.queries)


def test_a_word_can_be_background_and_class() -> None:
    """`bed` has two queries in SCLIP's code, at 11 and 92. In a list of labels it has one."""
    vocabulary = make_vocabulary(config_of(find_row("sclip-coco-object")))
    assert [k for k, query in enumerate(vocabulary.queries) if query == "bed"] == [11, 92]
    assert len(vocabulary.queries) == 113
    own = load_config(None, ["background=[sky, bed]"], {"labels": "bed; cat"}, environment={})
    assert make_vocabulary(own).queries == ("sky", "bed", "cat")


@pytest.mark.parametrize("name", ["voc21", "cityscapes", "coco-stuff10k", "context459"])
def test_the_folder_of_a_data_set_gives_its_split(name: str, tmp_path: Path) -> None:
    dataset = datasets.load(name)
    layouts.write(dataset, tmp_path / "data", SEEDS)
    listing, out = ManifestConfig(dataset=name), tmp_path / "m.parquet"
    list_images([str(tmp_path / "data")], Workdir(tmp_path / "run"), out, listing, None)
    listed = [row.key for row in Manifest.open(out).read_shard(0)]
    assert len(listed) == 3 and not any("2011_000000" in key or "Segmentation" in key for key in listed)
    folder = dataset.root(tmp_path / "data")
    photographs = [str(path.parent) for path in folder.glob(dataset.images[0])][:1]
    list_images(photographs, Workdir(tmp_path / "run"), out, listing, None)  # not the folder of the data set
    assert Manifest.open(out).rows >= 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small CLIP with random weights that knows any word."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 224, "layers": 2, "width": 64, "patch_size": 16, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(7)
    model = open_clip.model.CLIP(**config)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return f"local-dir:{folder}"


def test_a_row_that_was_killed_resumes_and_gives_the_same_figure(
    clip: str, tmp_path: Path, command: Command, start: Callable[..., Running]
) -> None:
    layouts.write(datasets.load("voc21"), tmp_path / "data", SEEDS)
    chosen = ("--set", f"clip.model={clip}", "--set", "clip.precision=fp32", "--set", "manifest.shard_rows=1")
    row = ("reproduce", "naclip-voc21", "--root", tmp_path / "data", "--workers", "0", *chosen)
    whole = command(*row, "-o", tmp_path / "whole", "--json")
    assert whole.returncode == 0, whole.stderr
    assert start(*row, "-o", tmp_path / "run", OVSEG_FAILPOINTS="dense.committed:2").wait().code != 0
    assert not (tmp_path / "run" / "annotations.json").exists()
    again = command(*row, "-o", tmp_path / "run", "--json")
    found, expected = json.loads(again.stdout), json.loads(whole.stdout)
    assert found["measured"] == expected["measured"] and found["images"] == 3 and found["published"] == 64.07
    assert found["difference"] == found["measured"] - 64.07 and found["precision"] == "fp32"
    assert data_files(tmp_path / "run") == data_files(tmp_path / "whole")
    text = command(*row, "-o", tmp_path / "run").stdout
    assert "published 64.07" in text and "not the protocol: clip.model" in text and "computed in fp16" in text


def test_rows_are_listed_with_their_weights(command: Command) -> None:
    listed = json.loads(command("reproduce", "--list", "--json").stdout)
    assert [one["name"] for one in listed] == list(ROWS) and all(one["source"] for one in listed)
    assert listed[0]["weights"] == [{"name": "openai-b16", "licence": "MIT"}]
    lines = command("reproduce", "--list").stdout.splitlines()
    assert lines[1].split() == ["row", "mIoU", "weights", "their", "licence", "data", "set"]
    assert lines[2].split()[:4] == ["sclip-voc21", "59.63", "openai-b16", "MIT"]
    assert sum(line.startswith("  row ") for line in lines) == len(protocols.NAMES)
    assert any(line.endswith("; definitions=cityscapes_synonyms.txt") for line in lines)


@pytest.mark.parametrize("method", ["sam3-instances", "sam3-fused"])
def test_rows_of_sam3_have_the_words_and_thresholds_of_conceptbank(method: str) -> None:
    """Those of its `configs/ori_cls` and `configs/cfg_*.py`: SCLIP's words, and 0.5 where the background counts."""
    for row in protocols.load(method).rows.values():
        config, dataset = config_of(row), datasets.load(row.dataset)
        vocabulary = make_vocabulary(config)
        own = ["background"] if row.dataset == "coco-object" else []
        words = [word for several in dataset.words for word in several]
        assert list(vocabulary.queries) == [*own, *dataset.background, *words]
        assert (config.sam3.output, config.sam3.floor, config.sam3.threshold) == ("semantic", 0.3, 0.3)
        assert config.sam3.soft == (0.5 if dataset.background else 0)
        assert config.sam3.maps == {"sam3-instances": "instances", "sam3-fused": "all"}[method]


def test_a_row_with_several_models_names_all_weights() -> None:
    models = [{"name": "metaclip-b16", "licence": "CC-BY-NC-4.0"}, {"name": "sam2.1-large", "licence": "Apache-2.0"}]
    assert _cells(models) == ("metaclip-b16, sam2.1-large", "CC-BY-NC-4.0, Apache-2.0")
    assert _cells([models[1], {"name": "x", "licence": "Apache-2.0"}]) == ("sam2.1-large, x", "Apache-2.0")


def test_errors_of_reproduce_are_one_sentence(command: Command, tmp_path: Path) -> None:
    wrong = command("reproduce", "sclip-voc2", "--root", tmp_path)
    assert wrong.returncode == 2 and "Did you mean 'sclip-voc21'?" in wrong.stderr
    for arguments in (("reproduce",), ("reproduce", "sclip-voc21")):
        assert "--root" in command(*arguments).stderr
    missing = command("reproduce", "sclip-voc21", "--root", tmp_path, "-o", tmp_path / "run")
    assert missing.returncode == 2 and "does not hold PASCAL VOC" in missing.stderr and not (tmp_path / "run").exists()


OWN = """
title: my scenes
images: images/*
truth: truth/{name}.classes.png
things: 12
things_last: true
classes: scenes
"""


def test_a_data_set_of_ones_own(
    finished: Path, few_scenes: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(OWN)
    done = command("eval", finished, "--dataset", file, "--root", few_scenes, "--json")
    assert done.returncode == 0, done.stderr
    built_in = json.loads(command("eval", finished, "--dataset", "scenes", "--root", few_scenes, "--json").stdout)
    assert json.loads(done.stdout)["mIoU"] == built_in["mIoU"]
    monkeypatch.chdir(tmp_path)
    config = load_config("demo", flags={"labels": "dataset:mine.yaml"}, environment={})
    assert config.manifest.dataset == str(file) and len(config.labels) == 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("classes: [a]", "lacks 'images'"),
        ("images: x/*", "lacks 'classes'"),
        ("[1]", "not a mapping"),
        ("", "not a mapping"),
        ("{", "cannot be read"),
        ("[" * 5000, "cannot be read"),
        ("classes: 3\nimages: x", "does not describe"),
        ("classes: [a, a]\nimages: x\ntitle: t", "different names"),
        ("classes: []\nimages: x\ntitle: t", "different names"),
        ("classes: [{words: [b]}]\nimages: x\ntitle: t", "lacks 'name'"),
        ("classes: nothing\nimages: x\ntitle: t", "no data set 'nothing'"),
        ("classes: [a]\nimages: x\ntitle: t\ntruths: y", "'truths' is no key"),
        ("classes: [a]\nimages: x\ntitle: t\nzero_is_ignored: maybe", "zero_is_ignored"),
        ("classes: [a]\nimages: x\ntitle: t\ntruth: {absent: [1]}", "truth"),
        ("classes: [a]\nimages: x\ntitle: t\nthings: many", "does not describe"),
        ("classes: [3]\nimages: x\ntitle: t", "does not describe"),
        ("classes: [a, b]\nimages: x\ntitle: t\ntruth: y\nignored: 1", "do not fit below 1"),
        ("classes: [a]\nimages: x\ntitle: t\nignored: 70000", "not a value of a map"),
        ("classes: [a]\nimages: x\ntitle: t\ntruth: {path: y, rest_is_background: true}", "needs a background"),
    ],
)
def test_a_wrong_description_is_one_sentence(text: str, expected: str, tmp_path: Path, command: Command) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=expected):
        datasets.load(str(file))
    done = command("manifest", tmp_path, "--dataset", file, "-o", tmp_path / "m.parquet")
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["nowhere.yaml", "a\0b.yaml", "x" * 300 + ".yaml", "voc2021"])
def test_a_data_set_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(UsageError, match=r"no file|cannot be read|no data set"):
        datasets.load(name)
