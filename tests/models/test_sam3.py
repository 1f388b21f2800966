"""SAM 3: a tiny model of transformers, and its results beside those of transformers' model and processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer, Sam3ImageProcessor, Sam3LiteTextModel, Sam3Model, Sam3Processor

from ovseg_batch import scenes
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.methods.resized_masks import above
from ovseg_batch.models import zoo
from ovseg_batch.models.batches import BatchSize
from ovseg_batch.models.clip_tokens import require_short, token_ids
from ovseg_batch.models.missing import MissingModels
from ovseg_batch.models.sam3 import Sam3, WordAnswer
from tests.support.tiny_sam3 import QUERIES, save_tiny_sam3, tiny_model

CPU = torch.device("cpu")
WORDS = ["car", "sky", "a red house", "tree", "grass", "person in a hat", "dog"]
IMAGE = scenes.render(7).image[:200, :151]
SIZE = (200, 151)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam3(tmp_path_factory.mktemp("sam3"))


def loaded(folder: Path, **settings: Any) -> Sam3:
    return Sam3.load(zoo.resolve("sam3", f"local-dir:{folder}"), CPU, "fp32", **settings)


@pytest.fixture(scope="module")
def sam3(folder: Path) -> Sam3:
    return loaded(folder)


def answers(
    sam3: Sam3, words: list[str], floor: float = 0.0, chosen: list[int] | None = None, all_maps: bool = False
) -> list[WordAnswer]:
    return sam3.answer(sam3.see(IMAGE), sam3.encode_words(words), floor, lambda _, answer: answer, chosen, all_maps)


@pytest.fixture(scope="module")
def processor() -> Sam3Processor:
    """The processor of the published model, with the tokenizer from open_clip's file."""
    bundled = SimpleTokenizer()
    merges = list(bundled.bpe_ranks)
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): index for token, index in bundled.encoder.items()}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    return Sam3Processor(Sam3ImageProcessor(size={"height": 112, "width": 112}), tokenizer)


def theirs(model: Any, processor: Sam3Processor, word: str, tokens: bool = False) -> Any:
    """Return the output of transformers, with the tokens of the image rounded to float16."""
    inputs = processor(images=IMAGE, text=word, return_tensors="pt")
    length = min(32, model.config.text_config.max_position_embeddings)
    ids = torch.where(inputs.attention_mask.bool(), inputs.input_ids, 0)[:, :length]
    with torch.inference_mode():
        vision = model.vision_encoder(inputs.pixel_values)
        rounded = vision.last_hidden_state.half().float().view(1, 8, 8, -1).permute(0, 3, 1, 2)
        vision.fpn_hidden_states, vision.fpn_position_encoding = model.vision_encoder.neck(rounded)
        return model(vision_embeds=vision, input_ids=ids, attention_mask=inputs.attention_mask[:, :length])


@pytest.mark.parametrize("kind", ["Sam3", "Sam3LiteText"])
def test_results_equal_those_of_the_model_and_the_processor(
    kind: str, tmp_path: Path, processor: Sam3Processor
) -> None:
    save_tiny_sam3(tmp_path, kind)
    model = tiny_model(kind)
    assert isinstance(model, Sam3LiteTextModel if kind == "Sam3LiteText" else Sam3Model)
    found, seen = answers(loaded(tmp_path), WORDS), 0
    for word, answer in zip(WORDS, found, strict=True):
        output = theirs(model, processor, word)
        [instances] = processor.post_process_instance_segmentation(output, 0.3, 0.5, [SIZE])
        [semantic] = processor.post_process_semantic_segmentation(output, [SIZE], 0.5)
        passed = answer.scores > 0.3
        assert np.allclose(answer.scores[passed], instances["scores"].numpy(), rtol=0, atol=1e-6)
        assert abs(answer.presence - float(output.presence_logits.sigmoid())) < 1e-6
        corners = answer.boxes[passed] * np.array([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])
        assert np.allclose(corners, instances["boxes"].numpy(), atol=1e-3)
        drawn = [above(mask, SIZE, 0.5).placed().whole(SIZE) for mask in answer.masks[passed]]
        assert len(answer.masks) == QUERIES and len(drawn) == len(instances["masks"])
        for mask, expected in zip(drawn, instances["masks"], strict=True):
            assert (mask != expected.bool().numpy()).sum() == 0
        assert answer.soft is not None
        assert (above(answer.soft, SIZE, 0.5).placed().whole(SIZE) != semantic.bool().numpy()).sum() == 0
        seen += len(drawn)
    assert seen > 10


