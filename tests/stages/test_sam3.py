"""`method: sam3` over rendered scenes, with a tiny SAM 3 of random weights, whose masks mean nothing."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

import ovseg_batch
from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.io import rle
from ovseg_batch.io.images import read_image
from ovseg_batch.io.limits import Limits
from ovseg_batch.methods.concepts import fused_word, pasted, stored
from ovseg_batch.methods.resized_masks import above
from ovseg_batch.methods.tiles import grid_views
from ovseg_batch.models import zoo
from ovseg_batch.models.sam3 import Sam3
from ovseg_batch.stages.registry import stage_names
from ovseg_batch.workdir.store import Workdir
from tests.conftest import Command, data_files
from tests.harness.job import Running
from tests.support.tiny_sam3 import save_tiny_sam3

WORDS = ["car", "sky", "a red house", "dog"]
LABELS = "; ".join(WORDS)
#: every mask stays, so that there are many
LOOSE = ("--set", "sam3.nms=1", "--set", "sam3.contained=1")
ASK = ("--labels", LABELS)
KEEP = ("--set", "sam3.cache=embeddings")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam3(tmp_path_factory.mktemp("sam3"))


@pytest.fixture(scope="module")
def arguments(model: Path, few_scenes: Path) -> Callable[..., tuple[object, ...]]:
    """Return the arguments of a run in three shards, in this process."""

    def given(workdir: Path, *more: object, labels: str = LABELS, images: Path | None = None) -> tuple[object, ...]:
        small = ("--set", "manifest.shard_rows=2", "--workers", "0", "--set", f"sam3.model=local-dir:{model}")
        own = ("--set", "sam3.cache=none", *small)
        return ("run", images or few_scenes / "images", "-o", workdir, "-c", "sam3", "--labels", labels, *own, *more)

    return given


@pytest.fixture(scope="module")
def run(
    arguments: Callable[..., tuple[object, ...]], tmp_path_factory: pytest.TempPathFactory, command: Command
) -> Path:
    """A run without kept tokens, in which masks of a class may overlap."""
    workdir = tmp_path_factory.mktemp("sam3-run") / "run"
    done = command(*arguments(workdir, *LOOSE))
    assert done.returncode == 0, done.stderr
    return workdir


def written(workdir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((workdir / "annotations.json").read_text())["annotations"]
    return found


def lines(workdir: Path, stage: str) -> list[dict[str, Any]]:
    """Return the rows of a stage, in order."""
    paths = sorted((workdir / "stages").glob(f"{stage}-*/data/*/*.parquet"))
    return [line for path in paths for line in pq.read_table(path).to_pylist()]


def maps(workdir: Path) -> dict[str, np.ndarray]:
    paths = sorted((workdir / "stages").glob("sam3-*/data/*/*.npz"))
    return {name: array for path in paths for name, array in np.load(path).items()}


def test_masks_are_those_of_the_model(run: Path, model: Path, few_scenes: Path) -> None:
    """Scores, masks and confidence of the annotations, and the fused maps, from the model's own answers."""
    sam3 = Sam3.load(zoo.resolve("sam3", f"local-dir:{model}"), torch.device("cpu"), "fp32")
    words, config = sam3.encode_words(WORDS), load_config(run / "config.yaml", environment={})
    assert stage_names(config) == ("sam3", "settle") and config.painting == "overlapping"
    found, seen = written(run), 0
    for number, path in enumerate(sorted((few_scenes / "images").iterdir())):
        image = read_image(path, Limits(10**8, 10**9))
        size = image.shape[:2]
        answers = sam3.answer(sam3.see(image), words, 0.1, lambda _, answer: answer)
        own = [one for one in found if one["image_id"] == number + 1]
        for index, answer in enumerate(answers):
            scores = sorted(answer.scores[answer.scores > 0.3].tolist(), reverse=True)
            of_word = sorted((one for one in own if one["category_id"] == index + 1), key=lambda one: -one["score"])
            assert np.allclose([one["score"] for one in of_word], scores, atol=1e-5)
            for one in of_word:
                mask = coco.decode(one["segmentation"]).astype(bool)
                slot = int(np.abs(answer.scores - one["score"]).argmin())
                probabilities = answer.masks[answer.kept.tolist().index(slot)]
                wide = torch.nn.functional.interpolate(probabilities[None, None], size, mode="bilinear")[0, 0]
                wrong = wide[torch.from_numpy(mask) != (wide > 0.5)]
                assert (wrong - 0.5).abs().max() < 1e-6 if len(wrong) else True  # rounding at the threshold
                seen += 1
        line = lines(run, "sam3")[number]
        assert [word["found"] for word in line["words"]] == [answer.soft is not None for answer in answers]
        fused = [
            stored(fused_word(one.masks, torch.from_numpy(one.scores[one.kept]), one.presence, one.soft))
            for one in answers
            if one.soft is not None
        ]
        assert (f"{number}/maps" in maps(run)) == bool(fused)
        assert not fused or np.array_equal(maps(run)[f"{number}/maps"], np.stack(fused))
    assert seen == len(found) > 20


