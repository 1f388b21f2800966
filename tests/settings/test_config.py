import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ovseg_batch.config import dump_config, load_config
from ovseg_batch.errors import OvsegError, UsageError
from ovseg_batch.models import zoo
from ovseg_batch.settings import Config
from ovseg_batch.settings.errors import dotted_keys


def load(overrides: tuple[str, ...] = (), file: Path | None = None, **environment: str) -> Config:
    return load_config(file, overrides, environment=environment)


def test_an_unknown_key_is_an_error_that_names_the_nearest_valid_one() -> None:
    for wrong, right in (
        ("refine.vot", "'refine.vote'"),
        ("vote", "'refine.vote'"),
        ("vot", "'refine.vote'"),
        ("sam.weight", "'sam.weights'"),
        ("segment.vote", "'refine.vote'"),
        (
            "model",
            "'clip.model', 'sam.model', 'dino.model', 'owl.model', 'sam3.model', 'edit.alpha.model' or 'inpaint.model'",
        ),
        ("refine.batch_size", "'inpaint.batch_size' or 'run.batch_size'"),
    ):
        with pytest.raises(UsageError, match=rf"unknown key .*Did you mean {right}\? Valid here: "):
            load((f"{wrong}=0.5",))


def test_an_unknown_section_in_a_file_names_the_file_and_the_nearest_section(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("refin: {vote: 0.5}\n")
    with pytest.raises(UsageError, match=r"job\.yaml: unknown key 'refin'.*'refine'"):
        load(file=file)


PYDANTIC = re.compile(
    r"Input should|Value error|type=|valid (string|tuple|dictionary|integer)|instance of|permitted|ctx"
)
WRONG: tuple[Any, ...] = (
    "nonsense",
    -1e9,
    1e12,
    0.123,
    7,
    True,
    [],
    ["nonsense", -1e9],
    [{"nonsense": 1}],
    {"nonsense": -1e9},
    {"nonsense": [1]},
    float("nan"),
    float("inf"),
    None,
)


def leaves(model: type[BaseModel]) -> list[str]:
    keys = list(dotted_keys(model))
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]


@pytest.mark.parametrize("key", leaves(Config))
def test_every_wrong_value_is_explained_in_plain_words(key: str) -> None:
    refused = 0
    for value in WRONG:
        try:
            load_config(None, flags={key: value}, overrides=[f"{key}=null"] if value is None else [], environment={})
        except UsageError as error:
            refused += 1
            shown = str(error)
            assert not PYDANTIC.search(shown), shown
            problems = shown.splitlines()[1:]
            assert problems
            for line in problems:
                assert line.strip().startswith(key.partition(".")[0]), line
                assert "Allowed: " in line or "is missing" in line or "Valid here: " in line or OWN.search(line), line
    assert refused


OWN = re.compile("names no layer|is no colour|give one weight for each scale|exactly one {} each")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("refine: {vote: x}", "refine.vote: 'x' is not allowed. Allowed: a number (at least 0, at most 1) or soft."),
        (
            "refine: {method: promted}",
            "refine.method: 'promted' is not allowed. Did you mean 'prompted'? "
            "Allowed: prompted, guided, trident, trident-map, automatic, regions or none.",
        ),
        ("inpaint: {size: 65}", "Allowed: a whole number (at least 64, a multiple of 8) or null."),
        ("run: {allow_remote: maybe}", "run.allow_remote: 'maybe' is not allowed. Allowed: true or false."),
        ("dense: {layers: [1, 2]}", "dense.layers, entry 2: 2 is not allowed. Allowed: a number (above 0, at most 1)."),
        (
            "background: [3]",
            "background: [3] is not allowed. Allowed: a list (each entry: text), auto, none or common.",
        ),
        ("edit: {prompts: {cat: 3}}", "edit.prompts.cat: 3 is not allowed. Allowed: text. If it is a word, write"),
        ("edit: {keep: 3}", "edit.keep: 3 is not allowed. Allowed: a list (each entry: text)."),
        ("edit: {fill: {colour: blurple}}", "edit.fill.colour: is no colour; write a CSS name such as white, or #rr"),
        ("edit: {fill: 3}", "'edit.fill' is a section with the keys kind, colour, colour_below, blur, image, not 3."),
        (
            "labels: [{name: cat, synonim: [x]}]",
            "labels, entry 1 (cat): unknown key 'synonim'. Did you mean 'synonyms'? Valid here: name, synonyms, ",
        ),
        ("labels: {cat: {treshold: 1}}", "labels, entry 1 (cat): unknown key 'treshold'. Did you mean 'threshold'?"),
        (
            "labels: [sky, {name: cat, threshold: 3}]",
            "labels, entry 2 (cat), threshold: 3 is not allowed. Allowed: a",
        ),
        ("labels: [{synonyms: [x]}]", "labels, entry 1: the key 'name' is missing."),
        ("labels: [yes]", "labels, entry 1: True is not allowed. Allowed: text, or a section with the keys name"),
        ("labels: {cat: 3}", "labels, entry 1 (cat), synonyms: 3 is not allowed. Allowed: a list (each entry: text)."),
        ("labels: 3", "labels: 3 is not allowed. Allowed: a list"),
    ],
)
def test_a_message_names_the_key_the_value_and_what_is_allowed(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(file=file)
    assert message in str(caught.value)
    assert not PYDANTIC.search(str(caught.value))


def test_an_empty_section_of_a_file_is_filled_by_options(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("edit:\n  fill:\n")
    assert load(("edit.fill.blur=0.5",), file).edit.fill.blur == 0.5


def test_variables_that_are_no_settings_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    load(OVSEG_HOME="/opt/ovseg", OVSEG_VOTE="0.5", OVSEG_METHOD="dense", OVSEG_CACHE="/tmp")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "warning: the environment variable OVSEG_HOME is no setting and is ignored.",
        "warning: the environment variable OVSEG_VOTE is no setting and is ignored. Did you mean OVSEG_REFINE__VOTE?",
    ]
    with pytest.raises(
        UsageError, match=r"\$OVSEG_REFINE__VOT: unknown key 'refine\.vot'.*Did you mean 'refine\.vote'"
    ):
        load(OVSEG_REFINE__VOT="0.5")


def test_a_value_out_of_range_says_which_key_and_what_was_given() -> None:
    with pytest.raises(UsageError, match=r"refine\.vote.*1\.5"):
        load(("refine.vote=1.5",))


def test_flags_win_over_environment_and_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("refine: {vote: 0.1, min_distance: 7}\n")
    assert load(file=file, OVSEG_REFINE__VOTE="0.2").refine.vote == 0.2
    both = load(("refine.vote=0.3",), file, OVSEG_REFINE__VOTE="0.2")
    assert (both.refine.vote, both.refine.min_distance) == (0.3, 7)


@pytest.mark.parametrize(
    ("written", "names", "words"),
    [
        ("car, road , sky", ["car", "road", "sky"], [("car",), ("road",), ("sky",)]),
        ("person: person, people; sky", ["person", "sky"], [("person", "people"), ("sky",)]),
        ("traffic light", ["traffic light"], [("traffic light",)]),
    ],
)
def test_labels_are_read_as_people_write_them(written: str, names: list[str], words: list[tuple[str, ...]]) -> None:
    labels = load_config("demo", flags={"labels": written}, environment={}).labels
    assert [label.name for label in labels] == names
    assert [label.words for label in labels] == words


def test_commas_between_labels_with_synonyms_are_refused() -> None:
    with pytest.raises(UsageError, match="put ';' between labels"):
        load_config("demo", flags={"labels": "car, road, person: person, people"}, environment={})


def test_every_list_of_labels_in_the_readme_is_read_as_it_is_meant() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    written = re.findall(r'--labels "([^"]+)"', readme)
    assert len(written) >= 2
    for text in written:
        assert len(load_config("demo", flags={"labels": text}, environment={}).labels) == 3, text


def test_a_label_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="'car' twice"):
        load_config("demo", flags={"labels": "car, sky, car"}, environment={})