def test_pixels_and_tokens_equal_those_of_the_processor(sam3: Sam3, processor: Sam3Processor) -> None:
    texts = ["a red car", "Zürich's TRAM", "traffic lights, at night", "naïve café 12:30"]
    for text in texts:
        inputs = processor(images=IMAGE, text=text, return_tensors="pt")
        assert token_ids(text) == inputs.input_ids[0, : int(inputs.attention_mask.sum())].tolist()
        assert torch.allclose(sam3.preprocess(IMAGE), inputs.pixel_values[0], atol=1e-6)


def test_the_map_of_a_word_without_masks(sam3: Sam3) -> None:
    for whole, absent in zip(answers(sam3, WORDS), answers(sam3, WORDS, floor=1.0, all_maps=True), strict=True):
        assert whole.soft is not None and absent.soft is not None and torch.equal(whole.soft, absent.soft)
        assert len(absent.kept) == len(absent.masks) == 0


def test_the_early_exit_equals_the_full_forward(sam3: Sam3) -> None:
    full = answers(sam3, WORDS)
    floor = float(np.median([answer.scores.max() for answer in full]))
    early, absent = answers(sam3, WORDS, floor), 0
    for one, other in zip(full, early, strict=True):
        assert np.array_equal(one.scores, other.scores) and np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(other.kept, np.flatnonzero(one.scores >= np.float32(floor)))
        absent += other.soft is None
        assert (other.soft is None) == (one.scores.max() < np.float32(floor)) == (len(other.masks) == 0)
        if other.soft is not None and one.soft is not None:
            assert torch.equal(one.soft, other.soft)
            assert torch.allclose(one.masks[other.kept], other.masks, atol=1e-6)
            assert torch.equal(one.masks[other.kept] > 0.5, other.masks > 0.5)
    assert 0 < absent < len(WORDS)


def equal(one: WordAnswer, other: WordAnswer) -> bool:
    same = [np.array_equal(getattr(one, name), getattr(other, name)) for name in ("scores", "boxes", "kept", "masks")]
    return one.presence == other.presence and all(same)


def test_a_word_has_the_same_bytes_together_apart_and_in_any_order_and_chunk(folder: Path, sam3: Sam3) -> None:
    together = answers(sam3, WORDS, 0.3)
    backwards = answers(sam3, WORDS[::-1], 0.3)[::-1]
    chosen = answers(sam3, WORDS, 0.3, [5, 2])
    for index, word in enumerate(WORDS):
        [alone] = answers(sam3, [word], 0.3)
        assert equal(alone, together[index]) and equal(alone, backwards[index])
    assert equal(chosen[0], together[5]) and equal(chosen[1], together[2])
    for words in (1, 3, 16):
        assert all(map(equal, answers(loaded(folder, words=words), WORDS, 0.3), together))


def test_a_batch_is_filled_and_halved_when_memory_runs_out(
    folder: Path, sam3: Sam3, monkeypatch: pytest.MonkeyPatch
) -> None:
    batched = loaded(folder, words=4)
    batched.alone = False
    sizes: list[int] = []
    encode = batched.model.detr_encoder.forward

    def limited(*args: Any, text_features: torch.Tensor, **more: Any) -> Any:
        sizes.append(len(text_features))
        if len(text_features) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(*args, text_features=text_features, **more)

    monkeypatch.setattr(batched.model.detr_encoder, "forward", limited)
    found = answers(batched, WORDS, 0.3)
    assert sizes == [4, 2, 2, 2, 2] and batched.words.items == 2
    for one, other in zip(found, answers(sam3, WORDS, 0.3), strict=True):
        assert np.allclose(one.scores, other.scores, atol=1e-5) and np.array_equal(one.kept, other.kept)


def test_tokens_are_what_a_word_is_asked_from(sam3: Sam3) -> None:
    tokens = sam3.see(IMAGE)
    assert tokens.shape == (8, 8, 32) and tokens.dtype == np.float16
    words = sam3.encode_words(["car"])
    [one] = sam3.answer(tokens, words, 0.0, lambda _, answer: answer)
    [other] = sam3.answer(np.frombuffer(tokens.tobytes(), np.float16).reshape(8, 8, 32), words, 0.0, lambda _, a: a)
    assert equal(one, other) and sam3.answer(tokens, sam3.encode_words([]), 0.0, lambda _, a: a) == []


def test_another_size_loads_the_same_weights(folder: Path) -> None:
    larger = loaded(folder, side=168)
    assert larger.side == 168 and larger.see(IMAGE).shape == (12, 12, 32)
    [answer] = answers(larger, ["car"])
    assert answer.masks.shape == (QUERIES, 48, 48)


