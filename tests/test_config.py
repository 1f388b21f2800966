import re
from pathlib import Path

import pytest

from ovseg_batch.config import dump_config, load_config
from ovseg_batch.errors import UsageError


def load(overrides: tuple[str, ...] = (), file: Path | None = None, **environment: str):
    return load_config(file, overrides, environment=environment)


def test_an_unknown_key_is_an_error_that_names_the_nearest_valid_one():
    with pytest.raises(UsageError, match=r"unknown key 'refine\.vot'.*Did you mean 'vote'"):
        load(("refine.vot=0.5",))


def test_an_unknown_section_in_a_file_names_the_file_and_the_nearest_section(tmp_path: Path):
    file = tmp_path / "job.yaml"
    file.write_text("refin: {vote: 0.5}\n")
    with pytest.raises(UsageError, match=r"job\.yaml: unknown key 'refin'.*'refine'"):
        load(file=file)


def test_a_value_out_of_range_says_which_key_and_what_was_given():
    with pytest.raises(UsageError, match=r"refine\.vote.*1\.5"):
        load(("refine.vote=1.5",))


def test_flags_win_over_environment_and_environment_over_the_file(tmp_path: Path):
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
def test_labels_are_read_as_people_write_them(written, names, words):
    labels = load_config(flags={"labels": written}, environment={}).labels
    assert [label.name for label in labels] == names
    assert [label.words for label in labels] == words


def test_commas_between_labels_with_synonyms_are_refused():
    with pytest.raises(UsageError, match="put ';' between labels"):
        load_config(flags={"labels": "car, road, person: person, people"}, environment={})


def test_every_list_of_labels_in_the_readme_is_read_as_it_is_meant():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    written = re.findall(r'--labels "([^"]+)"', readme)
    assert len(written) >= 2
    for text in written:
        assert len(load_config(flags={"labels": text}, environment={}).labels) == 3, text


def test_a_label_named_twice_is_refused():
    with pytest.raises(UsageError, match="'car' twice"):
        load_config(flags={"labels": "car, sky, car"}, environment={})


def test_the_resolved_config_reads_back_equal(tmp_path: Path):
    config = load_config(
        flags={"labels": "person: person, people; sky"}, overrides=("dense.layers=[0.5, 1.0]",), environment={}
    )
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file, environment={}) == config
