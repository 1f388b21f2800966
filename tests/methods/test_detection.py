"""Scores of words for boxes are those of OWLv2's class head, and each word is on its own."""

from __future__ import annotations

import numpy as np
import torch
from transformers import Owlv2Config
from transformers.models.owlv2.modeling_owlv2 import Owlv2ClassPredictionHead

from ovseg_batch.methods.detection import best_boxes, class_scores, word_scores


def test_scores_are_those_of_the_class_head() -> None:
    torch.manual_seed(0)
    head = Owlv2ClassPredictionHead(Owlv2Config(text_config={"hidden_size": 24}, vision_config={"hidden_size": 32}))
    features, words = torch.randn(1, 40, 32), torch.randn(1, 7, 24)
    with torch.no_grad():
        logits, embeddings = head(features, words, None)
        calibration = torch.cat([head.logit_shift(features), head.elu(head.logit_scale(features)) + 1], dim=-1)[0]
    embeddings = embeddings[0] / (embeddings[0].norm(dim=-1, keepdim=True) + 1e-6)
    scores = word_scores(embeddings.numpy(), calibration.numpy(), words[0].numpy())
    assert scores.dtype == np.float32 and np.abs(scores - logits[0].sigmoid().numpy()).max() < 1e-6
    assert word_scores(embeddings.numpy()[:1], np.array([[-1000.0, 10.0]], np.float32), words[0].numpy()).max() == 0
    rounded = word_scores(embeddings.half().numpy(), calibration.numpy(), words[0].numpy())
    assert 0 < np.abs(rounded - scores).max() < 2e-4


def test_a_word_has_the_same_bytes_alone_and_beside_others() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(33, 24)).astype(np.float16)
    calibration, words = rng.normal(size=(33, 2)).astype(np.float32), rng.normal(size=(9, 24)).astype(np.float32)
    together = word_scores(embeddings, calibration, words)
    for k in range(9):
        assert np.array_equal(word_scores(embeddings, calibration, words[k : k + 1])[:, 0], together[:, k])


def test_a_class_has_the_best_score_of_its_words() -> None:
    scores = np.array([[0.1, 0.4, 0.2], [0.3, 0.1, 0.9]], np.float32)
    assert class_scores(scores, (0, 0, 1), 2).tolist() == np.array([[0.4, 0.2], [0.3, 0.9]], np.float32).tolist()


def test_the_best_boxes_are_in_the_image_and_above_the_floor() -> None:
    boxes = np.array([[0, 0, 5, 5], [9, 0, 9.4, 9], [1, 1, 4, 4], [0, 0, 9, 9], [2, 2, 8, 8]], np.float32)
    objectness = np.array([0.2, 0.9, 0.5, 0.5, 0.8], np.float32)
    assert best_boxes(boxes, objectness, 3, 0.0).tolist() == [4, 2, 3]
    assert best_boxes(boxes, objectness, 9, 0.3).tolist() == [4, 2, 3]
    assert best_boxes(boxes[:0], objectness[:0], 9, 0.3).tolist() == []