def test_a_model_without_its_text_encoder_still_answers(folder: Path) -> None:
    own = loaded(folder)
    words, tokens = own.encode_words(["car"]), own.see(IMAGE)
    [before] = own.answer(tokens, words, 0.0, lambda _, answer: answer)
    many = sum(parameter.numel() for parameter in own.model.parameters())
    own.forget()
    assert sum(parameter.numel() for parameter in own.model.parameters()) < many / 2
    assert equal(own.answer(own.see(IMAGE), words, 0.0, lambda _, answer: answer)[0], before)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_computes_close_scores(folder: Path, sam3: Sam3, precision: str) -> None:
    half = Sam3.load(zoo.resolve("sam3", f"local-dir:{folder}"), CPU, precision)
    one, other = answers(half, WORDS), answers(sam3, WORDS)
    assert np.mean([np.abs(a.scores - b.scores).mean() for a, b in zip(one, other, strict=True)]) < 0.05


def test_a_long_prompt_is_refused_at_plan_time(sam3: Sam3) -> None:
    require_short(["car", "x " * 15], 32, "this SAM 3")
    with pytest.raises(UsageError, match=r"has 33 tokens, and this SAM 3 takes 32"):
        require_short(["cat " * 31], 32, "this SAM 3")
    with pytest.raises(UsageError, match="takes 16"):
        require_short(["cat " * 15], 16, "this SAM 3")
    with pytest.raises(ValueError, match="33 tokens"):
        sam3.encode_words(["cat " * 31])


def test_names_and_folders(folder: Path, tmp_path: Path) -> None:
    spec = zoo.resolve("sam3", f"local-dir:{folder}")
    assert (spec.window, spec.patch, spec.width, spec.context) == (112, 14, 32, 32)
    save_tiny_sam3(tmp_path / "lite", "Sam3LiteText", published=False)
    assert zoo.resolve("sam3", f"local-dir:{tmp_path / 'lite'}").context == 16
    named = zoo.resolve("sam3", "sam3", "random:3")
    assert (named.window, named.patch, named.width, named.context) == (1008, 14, 1024, 32)
    with pytest.raises(MissingModels, match=r"gated: needs a token"):
        zoo.resolve("sam3", "sam3")
    with pytest.raises(UsageError, match="no SAM 3 model 'sam33'"):
        zoo.resolve("sam3", "sam33")
    with pytest.raises(UsageError, match=r"no readable config\.json of a SAM 3"):
        zoo.resolve("sam3", f"local-dir:{tmp_path}")


def test_weights_that_do_not_fit_are_refused_with_the_names(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["detector_model.text_projection.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(OvsegError, match=r"1 tensor missing \(text_projection\.weight"):
        Sam3.load(zoo.resolve("sam3", f"local-dir:{folder}", str(tmp_path / "cut.safetensors")), CPU, "fp32")
    state["detector_model.text_projection.weight"] = torch.zeros(2, 16)
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(OvsegError, match=r"1 tensor of another shape \(text_projection\.weight"):
        Sam3.load(zoo.resolve("sam3", f"local-dir:{folder}", str(tmp_path / "cut.safetensors")), CPU, "fp32")
    save_file({"detector.backbone.vision_backbone.trunk.pos_embed": torch.zeros(1)}, tmp_path / "meta.safetensors")
    with pytest.raises(OvsegError, match="Meta's own file"):
        Sam3.load(zoo.resolve("sam3", f"local-dir:{folder}", str(tmp_path / "meta.safetensors")), CPU, "fp32")


def test_random_weights_depend_on_the_seed_alone(folder: Path) -> None:
    one, same, other = (
        Sam3.load(zoo.resolve("sam3", f"local-dir:{folder}", f"random:{seed}"), CPU, "fp32").see(IMAGE)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_a_batch_size_is_what_the_class_was_given(folder: Path) -> None:
    assert isinstance(loaded(folder, words=5).words, BatchSize) and loaded(folder, words=5).words.items == 5


@pytest.mark.slow("a file of full size in the layout of the hub is loaded without a missing tensor")
def test_a_full_size_file_in_the_layout_of_the_hub_loads(tmp_path: Path) -> None:
    model = Sam3.load(zoo.resolve("sam3", "sam3", "random:0"), CPU, "fp32").model
    state = {f"detector_model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    many, kept = len(state), state["detector_model.mask_decoder.semantic_projection.weight"].clone()
    state["tracker_neck.fpn_layers.0.proj1.weight"] = torch.zeros(1)
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    del model, state
    try:
        again = Sam3.load(zoo.resolve("sam3", "sam3", str(file)), CPU, "fp32").model
    finally:
        file.unlink()
    assert len(again.state_dict()) == many and sum(p.numel() for p in again.parameters()) > 800_000_000
    assert torch.equal(again.mask_decoder.semantic_projection.weight, kept)


def test_config_of_a_folder_is_read_from_the_detector(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["model_type"] == "sam3_video"