def test_the_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(
        flags={"labels": "person: person, people; sky"}, overrides=("dense.layers=[0.5, 1.0]",), environment={}
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file, environment={}) == config


def test_a_file_builds_on_a_preset_or_on_another_file(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text("extends: guided\nrefine: {vote: 0.5}\nlabels: [car, road]\n")
    job = tmp_path / "jobs" / "job.yaml"
    job.parent.mkdir()
    job.write_text("extends: ../team.yaml\nsam: {model: sam2.1-tiny}\nlabels: {dog: [dog, puppy]}\n")
    config = load_config(job, environment={})
    guided = load_config("guided", environment={})
    assert config.refine == guided.refine.model_copy(update={"vote": 0.5})
    assert (config.sam.model, config.clip) == ("sam2.1-tiny", guided.clip)
    assert [label.name for label in config.labels] == ["dog"], "labels replace those of the file below"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("extends: gided", "no config file gided.*Did you mean 'guided'"),
        ("extends: [demo, guided]", "names one preset or file"),
        ("extends: job.yaml", "leads back to a file that extends it"),
        (f"extends: {'a' * 300}", "cannot be a path: it has [0-9]+ characters"),
    ],
)
def test_what_cannot_be_extended_is_an_error(written: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(written)
    with pytest.raises(UsageError, match=message):
        load_config(file, environment={})


@pytest.mark.parametrize("name", ["a" * 300, f"local-dir:{'a' * 300}", f"hf-hub:a/{'a' * 300}", "d/" * 2500, "a\0b"])
@pytest.mark.parametrize("key", ["clip.model", "sam.model", "inpaint.model"])
def test_a_model_that_cannot_be_a_file_is_refused(key: str, name: str) -> None:
    resolve_model: dict[str, Callable[[Config], object]] = {
        "clip.model": lambda config: zoo.resolve("clip", config.clip.model),
        "sam.model": lambda config: zoo.resolve("sam", config.sam.model),
        "inpaint.model": lambda config: zoo.resolve_inpainting(config.inpaint.model),
    }
    with pytest.raises(OvsegError):
        resolve_model[key](load_config(flags={key: name}, environment={}))


@pytest.mark.parametrize("name", ["a" * 300, "d/" * 2500, "a\0b"])
@pytest.mark.parametrize(
    "key", ["classify.tuned", "refine.bank", "clip.weights", "sam.weights", "edit.fill.image", "run.metrics_file"]
)
def test_a_path_that_no_file_can_have_is_refused(key: str, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{key}: cannot be a path"):
        load_config(flags={key: name}, environment={})


def test_the_default_is_prompted_with_models_for_photographs() -> None:
    default, prompted = load_config(environment={}), load_config("prompted", environment={})
    assert default.model_copy(update={"about": prompted.about}) == prompted
