"""Labels as people type them: several options, files, and texts that cannot be labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovseg_batch import scenes
from ovseg_batch.config import load_config
from ovseg_batch.errors import UsageError
from ovseg_batch.settings.labels import format_labels, read_labels, split_names
from tests.conftest import Command


def names(*texts: str) -> list[str]:
    labels = read_labels(texts)
    assert isinstance(labels, list)
    return [label["name"] for label in labels]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_texts_add_up_in_order() -> None:
    assert names("sky, tree", "person: person, people; car", "road") == ["sky", "tree", "person", "car", "road"]


@pytest.mark.parametrize(
    "text",
    [
        "sky, wide road",
        "sky, wide road,",
        "sky, wide road;",
        "sky; wide road\n",
        " ;sky,\n wide road ;; ",
        "sky\uff0cwide road",
        "sky\uff1bwide road\u3001",
        "\"sky\", 'wide road'",
        "\u201csky\u201d; \u00abwide road\u00bb",
    ],
)
def test_two_labels_are_two_labels_however_they_are_typed(text: str) -> None:
    assert names(text) == ["sky", "wide road"]
    assert [label.name for label in load_config("demo", flags={"labels": text}).labels] == ["sky", "wide road"]


def test_commas_separate_labels_beside_one_with_synonyms() -> None:
    found = read_labels(['sky, grass; person\uff1aperson, "people"'])
    assert isinstance(found, list)
    assert [(label["name"], label["synonyms"]) for label in found] == [
        ("sky", ()),
        ("grass", ()),
        ("person", ("person", "people")),
    ]


@pytest.mark.parametrize("twins", [["car", "Car"], ["caf\u00e9", "CAF\u00c9"], ["\u2460", "1"]])
def test_labels_that_differ_in_form_alone_are_refused(twins: list[str]) -> None:
    with pytest.raises(UsageError, match="differ in capitals or the form of letters alone"):
        load_config("demo", flags={"labels": twins})
    assert [label.name for label in load_config("demo", flags={"labels": "cafe\u0301"}).labels] == ["caf\u00e9"]


@pytest.mark.parametrize("value", ["[yes, sky]", "[sky, 1]", "[0.5]", "{no: [dog]}"])
def test_values_of_yaml_are_no_labels(value: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"extends: demo\nlabels: {value}\n")
    with pytest.raises(
        UsageError, match=r"labels, entry \d.* is not allowed\. Allowed: text.* If it is a word, write it in quotes\."
    ):
        load_config(tmp_path / "job.yaml")


@pytest.mark.parametrize("text", ["labels.txt", "@labels.txt", "@words", "@{here}/words"])
def test_a_file_holds_one_label_a_line(text: str, here: Path) -> None:
    for name in ("labels.txt", "words"):
        (here / name).write_bytes(
            "# street scenes\r\n\r\nperson: person, people\r\n  caf\u00e9 \r\n".encode("utf-8-sig")
        )
    labels = read_labels([text.format(here=here), "sky"])
    assert isinstance(labels, list)
    assert [(label["name"], label["synonyms"]) for label in labels] == [
        ("person", ("person", "people")),
        ("caf\u00e9", ()),
        ("sky", ()),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@lables.txt", r"there is no file lables\.txt\. Did you mean 'labels\.txt'\?"),
        ("lables.txt", r"there is no file lables\.txt\. Did you mean 'labels\.txt'\?"),
        ("@two.txt", r"two\.txt line 2: 'car, road' holds 2 labels\. Write one label a line"),
        ("@colon.txt", r"colon\.txt line 1: put ';' between labels"),
        ("@comments.txt", r"comments\.txt holds no label"),
        ("@latin.txt", r"latin\.txt is not UTF-8 text"),
        ("@folder", r"cannot read folder: Is a directory"),
        ("labels.txt, sky", r"a file of labels such as labels\.txt stands alone"),
        ("sky; @labels.txt", r"a file of labels such as @labels\.txt stands alone"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(text: str, message: str, here: Path) -> None:
    (here / "labels.txt").write_text("sky\n")
    (here / "two.txt").write_text("sky\ncar, road\n")
    (here / "colon.txt").write_text("car, person: people\n")
    (here / "comments.txt").write_text("# nothing\n")
    (here / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (here / "folder").mkdir()
    with pytest.raises(UsageError, match=message):
        read_labels([text])


@pytest.mark.parametrize(
    "text", ["photos", "photos/", "./photos", "sky; photos/", "cat.jpg", "sky, cat.jpg", "dog", ".."]
)
def test_a_label_that_names_a_file_or_folder_is_refused(text: str, here: Path) -> None:
    (here / "photos").mkdir()
    (here / "cat.jpg").write_bytes(b"")
    (here / "dog").write_bytes(b"")
    with pytest.raises(UsageError, match=r"is the name of a (file|folder)\. .* If it is a label, write --labels"):
        read_labels([text])


def test_words_that_are_also_folders_can_be_labels(here: Path) -> None:
    """Photographs are often sorted into folders that have the names of labels."""
    for name in ("cat", "dog"):
        (here / name).mkdir()
    assert names("cat; dog") == ["cat", "dog"]
    assert names("cat: cat") == ["cat"]
    assert names("w" * 5000) == ["w" * 5000]
    assert [label.name for label in load_config(flags={"labels": ["cat"]}, environment={}).labels] == ["cat"]


def test_every_source_of_the_setting_reads_files(here: Path) -> None:
    (here / "labels.txt").write_text("sky\ntree\n")
    (here / "job.yaml").write_text("labels: labels.txt\n")
    for config in (
        load_config(here / "job.yaml", environment={}),
        load_config(None, ["labels='@labels.txt'"], environment={}),
        load_config(None, environment={"OVSEG_LABELS": "labels.txt"}),
        load_config(None, flags={"labels": "labels.txt"}, environment={}),
    ):
        assert [label.name for label in config.labels] == ["sky", "tree"]


def test_an_empty_text_is_not_the_same_as_no_text() -> None:
    """An unset shell variable must not bring back the labels of a preset."""
    assert read_labels([]) is None
    assert load_config(Path("anonymise"), flags={"labels": read_labels([""])}, environment={}).labels == ()


def test_a_data_set_stands_alone() -> None:
    assert read_labels(["dataset:voc21"]) == "dataset:voc21"
    assert load_config(None, flags={"labels": ["dataset:voc21"]}) == load_config(
        None, flags={"labels": "dataset:voc21"}
    )
    with pytest.raises(UsageError, match="dataset:voc21 has its own background"):
        load_config(None, flags={"labels": ["zebra", "dataset:voc21"]})
    with pytest.raises(UsageError, match="dataset:voc21 has its own background"):
        read_labels(["dataset:voc21", "zebra"])


def test_formatted_labels_read_back() -> None:
    text = "person: person, people; sky"
    labels = load_config(flags={"labels": text}, environment={}).labels
    assert format_labels((label.name, label.synonyms) for label in labels) == text


def test_names_are_split_at_commas_and_semicolons() -> None:
    assert split_names(["sky, tree; road", "tree"]) == ("sky", "tree", "road")


# --- the command line ---


def test_repeated_options_of_a_run_add_up(few_scenes: Path, tmp_path: Path, command: Command) -> None:
    first, *others = scenes.CLASSES
    keep = ("--edit", "cutout", "--keep", first, "--keep", f"{others[0]}; {others[1]}")
    image = next((few_scenes / "images").iterdir())
    arguments = ("-o", tmp_path / "run", "--labels", first, "--labels", ", ".join(others), *keep)
    done = command("run", image, *arguments)
    assert done.returncode == 0, done.stderr
    written = load_config(tmp_path / "run" / "config.yaml", environment={})
    assert [label.name for label in written.labels] == list(scenes.CLASSES)
    assert written.edit.keep == (first, others[0], others[1])


def test_repeated_options_of_an_export_add_up(run_of_six: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "masks.json"
    done = command("export", run_of_six, "-f", "coco", "-o", path, "--labels", "sky", "--labels", "grass; tree")
    assert done.returncode == 0, done.stderr
    assert {one["name"] for one in json.loads(path.read_text())["categories"]} == {"sky", "grass", "tree"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "{images}", "-o", "{out}", "--labels", "sky", "tree"),
        ("run", "-o", "{out}", "--labels", "sky", "{images}", "tree"),
        ("query", "{run}", "-o", "{out}", "--labels", "sky", "tree"),
        ("bank", "use", "{run}", "--bank", "b.parquet", "-o", "{out}", "--labels", "sky", "tree"),
        ("export", "{run}", "-f", "csv", "-o", "{out}", "--labels", "sky", "tree"),
    ],
)
def test_labels_without_quotes_are_explained(
    arguments: tuple[str, ...], few_scenes: Path, run_of_six: Path, tmp_path: Path, command: Command
) -> None:
    places = {"images": few_scenes / "images", "run": run_of_six, "out": tmp_path / "out"}
    done = command(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 2
    assert 'labels need quotes, as in --labels "sky; tree"' in done.stderr
    assert not (tmp_path / "out").exists()