def test_confidence_is_the_score_without_that_of_its_best_rival(run: Path) -> None:
    by_image: dict[int, list[dict[str, Any]]] = {}
    for one in written(run):
        by_image.setdefault(one["image_id"], []).append(one)
    lowered = 0
    for number, line in enumerate(lines(run, "sam3")):
        found = line["word_masks"]
        overlap, _ = rle.overlaps([one["rle"] for one in found], line["height"], line["width"])
        for one in by_image.get(number + 1, []):
            [k] = [k for k, mask in enumerate(found) if mask["rle"].decode() == one["segmentation"]["counts"]][:1]
            rivals = [
                other["score"]
                for j, other in enumerate(found)
                if other["query"] != found[k]["query"] and overlap[k, j] >= 0.5
            ]
            assert one["confidence"] == pytest.approx(one["score"] * (1 - max(rivals, default=0)), abs=1e-4)
            lowered += bool(rivals)
    assert lowered


def test_kept_tokens_change_no_byte_of_the_result(
    run: Path, arguments: Callable[..., tuple[object, ...]], tmp_path: Path, command: Command
) -> None:
    done = command(*arguments(tmp_path / "kept", *LOOSE, *KEEP))
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "kept") == written(run)
    assert lines(tmp_path / "kept", "sam3") == lines(run, "sam3")
    tokens = [np.load(path) for path in (tmp_path / "kept" / "stages").glob("tokens-*/data/*/*.npz")]
    assert {array.shape for one in tokens for array in one.values()} == {(8, 8, 32)}


def test_a_word_has_the_same_masks_alone(
    run: Path, arguments: Callable[..., tuple[object, ...]], tmp_path: Path, command: Command
) -> None:
    chunk = ("--set", "sam3.words_chunk=3")
    assert command(*arguments(tmp_path / "one", *LOOSE, *chunk, labels="dog; car")).returncode == 0
    for alone, together in zip(lines(tmp_path / "one", "sam3"), lines(run, "sam3"), strict=True):
        for query, word in enumerate(("dog", "car")):
            masks = [
                [{**mask, "query": 0} for mask in line["word_masks"] if mask["query"] == own]
                for line, own in ((alone, query), (together, WORDS.index(word)))
            ]
            assert masks[0] == masks[1]


