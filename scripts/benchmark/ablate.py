#!/usr/bin/env python
"""The tables of docs/ablations.md: every preset, and what the thesis varied, on held-out scenes.

    ablate.py                        # all of it into docs/ablations.md; again, it goes on where it was
    ablate.py -t presets -t votes    # some of the tables, on the terminal

One manifest, one workdir: what two rows share is computed once. Models are the embedded ones, so what holds here is
shown to hold for the toy world and no further.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from ablations import merging, open_world

from ovseg_batch import datasets, scenes
from ovseg_batch.config import load_config, presets
from ovseg_batch.evaluate.run import evaluate
from ovseg_batch.evaluate.scenes import write_scenes
from ovseg_batch.io.tables import TABLE, read_results
from ovseg_batch.methods.attention import VARIANTS
from ovseg_batch.models.tipsv2_layout import is_tipsv2
from ovseg_batch.runs import pipeline
from ovseg_batch.settings import CORRCLIP, WITH_DINO, Config
from ovseg_batch.stages.base import WORDS_ALONE, methods_of
from ovseg_batch.stages.plans import VIEWS
from ovseg_batch.workdir.store import Workdir

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("mIoU", "boundary F1", "mask AP", "images/s", "SAM2 prompts", "CLIP forwards")

# What presets for photographs set that the embedded models cannot do: their own weights, SAM2's thresholds, words the
# small CLIP was never taught.
EMBEDDED: dict[str, Any] = {
    "labels": "dataset:scenes",
    "background": [],
    "clip.weights": None,
    "sam.model": "demo",
    "propose.predicted_iou": 0.6,
    "propose.stability": 0.7,
    "classify.background": [],
}


@dataclass(frozen=True)
class Claim:
    """The thesis's finding on two rows of a table: `better` is above `worse` in mIoU."""

    text: str
    better: str
    worse: str


@dataclass(frozen=True)
class Table:
    """Rows are a name and settings on top of a preset; the first preset named is that of rows that name none."""

    title: str
    about: str
    rows: Mapping[str, Mapping[str, Any]]
    preset: str = "prompted"
    clip: str = "demo"
    claims: Sequence[Claim] = field(default_factory=tuple)


def preset_rows() -> dict[str, dict[str, Any]]:
    """Every preset except those that need a DINO, an OWLv2, a SAM 3 or a TIPSv2, of which none is embedded."""
    configs = {name: load_config(file, environment={}) for name, file in presets().items()}
    return {
        name: {"preset": name}
        for name, one in configs.items()
        if one.dense.attention not in WITH_DINO
        and not {*methods_of(one)} & {*WORDS_ALONE}
        and not is_tipsv2(one.clip.model)
    }


