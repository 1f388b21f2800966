"""The lexicon: which common words compete with a label, and which are left out because of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from build_lexicon import DATA, WORDNET, WordNet
from build_lexicon import lexicon as built
from hypothesis import given
from hypothesis import strategies as st

from ovseg_batch import lexicon
from ovseg_batch.datasets import load
from ovseg_batch.errors import UsageError
from ovseg_batch.lexicon import LabelWords, compete, relations

PERSON = "person face hand hair clothes shoe hat"


def left_out(*phrases: str) -> set[str]:
    """The words that a label with these phrases leaves out."""
    return set(compete([LabelWords(phrases[0], phrases)]).left_out.get(phrases[0], ()))


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("dog", "dog animal face hair"),
        ("golden retriever", "dog animal face hair"),
        ("puppy", "dog animal face hair"),
        ("kitten", "cat animal face hair"),
        ("mustang", "horse animal face hair"),  # in WordNet only the horse
        ("jaguar", "animal face hair"),  # a big cat is no cat of WordNet's first sense
        ("bat", "animal face hair"),  # its clubs are rare in WordNet's texts; "baseball bat" is another noun
        ("crane", "bird animal face hair"),  # the machine lifts, but WordNet does not call it a machine
        ("mouse", "animal face hair"),  # or the device, which has no relations
        ("computer mouse", ""),
        ("women", PERSON),
        ("face", "face person animal dog cat bird horse cow sheep fish insect"),
        ("tail", "animal dog cat bird horse cow sheep fish"),
        ("finger", "person hand"),
        ("sleeve", "person clothes"),
        ("yacht", "boat vehicle"),
        ("palm", "palm tree plant leaf hand person"),  # the tree, or of the hand
        ("vehicle", "vehicle car truck bus train bicycle motorcycle boat airplane wheel window roof"),
        ("car", "car vehicle wheel window roof"),
        ("wheel", "wheel vehicle car truck bus train bicycle motorcycle airplane"),
        ("shoe", "shoe clothes person"),  # footwear is clothing
        ("boot", "shoe person"),  # WordNet's boot is another footwear, that is no clothing
        ("T-shirt", "clothes person"),
        ("apple", "food fruit plant tree"),  # WordNet's fruit trees have their fruit as a part
        ("orange", "food fruit plant tree leaf"),  # WordNet's texts have the tree too
        ("broccoli", "food vegetable plant leaf"),
        ("pizza", "food"),
        ("hot dog", "food bread meat"),  # not the daredevil, and no dog
        ("glass", "glass window"),  # the material and the vessel
        ("wine glass", "glass"),
        ("plant", "plant tree bush grass flower leaf"),
        ("tree", "tree plant leaf"),
        ("forest", "tree ground"),  # in WordNet, land with trees
        ("table", "table furniture"),
        ("sofa", "sofa furniture pillow"),
        ("bed", "bed furniture pillow blanket house"),
        ("bank", ""),  # of a river; WordNet's bank building is rare
        ("house", "house building wall floor ceiling roof window door stairs bed shelf toilet"),
        ("river", "water"),
        ("sky", "sky cloud"),
        ("laptop", "computer machine screen keyboard"),
        ("television", "screen"),
    ],
)
def test_a_label_leaves_out_what_it_is_its_kinds_and_its_parts(phrase: str, words: str) -> None:
    assert left_out(phrase) == set(words.split()) & set(lexicon.words())


@pytest.mark.parametrize("animal", ["cat", "dog", "sheep", "cow", "bird", "horse"])
def test_rare_senses_of_an_animal_leave_nothing_out(animal: str) -> None:
    """WordNet's cat is also a guy, its dog a sausage, its bird a shuttlecock."""
    assert not left_out(animal) & {"person", "food", "meat", "toy", "ball", "clothes", "fabric"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dog", "Dogs"),
        ("dog", "  DOG "),
        ("woman", "women"),
        ("person", "people"),
        ("wine glass", "wine glasses"),
        ("wine glass", "wine-glass"),
        ("wine glass", "Wine_Glasses"),
        ("traffic light", "trafficlights"),
        ("mouse", "mice"),
        ("knife", "knives"),
        ("bus", "buses"),
        ("leaf", "leaves"),
        ("bench", "benches"),
        ("berry", "berries"),
        ("fireman", "firemen"),
    ],
)
def test_case_spacing_and_plural_do_not_matter(one: str, other: str) -> None:
    assert left_out(one) and left_out(one) == left_out(other)