def test_a_query_gives_the_masks_of_a_full_run(
    arguments: Callable[..., tuple[object, ...]], few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    images = Path(shutil.copytree(few_scenes / "images", tmp_path / "images"))
    original, answer, full = (tmp_path / name for name in ("original", "answer", "full"))
    assert command(*arguments(original, *LOOSE, *KEEP, images=images)).returncode == 0
    assert command(*arguments(full, *LOOSE, *KEEP, labels="water; car", images=images)).returncode == 0
    shutil.rmtree(images)
    done = command("query", original, "--labels", "water; car", "-o", answer)
    assert done.returncode == 0, done.stderr
    assert (answer / "annotations.json").read_bytes() == (full / "annotations.json").read_bytes()
    assert written(answer)


def test_without_kept_tokens_a_query_says_what_it_would_take(run: Path, tmp_path: Path, command: Command) -> None:
    done = command("query", run, "--labels", "water", "-o", tmp_path / "answer")
    assert done.returncode == 2 and "--set sam3.cache=embeddings" in done.stderr


def test_another_threshold_runs_no_model(run: Path, tmp_path: Path, command: Command) -> None:
    done = command(
        "query", run, *ASK, "-o", tmp_path / "answer", "--set", "sam3.threshold=0.6", "--set", "sam3.nms=0.7"
    )
    assert done.returncode == 0, done.stderr
    assert "3 of 3 shards already committed" in done.stderr and "sam3: computing" not in done.stderr
    kept = written(tmp_path / "answer")
    assert 0 < len(kept) < len(written(run)) and min(one["score"] for one in kept) > 0.6
    done = command("query", run, *ASK, "-o", tmp_path / "lower", "--set", "sam3.threshold=0.05")
    assert done.returncode == 2 and "below sam3.floor: 0.1" in done.stderr


def test_masks_of_a_class_are_distinct(
    arguments: Callable[..., tuple[object, ...]], tmp_path: Path, command: Command
) -> None:
    assert command(*arguments(tmp_path / "run")).returncode == 0
    found = written(tmp_path / "run")
    assert found
    for one in found:
        others = [
            other["segmentation"]
            for other in found
            if (other["image_id"], other["category_id"]) == (one["image_id"], one["category_id"]) and other is not one
        ]
        if others:
            assert coco.iou([one["segmentation"]], others, [0] * len(others)).max() <= 0.7


def test_exclusive_painting_gives_a_pixel_to_the_best_mask(run: Path, tmp_path: Path, command: Command) -> None:
    assert command("query", run, *ASK, "-o", tmp_path / "answer", "--set", "paint=exclusive").returncode == 0
    owned: dict[int, np.ndarray] = {}
    for one in written(tmp_path / "answer"):
        mask = coco.decode(one["segmentation"]).astype(int)
        owned[one["image_id"]] = owned.get(one["image_id"], 0) + mask
    assert owned and all(count.max() == 1 for count in owned.values())


def test_semantic_output_is_the_maximum_of_both_heads(run: Path, tmp_path: Path, command: Command) -> None:
    settings = ("--set", "sam3.output=semantic", "--set", "sam3.soft=0.3")
    done = command("query", run, *ASK, "-o", tmp_path / "answer", *settings)
    assert done.returncode == 0, done.stderr
    found = written(tmp_path / "answer")
    assert len({(one["image_id"], one["category_id"]) for one in found}) == len(found) > 3
    for number, line in enumerate(lines(run, "sam3")):
        queries = [word["query"] for word in line["words"] if word["found"]]
        size = (line["height"], line["width"])
        values = np.zeros((len(WORDS), *size), np.float32)
        for query, one in zip(queries, maps(run).get(f"{number}/maps", ()), strict=True):
            wide = torch.nn.functional.interpolate(torch.from_numpy(one)[None, None] / 255, size, mode="bilinear")
            values[query] = wide[0, 0].numpy()
        expected, ordered = values.argmax(axis=0), np.sort(values, axis=0)
        clear = (np.abs(ordered[-1] - 0.3) > 1e-4) & (ordered[-1] - ordered[-2] > 1e-4)
        for one in (one for one in found if one["image_id"] == number + 1):
            mask = coco.decode(one["segmentation"]).astype(bool)
            wanted = (expected == one["category_id"] - 1) & (ordered[-1] >= 0.3)
            assert (mask == wanted)[clear].all()
    done = command("query", run, *ASK, "-o", tmp_path / "other", *settings, "--set", "paint=overlapping")
    assert done.returncode == 2 and "paint: exclusive" in done.stderr


def test_maps_of_all_words_and_of_instances_alone(
    arguments: Callable[..., tuple[object, ...]], tmp_path: Path, command: Command
) -> None:
    """ConceptBank's code computes the soft map of every word. Its masks alone give the maximum of mask × score."""
    floor = ("--set", "sam3.floor=0.3")
    for chosen in ("found", "all", "instances"):
        done = command(*arguments(tmp_path / chosen, *LOOSE, *floor, "--set", f"sam3.maps={chosen}"))
        assert done.returncode == 0, done.stderr
        assert written(tmp_path / chosen) == written(tmp_path / "found")  # masks do not depend on maps
    present = {chosen: lines(tmp_path / chosen, "sam3") for chosen in ("found", "all", "instances")}
    fused = {chosen: maps(tmp_path / chosen) for chosen in present}
    absent = 0
    for number, line in enumerate(present["found"]):
        found = [word["found"] for word in line["words"]]
        assert all(word["found"] for word in present["all"][number]["words"])
        assert [word["found"] for word in present["instances"][number]["words"]] == found
        everything = fused["all"][f"{number}/maps"]
        assert len(everything) == len(WORDS)
        absent += found.count(False)
        if any(found):
            both, instances = fused["found"][f"{number}/maps"], fused["instances"][f"{number}/maps"]
            assert np.array_equal(everything[found], both)
            assert (instances <= both).all() and (instances < both).any()
    assert absent, "a word without a mask is part of this test"


@pytest.mark.parametrize("kept", ["none", "embeddings"])
@pytest.mark.slow("kill -9 in a stage of sam3 loses at most the shard in flight")
def test_a_killed_run_resumes_to_the_same_bytes(
    kept: str,
    arguments: Callable[..., tuple[object, ...]],
    tmp_path: Path,
    start: Callable[..., Running],
    command: Command,
) -> None:
    given = (*LOOSE, "--set", f"sam3.cache={kept}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert command(*arguments(whole, *given)).returncode == 0
    points = ["sam3.row:3", "sam3.commit:2", "settle.data:1"] + ["tokens.row:3"] * (kept == "embeddings")
    for point in points:
        shutil.rmtree(killed, ignore_errors=True)
        assert start(*arguments(killed, *given), OVSEG_FAILPOINTS=point).wait().code == -signal.SIGKILL
        assert command(*arguments(killed, *given)).returncode == 0
        assert data_files(killed) == data_files(whole)
        assert not Workdir(killed).verify()


def test_a_damaged_image_costs_its_row_and_is_retried(
    arguments: Callable[..., tuple[object, ...]], few_scenes: Path, run: Path, tmp_path: Path, command: Command
) -> None:
    images = Path(shutil.copytree(few_scenes / "images", tmp_path / "images"))
    victim = sorted(images.iterdir())[2]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    done = command(*arguments(tmp_path / "run", *LOOSE, *KEEP, images=images))
    assert done.returncode == 3 and len((tmp_path / "run" / "failures.csv").read_text().splitlines()) == 2
    victim.write_bytes(whole)
    assert command("retry", tmp_path / "run").returncode == 0
    assert written(tmp_path / "run") == written(run)


def test_a_model_that_fails_for_an_image_costs_its_row(
    arguments: Callable[..., tuple[object, ...]], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    see, calls = Sam3.see, []

    def failing(self: Sam3, image: Any) -> Any:
        calls.append(1)
        if 2 <= len(calls) <= 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return see(self, image)

    monkeypatch.setattr(Sam3, "see", failing)
    done = command(*arguments(tmp_path / "run"))
    text = (tmp_path / "run" / "failures.csv").read_text()
    assert done.returncode == 3 and text.count("out_of_memory") == 1, text


def test_prompts_of_a_row_limit_its_words(
    arguments: Callable[..., tuple[object, ...]], few_scenes: Path, run: Path, tmp_path: Path, command: Command
) -> None:
    paths = sorted((few_scenes / "images").iterdir())
    rows = [{"path": str(path), "prompts": ["car"] if k else ["horse"]} for k, path in enumerate(paths)]
    listed = tmp_path / "list.jsonl"
    listed.write_text("\n".join(map(json.dumps, rows)))
    done = command(*arguments(tmp_path / "run", *LOOSE, images=listed))
    assert done.returncode == 3 and "'horse' is none of the labels" in (tmp_path / "run" / "failures.csv").read_text()
    searched = [[word["query"] for word in line["words"] or ()] for line in lines(tmp_path / "run", "sam3")]
    assert searched == [[], *[[0]] * 5]
    for own, all_words in zip(lines(tmp_path / "run", "sam3")[1:], lines(run, "sam3")[1:], strict=True):
        assert own["word_masks"] == [mask for mask in all_words["word_masks"] if mask["query"] == 0]


def test_a_dry_run_names_stages_and_disk_and_refuses_long_prompts(
    arguments: Callable[..., tuple[object, ...]], tmp_path: Path, command: Command
) -> None:
    done = command(*arguments(tmp_path / "run", *KEEP, "--dry-run"))
    assert done.returncode == 0 and not (tmp_path / "run").exists()
    assert all(f"\n{name} " in done.stdout for name in ("tokens", "sam3", "settle")), done.stdout
    long = " ".join(["very"] * 31) + " long"
    done = command(*arguments(tmp_path / "run", labels=long, images=None), "--dry-run")
    assert done.returncode == 2 and "34 tokens" in done.stderr
    done = command(*arguments(tmp_path / "run", "--set", "sam3.size=500"), "--dry-run")
    assert done.returncode == 2 and "multiple of 336" in done.stderr


def test_words_do_not_compete_with_the_labels(
    arguments: Callable[..., tuple[object, ...]], run: Path, tmp_path: Path, command: Command
) -> None:
    assert command(*arguments(tmp_path / "auto", *LOOSE, "--set", "background=auto")).returncode == 0
    assert written(tmp_path / "auto") == written(run)
    assert command(*arguments(tmp_path / "named", *LOOSE, "--set", "background=[dog]", labels="car")).returncode == 0
    assert {word["query"] for line in lines(tmp_path / "named", "sam3") for word in line["words"]} == {0, 1}
    assert {one["category_id"] for one in written(tmp_path / "named")} == {1}
    labels = tmp_path / "labels.yaml"
    labels.write_text("extends: sam3\nlabels: [{name: car, allow: [wheel]}]\n")
    done = command("run", tmp_path, "-o", tmp_path / "allow", "-c", labels, "--set", "background=auto", "--dry-run")
    assert done.returncode == 2 and "no word competes" in done.stderr


@pytest.mark.slow("exports, reports, edits and the evaluation read masks of SAM 3")
def test_outputs_are_made_as_for_every_method(
    arguments: Callable[..., tuple[object, ...]], run: Path, few_scenes: Path, tmp_path: Path, command: Command
) -> None:
    for form in ("coco", "coco-polygon", "panoptic", "semantic", "yolo", "csv"):
        done = command("export", run, "-f", form, "-o", tmp_path / form)
        assert done.returncode == 0, done.stderr
    assert command("report", run).returncode == 0
    assert command("verify", run).returncode == 0
    edited = command(*arguments(tmp_path / "edited", "--edit", "cutout", "--keep", "car"))
    assert edited.returncode == 0, edited.stderr
    assert any((tmp_path / "edited" / "edited").rglob("*.png"))
    scored = command(*arguments(tmp_path / "scored", labels="sky; car; house", images=few_scenes / "images"))
    assert scored.returncode == 0, scored.stderr
    done = command("eval", tmp_path / "scored", "--dataset", "scenes", "--root", few_scenes, "--json")
    assert done.returncode == 0, done.stderr


def test_python_segments_an_image_in_memory(model: Path, run: Path, few_scenes: Path) -> None:
    settings = {"sam3.model": f"local-dir:{model}", "sam3.nms": 1.0, "sam3.contained": 1.0}
    image = np.asarray(Image.open(sorted((few_scenes / "images").iterdir())[0]).convert("RGB"))
    found = ovseg_batch.segment(image, LABELS, config="sam3", settings=settings)
    expected = [one for one in written(run) if one["image_id"] == 1]
    assert sorted(mask.label for mask in found.masks) == sorted(WORDS[one["category_id"] - 1] for one in expected)


def test_tiles_are_searched_beside_the_whole_image(
    model: Path, arguments: Callable[..., tuple[object, ...]], tmp_path: Path, command: Command
) -> None:
    """The masks of every view, in the image's pixels, without those that the view cuts."""
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.resize(scenes.render(5).image, (300, 700, 3))).save(images / "wide.png")
    Image.fromarray(scenes.render(6).image[:200]).save(images / "small.png")
    tile, size = 400, (300, 700)
    done = command(*arguments(tmp_path / "run", *LOOSE, "--set", f"sam3.tile={tile}", images=images))
    assert done.returncode == 0, done.stderr
    views = grid_views(size, tile)
    assert len(views) == 3 and views[1:] == [(0, 0, 400, 300), (300, 0, 700, 300)]
    sam3 = Sam3.load(zoo.resolve("sam3", f"local-dir:{model}"), torch.device("cpu"), "fp32")
    words, image = sam3.encode_words(WORDS), read_image(images / "wide.png", Limits(10**8, 10**9))
    expected: list[tuple[int, float, np.ndarray]] = []
    for x0, y0, x1, y1 in views:
        answers = sam3.answer(sam3.see(image[y0:y1, x0:x1]), words, 0.1, lambda _, answer: answer)
        for query, answer in enumerate(answers):
            for index, slot in enumerate(answer.kept.tolist()):
                mask = np.zeros(size, bool)
                drawn = above(answer.masks[index].T, (x1 - x0, y1 - y0), 0.5)
                mask[y0:y1, x0:x1] = drawn.placed().whole((x1 - x0, y1 - y0)).T
                inner = [mask[:, x0].any() * (x0 > 0), mask[:, x1 - 1].any() * (x1 < size[1])]
                if mask.any() and not any(inner):
                    expected.append((query, float(answer.scores[slot]), mask))
    [line] = [one for one in lines(tmp_path / "run", "sam3") if one["width"] == 700]
    found = [(one["query"], one["score"], rle.decode(one["rle"], *size)) for one in line["word_masks"]]
    assert len(found) == len(expected) > 10

    def order(one: tuple[int, float, np.ndarray]) -> tuple[int, float, int]:
        return one[0], round(one[1], 5), int(one[2].sum())

    for one, other in zip(sorted(found, key=order), sorted(expected, key=order), strict=True):
        assert one[0] == other[0] and abs(one[1] - other[1]) < 1e-6 and np.array_equal(one[2], other[2])
    assert any(np.flatnonzero(mask.any(axis=0))[0] > 300 for _, _, mask in found)

    kept = command(*arguments(tmp_path / "kept", *LOOSE, *KEEP, "--set", f"sam3.tile={tile}", images=images))
    assert kept.returncode == 0, kept.stderr
    assert written(tmp_path / "kept") == written(tmp_path / "run")
    tokens = {
        name: array.shape
        for path in (tmp_path / "kept" / "stages").glob("tokens-*/data/*/*.npz")
        for name, array in np.load(path).items()
    }
    assert sorted(shape[0] for shape in tokens.values()) == [1, 3]


def test_a_map_of_tiles_is_the_maximum_of_those_of_all_views() -> None:
    whole, part = np.full((8, 8), 40, np.uint8), np.full((8, 8), 90, np.uint8)
    joined = pasted(whole, part, (50, 0, 100, 60), (60, 100))
    assert (joined[:, 4:] == 90).all() and (joined[:, :4] == 40).all() and (whole == 40).all()
    assert (pasted(part, whole, (50, 0, 100, 60), (60, 100)) == 90).all()
