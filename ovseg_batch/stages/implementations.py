"""The classes that compute the stages. Importing this module imports the model libraries."""

from __future__ import annotations

from collections.abc import Callable

from ovseg_batch.stages.base import Stage
from ovseg_batch.stages.classify import ClassifyStage
from ovseg_batch.stages.dense import DenseStage
from ovseg_batch.stages.detect.classify import ClassifyBoxesStage
from ovseg_batch.stages.detect.stage import DetectStage
from ovseg_batch.stages.edit.stage import EditStage
from ovseg_batch.stages.embed import EmbedStage
from ovseg_batch.stages.encode import EncodeStage
from ovseg_batch.stages.fused import FusedStage
from ovseg_batch.stages.merge.stage import MergeStage
from ovseg_batch.stages.propose import ProposeStage
from ovseg_batch.stages.refine.stage import RefineStage
from ovseg_batch.stages.sam3.settle import SettleStage
from ovseg_batch.stages.sam3.stage import Sam3Stage, TokensStage

STAGES: dict[str, Callable[..., Stage]] = {
    "propose": ProposeStage,
    "encode": EncodeStage,
    "dense": DenseStage,
    "refine": RefineStage,
    "fused": FusedStage,
    "embed": EmbedStage,
    "classify": ClassifyStage,
    "detect": DetectStage,
    "classify-boxes": ClassifyBoxesStage,
    "tokens": TokensStage,
    "sam3": Sam3Stage,
    "settle": SettleStage,
    "merge": MergeStage,
    "edit": EditStage,
}