def test_what_only_looks_like_a_plural_is_none() -> None:
    assert left_out("glass") == {"glass", "window"}
    assert left_out("grass") == {"grass", "plant", "leaf"}
    assert left_out("gas") == {"sky", "cloud"} and "metal" in left_out("Ga")  # gallium
    assert {"person", "glass"} <= left_out("glasses")  # the spectacles, or several of glass


@pytest.mark.parametrize(
    ("phrase", "head"),
    [
        ("golden fluffy dog", "dog"),
        ("the dog", "dog"),
        ("man in a hat", "man"),
        ("man wearing a blue shirt", "man"),
        ("cup of tea", "cup"),
        ("piece of pizza", "pizza"),
        ("two slices of pizza", "pizza"),
        ("flock of birds", "bird"),
        ("old fire truck", "fire truck"),
        ("building-other", "building"),  # COCO-Stuff
        ("sky-other", "sky"),
    ],
)
def test_a_phrase_stands_for_its_head_noun(phrase: str, head: str) -> None:
    assert relations(head) and relations(phrase) == relations(head)


def test_words_before_the_head_noun_do_not_compete() -> None:
    assert left_out("toy car") == left_out("car") | {"toy"}
    assert {"wall", "brick"} <= left_out("wall-brick")
    assert left_out("crack in a wall") == set()  # the wall is what the crack is to be distinguished from


def test_a_phrase_that_wordnet_has_is_no_phrase_about_its_last_word() -> None:
    assert "dog" not in left_out("prairie dog") and "animal" in left_out("prairie dog")
    assert left_out("hair drier") == left_out("fire hydrant") == set()


def test_an_unknown_word_leaves_out_nothing() -> None:
    competition = compete([LabelWords("zorgblat", ("zorgblat",))])
    assert competition.words == lexicon.words() and competition.left_out == {}


def test_all_phrases_of_a_label_count_but_not_its_name() -> None:
    assert left_out("sofa", "couch") == {"sofa", "furniture", "pillow"}
    assert left_out("pet", "dog", "cat") >= {"dog", "cat", "animal"}
    assert compete([LabelWords("dog", ("zorgblat",))]).left_out == {}


def test_words_are_left_out_by_label_and_kept_in_order() -> None:
    competition = compete(
        [LabelWords("dog", ("dog",)), LabelWords("cat", ("cat",)), LabelWords("zorgblat", ("zorgblat",))]
    )
    assert competition.left_out == {"dog": ("face", "hair", "animal", "dog"), "cat": ("face", "hair", "animal", "cat")}
    gone = {"face", "hair", "animal", "dog", "cat"}
    assert competition.words == tuple(word for word in lexicon.words() if word not in gone)


def test_a_user_allows_words_for_a_label() -> None:
    competition = compete([LabelWords("lesion", ("lesion",), allow=("hands", "Face"))])
    assert competition.left_out == {"lesion": ("face", "hand")}


def test_a_user_requires_words_to_compete() -> None:
    labels = [LabelWords("dog", ("dog",), compete=("animals", "wolf")), LabelWords("horse", ("horse",))]
    competition = compete(labels)
    assert "animal" in competition.words and competition.words[-1] == "wolf"
    assert competition.left_out == {"dog": ("face", "hair", "dog"), "horse": ("face", "hair", "horse")}