def dense_and_refined(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every row twice: the dense map alone, and refined."""
    alone = {"refine.method": "none", "refine.output": "semantic"}
    return {
        f"{name}, {kind}": {**settings, **more}
        for name, settings in rows.items()
        for kind, more in (("dense", alone), ("refined", {}))
    }


TABLES = {
    "presets": Table(
        "Presets",
        "Presets on the embedded models, without those that need a DINO, an OWLv2, a SAM 3 or a TIPSv2: `demo` for "
        "dense maps, `demo-token` for masks first. `background` runs without its background words, which the small "
        "CLIP was never taught. `trident` gives SAM2 boxes and rough masks, which the embedded one never saw in "
        "training, so its row shows nothing about Trident.",
        preset_rows(),
    ),
    "attention": Table(
        "Attention",
        "CLIP `demo-image`, trained on images and captions alone. `v2` is the control: MaskCLIP's attention doubled.",
        dense_and_refined(
            {name: {"dense.attention": name} for name in VARIANTS}
            | {
                CORRCLIP: {
                    "dense.attention": CORRCLIP,
                    "propose.points_per_side": 8,
                    "propose.predicted_iou": 0.4,
                    "propose.stability": 0.4,
                }
            }
        ),
        clip="demo-image",
        claims=(
            Claim("correlative attention beats CLIP's own (4.3.5)", "csa, dense", "vanilla, dense"),
            Claim("correlation is what helps, so `csa` beats the doubled control", "csa, dense", "v2, dense"),
        ),
    ),
    "layers": Table(
        "Layers",
        "CLIP `demo-image`; fractions of its six blocks, averaged with equal weights.",
        dense_and_refined(
            {
                "1": {"dense.layers": [1.0]},
                "0.75 + 1": {"dense.layers": [0.75, 1.0]},
                "0.25 + 0.5 + 0.75 + 1": {"dense.layers": [0.25, 0.5, 0.75, 1.0]},
            }
        ),
        clip="demo-image",
        claims=(
            Claim(
                "four depths beat the last block alone by 4.2 (table 4.4)", "0.25 + 0.5 + 0.75 + 1, dense", "1, dense"
            ),
        ),
    ),
    "templates": Table(
        "Templates",
        "CLIP `demo`, refined.",
        {name: {"dense.templates": name} for name in ("simple4", "thesis7", "openai80")},
        claims=(Claim("four templates beat many (4.3.6.3)", "simple4", "openai80"),),
    ),
    "votes": Table(
        "Votes",
        "What a mask of SAM2 needs to be kept: a share of its pixels; 0 the most frequent class; soft the highest mean "
        "probability.",
        {str(vote): {"refine.vote": vote} for vote in (0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, "soft")},
        claims=(Claim("60 % is the best share (3.1.6.2)", "0.6", "0.5"),),
    ),
    "prompts": Table(
        "Prompts",
        "Where masks come from; the same dense map under all.",
        {
            "no SAM2": {"refine.method": "none", "refine.output": "semantic"},
            "prompted, peak": {},
            "prompted, centroid": {"refine.point": "centroid"},
            "guided": {"refine.method": "guided"},
            "trident": {"refine.method": "trident"},
            **{
                f"automatic, {n} × {n}": {"refine.method": "automatic", "propose.points_per_side": n}
                for n in (8, 16, 32)
            },
        },
        claims=(
            Claim("SAM2 refines the dense map (3.1.6)", "prompted, centroid", "no SAM2"),
            Claim("prompted is as good as automatic", "prompted, centroid", "automatic, 32 × 32"),
        ),
    ),
    "scales": Table(
        "Crops: scales",
        "`thesis-proposals` on `demo-token`. Sizes as shares of the model's own 128 pixels, and their weights.",
        {
            "1": {"classify.weights": [1.0, 0.0, 0.0]},
            "1.5": {"classify.weights": [0.0, 1.0, 0.0]},
            "2.29": {"classify.weights": [0.0, 0.0, 1.0]},
            "0.2 + 0.5 + 0.3": {},
            "a third each": {"classify.weights": [0.333, 0.333, 0.333]},
        },
        preset="thesis-proposals",
        clip="demo-token",
        claims=(
            Claim("three sizes beat one (3.2.2.2)", "0.2 + 0.5 + 0.3", "1"),
            Claim("the middle size is the most reliable one (3.2.2.2)", "1.5", "1"),
        ),
    ),
    "denoising": Table(
        "Crops: prompt denoising",
        "`thesis-proposals` on `demo-token`.",
        {
            "none": {"classify.denoising": None},
            "adaptive, at least 0.12": {},
            "adaptive, at least 0.2": {"classify.denoising": 0.2},
        },
        preset="thesis-proposals",
        clip="demo-token",
        claims=(Claim("adaptive denoising triples mIoU (table 4.11)", "adaptive, at least 0.12", "none"),),
    ),
    "top-k": Table(
        "Crops: how many masks a class keeps",
        "`thesis-proposals` on `demo-token`.",
        {str(k): {"classify.top_k": k} for k in (1, 2, 5, "all", "adaptive")},
        preset="thesis-proposals",
        clip="demo-token",
        claims=(Claim("two masks a class beat five (4.3.6.2)", "2", "5"),),
    ),
    "penalty": Table(
        "Crops: size penalty and temperature",
        "`thesis-proposals` on `demo-token`.",
        {
            "penalty, 100": {},
            "no penalty, 100": {"classify.size_penalty": False},
            "no penalty, 20": {"classify.size_penalty": False, "classify.temperature": 20},
            "no penalty, 1": {"classify.size_penalty": False, "classify.temperature": 1},
        },
        preset="thesis-proposals",
        clip="demo-token",
        claims=(
            Claim("a lower score of large masks helps (eq. 4.11)", "penalty, 100", "no penalty, 100"),
            Claim("temperature 100 beats none (table 4.11)", "no penalty, 100", "no penalty, 1"),
        ),
    ),
    "scorer": Table(
        "Crops against mask tokens",
        "Every mask above the threshold is kept, nothing is suppressed.",
        {
            "crops, one size": {},
            "crops, one size, half of the surroundings": {"classify.outside": 0.5},
            "mask tokens": {"classify.scorer": "mask-tokens"},
            "mask tokens, tuned": {"preset": "masqclip"},
        },
        preset="proposals",
        clip="demo-token",
    ),
}


OPEN_WORLD = "open-world"
MERGING = "merging"


@click.command()
@click.option(
    "-t",
    "--table",
    "chosen",
    multiple=True,
    type=click.Choice([*TABLES, MERGING, OPEN_WORLD]),
    help="Only these, on stdout.",
)
@click.option("--images", default=200, show_default=True, help="Held-out scenes.")
@click.option("--first", default=0, show_default=True, help="The first of them; tuning used those from 3000 on.")
@click.option("--root", type=click.Path(path_type=Path), default=ROOT / ".ablations", help="Where the runs live.")
@click.option("--draws", default=20, show_default=True, help="Of labels, for a row of the open world.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting for every row.")
def main(chosen: tuple[str, ...], images: int, first: int, root: Path, draws: int, overrides: tuple[str, ...]) -> None:
    """Run what the tables need and write them."""
    logging.getLogger("ovseg_batch").setLevel(logging.WARNING)
    root = root / f"{first}-{images}"
    if not (root / "images").is_dir():
        write_scenes(root, scenes.HELD_OUT_SEEDS[first : first + images], jpeg_every=0)
    bench = Bench(root, overrides)
    parts = []
    for name in chosen or (*TABLES, MERGING, OPEN_WORLD):
        if name == MERGING:
            part = merging.table(root, overrides)
        else:
            part = open_world.table(root, overrides, draws) if name == OPEN_WORLD else bench.table(TABLES[name])
        parts.append(part)
        click.echo(part)
    if not chosen:
        (ROOT / "docs" / "ablations.md").write_text(page(parts, images), encoding="utf-8")


class Bench:
    """Runs rows in one workdir and measures them."""

    def __init__(self, root: Path, overrides: Sequence[str]) -> None:
        self._root, self._overrides = root, overrides
        self._workdir = Workdir(root / "run")

    def table(self, table: Table) -> str:
        lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
        found = {}
        for name, settings in table.rows.items():
            found[name] = self.measure(self._config(table, settings))
            lines.append(f"| {name} | " + " | ".join(shown(column, found[name][column]) for column in COLUMNS) + " |")
            click.echo(lines[-1], err=True)
        verdicts = [verdict(claim, found) for claim in table.claims]
        return "\n".join([f"## {table.title}", "", table.about, "", *lines, "", *(f"{v}\n" for v in verdicts)])

    def _config(self, table: Table, settings: Mapping[str, Any]) -> Config:
        settings = dict(settings)
        preset = str(settings.pop("preset", table.preset))
        file = presets()[preset]
        first = load_config(file, environment={})
        clip = table.clip if table.clip != "demo" else "demo-token" if first.method == "proposals" else "demo"
        overrides = {**EMBEDDED, "run.workers": 0, "clip.model": clip, **settings}
        if first.classify.tuned:
            overrides["classify.tuned"] = str(ROOT / "checkpoints" / "demo" / "masq.safetensors")
        return load_config(
            file, [*(f"{k}={json.dumps(v)}" for k, v in overrides.items()), *self._overrides], environment={}
        )

    def measure(self, config: Config) -> dict[str, float]:
        """The figures of one run; its stages' own seconds, as they were when they were computed."""
        pipeline.run([str(self._root / "images")], self._workdir, config, progress=False)
        found = evaluate(self._workdir, datasets.load("scenes"), self._root).figures()
        plan = self._workdir.read_plan()
        seconds, prompts, forwards = 0.0, 0, 0
        for store in self._workdir.stores():
            seconds += sum(commit.seconds for commit in store.commits())
            for shard in range(plan["shards"]):
                for line in read_results(store.data_path(shard, TABLE)):
                    prompts += line.get("points", 0)
                    forwards += line.get("windows", 0) * VIEWS[config.dense.views] + line.get("forwards", 0)
        images = found["images"]
        return {
            **found,
            "images/s": images / seconds,
            "SAM2 prompts": prompts / images,
            "CLIP forwards": forwards / images,
        }


def shown(column: str, value: float) -> str:
    return f"{value:.3f}" if column in ("mIoU", "boundary F1", "mask AP") else f"{value:.1f}"


def verdict(claim: Claim, found: Mapping[str, Mapping[str, float]]) -> str:
    better, worse = found[claim.better]["mIoU"], found[claim.worse]["mIoU"]
    result = "Confirmed" if better > worse else "**Not confirmed**"
    return f"Claim: {claim.text}. {result}: {better:.3f} against {worse:.3f}."


def page(parts: Iterable[str], images: int) -> str:
    return f"""# Ablations

`scripts/benchmark/ablate.py` wrote this page on {time.strftime("%Y-%m-%d")}: {images} held-out rendered scenes, the
embedded models, two CPU cores. No setting was chosen on these scenes. mIoU over 20 classes, boundary F1 and COCO's mask
AP (the twelve things) are those of `ovseg-batch eval`. images/s counts the time of the stages, without loading models.
SAM2 prompts and CLIP forwards are means per image. Rendered scenes show little about real weights on photographs: trust
the sign of a difference, not its size. images/s depend on the load of the machine, so compare only rows of one run on
an idle machine.

Lines with "Claim" compare a claim of the thesis, or of the named source, with the rows.

{chr(10).join(parts)}"""


if __name__ == "__main__":
    main()