def test_a_required_word_competes_against_every_label_but_not_with_itself() -> None:
    labels = [
        LabelWords("puppy", ("puppy",), compete=("dog",)),
        LabelWords("dog", ("dog",)),
        LabelWords("x", ("x",), allow=("cat",)),
    ]
    assert "dog" not in compete(labels).words
    assert "dog" not in compete([LabelWords("pet", ("dogs",), compete=("dog",))]).words
    labels = [LabelWords("zorgblat", ("zorgblat",), compete=("zorgblats",))]
    assert compete(labels).words == lexicon.words()
    labels = [LabelWords("x", ("zorgblat",), compete=("cat",)), LabelWords("y", ("blatzorg",), allow=("cat",))]
    assert "cat" in compete(labels).words and compete(labels).left_out == {}


def test_a_word_that_cannot_be_allowed_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"'vechicle' in allow is not a competing word\. Did you mean 'vehicle'"):
        compete([LabelWords("car", ("car",), allow=("vechicle",))])
    with pytest.raises(UsageError, match="'sky' both in allow and in compete"):
        compete([LabelWords("car", ("car",), allow=("sky",), compete=("Sky",))])


def test_the_order_of_labels_does_not_matter() -> None:
    labels = [
        LabelWords("dog", ("dog",), compete=("wolf", "animal")),
        LabelWords("car", ("car",), compete=("van",)),
        LabelWords("a", ("a",)),
    ]
    assert compete(labels) == compete(labels[::-1])


@pytest.mark.parametrize(("dataset", "most"), [("coco-object", 8), ("ade20k", 12), ("coco-stuff", 12)])
def test_a_class_leaves_out_its_own_word_and_few_others(dataset: str, most: int) -> None:
    """The largest: a person with face, hand, clothes; a house with the parts of the building and of its rooms."""
    listed = set(lexicon.words())
    for name in load(dataset).classes:
        out = left_out(name)
        assert len(out) <= most, (name, out)
        assert {name} & listed <= out


def test_all_classes_of_a_data_set_leave_words_that_compete() -> None:
    classes = load("voc20").classes
    competition = compete([LabelWords(name, (name,)) for name in classes])
    assert {"sky", "tree", "wall", "road", "water", "cup"} <= set(competition.words)
    assert not {"animal", "vehicle", "furniture", "person"} & set(competition.words)


def test_the_list_is_short_and_each_word_is_itself() -> None:
    assert 100 <= len(lexicon.words()) <= 110  # encoding a word takes half a second of CPU time
    assert len(set(lexicon.words())) == len(lexicon.words())
    for word in lexicon.words():
        assert relations(word)[word] == "same"


def test_relations_go_both_ways() -> None:
    """A label "car" leaves out "vehicle" and the other way round, for all words of the list."""
    for one in lexicon.words():
        for other in relations(one):
            assert one in relations(other), (one, other)


@given(st.lists(st.tuples(st.text(), st.lists(st.text(), max_size=3)), max_size=4))
def test_no_text_is_an_error(labels: list[tuple[str, list[str]]]) -> None:
    competition = compete([LabelWords(name, (name, *phrases)) for name, phrases in labels])
    gone = {word for out in competition.left_out.values() for word in out}
    assert set(competition.words) | gone == set(lexicon.words()) and not gone & set(competition.words)


@given(st.lists(st.sampled_from("a red of in dog dogs glass other wine cup men - light traffic".split()), min_size=1))
def test_a_phrase_leaves_out_what_it_is_in_any_spelling(tokens: list[str]) -> None:
    assert relations(" ".join(tokens)) == relations("_".join(tokens).upper())


def test_the_lexicon_loads_without_torch() -> None:
    code = "import sys; from ovseg_batch import lexicon; lexicon.relations('dog'); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_the_licence_accompanies_the_data() -> None:
    folder = Path(lexicon.__file__).parent
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in (folder / "LICENSE.wordnet").read_text()
    assert (folder / "words.txt").stat().st_size < 700_000


@pytest.mark.skipif(not (WORDNET / "data.noun").is_file(), reason="needs the Debian package wordnet-base")
def test_the_shipped_data_are_what_the_script_writes() -> None:
    assert built(WordNet(WORDNET)) == DATA.read_text(encoding="utf-8")
