#!/usr/bin/env python
"""Write ovseg_batch/lexicon/words.txt: the competing words and what each is to the nouns of WordNet 3.0.

Relations. A word of the list stands for one or more synsets. To a noun it is, by WordNet's own pointers:

- `same`: they share a synset.
- `broader` or `narrower`: one is under the other in the hypernym tree. Instances (names of cities) do not count.
- `part` or `whole`: meronyms of any kind and their meronyms. A thing has the parts of its hypernyms too: the wheel
  is a part of the wheeled vehicle, so it is a part of the car. Parts of all organisms ("cell") are not inherited.
  A general term also has the parts of its narrower terms: the tail is a part of some animals.

`NARROWER`, `NOT_NARROWER`, `PARTS` and `NO_PARTS` correct WordNet's pointers.

Usual senses. WordNet has rare senses: a cat is also a guy, a dog a sausage. Only the usual senses of a noun count:

1. Names of individuals (instances, such as the writer Crane) are dropped.
2. If a sense is something that can be seen (`VISIBLE` lexicographer files), the others are dropped.
3. Of the rest, the first counts, and every sense whose tag count (cntlist.rev) is at least a quarter of the largest.
4. If none has a tag count, their order means little: all count, but a sense that is a person only if all are.
5. `USUAL` overrides the rule for nouns that photographs use otherwise than WordNet's tagged texts do. The words of the
   list mean the same as labels and as competing words: a plant is no factory.

Needs WordNet's data files (Debian: `apt-get install wordnet-base`).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import click

DATA = Path(__file__).parents[2] / "ovseg_batch" / "lexicon" / "words.txt"
WORDNET = Path("/usr/share/wordnet")

# One word a line, with the senses that it covers as lemma.number; without any, its first sense.
WORDS = """
sky
cloud: cloud.1 cloud.2
mountain: mountain.1 hill.1
tree
bush
grass
flower: flower.1 flower.2
leaf
plant: plant.2
rock: rock.1 rock.2 stone.2 gravel.1
sand
snow: snow.1 snow.2
ground: ground.1 ground.3 soil.2
water: water.1 water.2
sea: sea.1 ocean.1
road
sidewalk
railroad track
wall
floor
ceiling
building
house
roof: roof.1 roof.2
window: window.1 window.2 window.6
door: door.1 doorway.1
stairs: stairs.1 stairway.1 step.4
fence
bridge
pole: pole.1 post.4
sign: sign.2 sign.4
traffic light
statue: statue.1 sculpture.1
flag
wood
metal: metal.1 metal.2
brick
glass: glass.1 glass.2
fabric
paper: paper.1 paper.4 newspaper.1 newspaper.3
plastic
person
face
hand
hair
clothes: clothing.1 clothes.1
shoe: shoe.1 footwear.1 footwear.2
hat: hat.1 headdress.1
bag: bag.1 bag.4 bag.6
umbrella
vehicle
car
truck
bus
train: train.1 car.2
bicycle
motorcycle
boat: boat.1 ship.1 vessel.2
airplane
wheel
animal
dog
cat
bird: bird.1 poultry.1
horse
cow: cow.1 cattle.1
sheep
fish
insect
food: food.1 food.2
fruit
vegetable
bread
meat
cake: cake.3
plate: plate.4
bowl: bowl.1 bowl.3
cup: cup.1 mug.4
bottle
knife: knife.1 knife.2
pot: pot.1 pan.1 pot.4
box
furniture
table: table.2 table.3
chair
sofa
bed
shelf
cabinet: cabinet.1 cupboard.1 wardrobe.1
lamp: lamp.1 lamp.2 light.2
mirror
picture: picture.1 picture.2 picture.5 photograph.1 poster.1
pillow: pillow.1 cushion.3
blanket: blanket.1 bedclothes.1
curtain: curtain.1 blind.3
carpet: carpet.1 mat.1
screen: screen.1 screen.3 television.3 monitor.4 monitor.5 display.6
computer
keyboard
phone
clock: clock.1 watch.1
stove: stove.1 oven.1
refrigerator
sink
toilet: toilet.2
machine
book: book.1 book.2
toy
ball: ball.1 ball.6
"""

# Nouns whose usual senses in photographs are not those that rules 1 to 4 find.
USUAL = """
background.2
bark.1
boxer.1 boxer.4
bulletin_board.2
camper.2
cardinal.4
case.5
chip.4
coach.5
cushion.3
drone.1 drone.4
egg.2
fan.1
foot.1 foot.4
fur.2
hood.6 hood.8 hood.9
kite.3 kite.4
leg.1 leg.2
microwave.2
monarch.2
monitor.4 monitor.5
mouse.1 mouse.4
napkin.1
noodle.1
palm.1 palm.3
perch.5 perch.6
pike.2 pike.5
pitcher.2
poster.1
railroad.2
railway.2
roll.7
seal.9
sheet.2 sheet.3
skin.1
skunk.4
wardrobe.1
"""

# `broader: narrower`, where WordNet has another tree: its bus is public transport, its kitten a young mammal.
NARROWER = """
vehicle.1: bus.1 train.1
cat.1: kitten.1
sheep.1: lamb.1
cow.1: calf.1
horse.1: foal.1 colt.1
person.1: human.1 people.1
"""

# `broader: narrower` that photographs show apart: in WordNet, humans are animals and railway lines are roads.
NOT_NARROWER = """
hominid.1: human.1
road.1: rail_line.1
"""

# `whole: parts` that a mask in a photograph includes and WordNet lacks. Holds for the narrower terms of both, and for
# the parts of the parts.
PARTS = """
person.1: clothing.1 clothes.1 footwear.2 spectacles.1
person.1: body.1 head.1 hair.1 face.1 neck.1 torso.1 arm.1 leg.1 hand.1 foot.1 skin.1
animal.1: head.1 hair.1 face.1 neck.1 leg.2 foot.4 fur.2
bus.1: wheel.1
train.1: wheel.1 window.2
truck.1: window.2
airplane.1: wheel.1 window.2
tree.1: leaf.1 branch.2
plant.2: leaf.1 branch.2
forest.2: tree.1
vegetation.1: plant.2
lawn.1: grass.1
meadow.1: grass.1
grassland.1: grass.1
bed.1: bedclothes.1 pillow.1
sofa.1: cushion.3
building.1: door.1
"""

# A part in WordNet, not in photographs: what lies on a table, and herbs by their edible parts.
NO_PARTS = """
table.2: tableware.1
herb.1: vegetable.1
"""

VISIBLE = {3, 5, 6, 8, 13, 15, 17, 18, 19, 20, 27}  # numbers as in WordNet's lexnames(5WN)
PERSON = 18
TOPS = 3  # the most general synsets of WordNet: organism, animal, plant, food
USUAL_SHARE = 4  # a sense is usual if its tag count is at least the largest one over this

MERONYMS = ("%m", "%s", "%p")
HOLONYMS = ("#m", "#s", "#p")
KINDS = ("same", "broader", "narrower", "whole", "part")  # the first that holds is written


class WordNet:
    """The nouns of WordNet: synsets by their offset in data.noun, and the senses of each lemma.

    A lemma is in lower case with `_` between its words, a synset an offset such as "02084071".
    """

    def __init__(self, folder: Path) -> None:
        self.senses: dict[str, list[str]] = {}
        self.counts: dict[tuple[str, int], int] = {}
        self.file: dict[str, int] = {}
        self.pointers: dict[str, dict[str, list[str]]] = {}
        for fields in _rows(folder / "index.noun"):
            self.senses[fields[0]] = fields[-int(fields[2]) :]
        for fields in _rows(folder / "data.noun"):
            self.file[fields[0]] = int(fields[1])
            first = 5 + 2 * int(fields[3], 16)  # the number of lemmas, in hexadecimal, comes before them
            pointers: dict[str, list[str]] = defaultdict(list)
            for at in range(first, first + 4 * int(fields[first - 1]), 4):
                if fields[at + 2] == "n":
                    pointers[fields[at]].append(fields[at + 1])
            self.pointers[fields[0]] = pointers
        for key, number, count in _rows(folder / "cntlist.rev"):
            lemma, _, rest = key.partition("%")
            if rest.startswith("1:"):
                self.counts[lemma, int(number)] = int(count)
        self.exceptions = {plural: bases for plural, *bases in _rows(folder / "noun.exc")}

    def synsets(self, senses: Iterable[str]) -> list[str]:
        """Return the synsets of senses such as "mouse.4"."""
        pairs = (sense.rsplit(".", 1) for sense in senses)
        return [self.senses[lemma][int(number) - 1] for lemma, number in pairs]

    def closure(self, start: Iterable[str], pointers: Iterable[str]) -> set[str]:
        """Return `start` and every synset that the pointers reach from it."""
        found, pending = set(start), list(start)
        while pending:
            here = self.pointers[pending.pop()]
            new = {there for pointer in pointers for there in here.get(pointer, ())} - found
            found |= new
            pending += new
        return found

    def unlink(self, one: str, other: str, there: Iterable[str], back: Iterable[str]) -> None:
        """Remove the pointers `there` from one synset to the other, and those `back`."""
        for source, target, pointers in ((one, other, there), (other, one, back)):
            for pointer in pointers:
                self.pointers[source][pointer] = [s for s in self.pointers[source].get(pointer, ()) if s != target]

    def usual(self, lemma: str) -> list[str]:
        """Return the synsets of the usual senses of a lemma (see the module's docstring)."""
        numbered = [(n, s) for n, s in enumerate(self.senses[lemma], 1) if "@i" not in self.pointers[s]]
        visible = [(n, s) for n, s in numbered if self.file[s] in VISIBLE] or numbered
        counts = [self.counts.get((lemma, n), 0) for n, _ in visible]
        if not any(counts):
            return [s for _, s in visible if self.file[s] != PERSON] or [s for _, s in visible]
        least = max(counts) / USUAL_SHARE
        return [s for at, (_, s) in enumerate(visible) if at == 0 or counts[at] >= least]


class Relations:
    """The synsets to which a word of the list is the same, broader, narrower, a part or a whole."""

    def __init__(self, net: WordNet, extra: list[tuple[str, str]]) -> None:
        self.net = net
        self.extra = [
            (net.closure([whole], ["~"]), net.closure(net.closure([part], ["~"]), ["%p"])) for whole, part in extra
        ]

    def of(self, synsets: list[str]) -> dict[str, set[str]]:
        """Return, for each kind, the synsets to which a word with these synsets has that relation."""
        net, own = self.net, set(synsets)
        above, below = net.closure(own, ["@"]), net.closure(own, ["~"])
        inherited = own | {s for s in above if net.file[s] != TOPS}
        parts = net.closure(inherited, MERONYMS) | net.closure(below, ["%p"])
        holders = net.closure(own, HOLONYMS) - own
        wholes = net.closure({s for s in holders if net.file[s] != TOPS}, ["~"]) | holders
        wholes |= net.closure(net.closure(own, ["#p"]) - own, ["@"])
        for whole, part in self.extra:
            parts |= part if own & whole else set()
            wholes |= whole if own & part else set()
        return {"same": own, "broader": below, "narrower": above, "whole": parts, "part": wholes}


def lexicon(net: WordNet) -> str:
    """Return the text of words.txt, whose layout ovseg_batch/lexicon/__init__.py describes."""
    entries = {word: net.synsets(senses.split() or [f"{_lemma(word)}.1"]) for word, senses in _entries(WORDS)}
    for broader, narrower in _pairs(net, NARROWER):
        net.pointers[broader].setdefault("~", []).append(narrower)
        net.pointers[narrower].setdefault("@", []).append(broader)
    for broader, narrower in _pairs(net, NOT_NARROWER):
        net.unlink(broader, narrower, ["~"], ["@"])
    for whole, part in _pairs(net, NO_PARTS):
        net.unlink(whole, part, MERONYMS, HOLONYMS)
    relations = Relations(net, _pairs(net, PARTS))
    by_synset: dict[str, dict[str, str]] = defaultdict(dict)
    for word, synsets in entries.items():
        for kind, related in relations.of(synsets).items():
            for synset in related:
                by_synset[synset].setdefault(word, kind)  # kinds come in falling order
    usual = {line.split(".")[0]: net.synsets(line.split()) for line in USUAL.strip().splitlines()}
    usual |= {_lemma(word): synsets for word, synsets in entries.items()}
    signatures = {
        lemma: _signature([by_synset[s] for s in usual.get(lemma) or net.usual(lemma) if s in by_synset], entries)
        for lemma in net.senses
        if f"genus_{_split(lemma)[0]}" not in net.senses or "_" not in lemma  # no label is "Canis familiaris"
    }
    for lemma, signature in list(signatures.items()):
        if not signature and not (_visible(net, lemma) and _hides_another(lemma, signatures)):
            del signatures[lemma]
    return _text(list(entries), _exceptions(net, signatures), signatures)


def _rows(path: Path) -> Iterable[list[str]]:
    """Yield the fields of every line of a WordNet file, without licence and glosses."""
    with path.open(encoding="utf-8") as lines:
        yield from (line.partition(" | ")[0].split() for line in lines if not line.startswith(" "))


def _entries(text: str) -> list[tuple[str, str]]:
    """Split lines `key: values`."""
    return [(key, values.strip()) for key, _, values in (line.partition(":") for line in text.strip().splitlines())]


def _pairs(net: WordNet, text: str) -> list[tuple[str, str]]:
    """Return the synsets of lines `one: others` as pairs."""
    return [(net.synsets([one])[0], other) for one, others in _entries(text) for other in net.synsets(others.split())]


def _signature(relations: list[dict[str, str]], words: Iterable[str]) -> str:
    """Join what every word is to a lemma: "broader animal, same dog"."""
    related = {word for one in relations for word in one}
    kinds = {word: min((one[word] for one in relations if word in one), key=KINDS.index) for word in related}
    return ", ".join(f"{kinds[word]} {word}" for word in words if word in related) if related else ""


def _visible(net: WordNet, lemma: str) -> bool:
    return any(net.file[synset] in VISIBLE for synset in net.senses[lemma])


def _lemma(word: str) -> str:
    return word.replace(" ", "_")


@functools.cache
def _split(lemma: str) -> list[str]:
    return lemma.replace("-", "_").split("_")


def _hides_another(lemma: str, signatures: dict[str, str]) -> bool:
    """Return whether a lemma without relations ends in one that has some: a computer mouse is no animal."""
    words = _split(lemma)
    return any(signatures.get("_".join(words[at:])) for at in range(1, len(words)))


def _exceptions(net: WordNet, signatures: dict[str, str]) -> dict[str, str]:
    """Return irregular plurals and their singular, of single words that end a lemma with relations."""
    last = {_split(lemma)[-1] for lemma in signatures}
    return {
        plural: base
        for plural, bases in sorted(net.exceptions.items())
        for base in bases[:1]
        if base in last and plural.isalpha()
    }


def _text(words: list[str], exceptions: dict[str, str], signatures: dict[str, str]) -> str:
    groups: dict[str, list[str]] = defaultdict(list)
    for lemma, signature in sorted(signatures.items()):
        groups[signature].append(lemma.replace("_", " "))
    sections = [
        ("words", words),
        ("plurals", [f"{plural} {base}" for plural, base in exceptions.items()]),
        *sorted(groups.items()),
    ]
    return "".join(f"= {title}\n" + "".join(f"{line}\n" for line in lines) for title, lines in sections)


@click.command()
@click.option(
    "--wordnet",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=WORDNET,
    show_default=True,
    help="Folder of WordNet 3.0's data files.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DATA,
    help="File to write. [default: ovseg_batch/lexicon/words.txt]",
)
def main(wordnet: Path, out: Path) -> None:
    """Write the lexicon's data from WordNet."""
    out.write_text(lexicon(WordNet(wordnet)), encoding="utf-8")


if __name__ == "__main__":
    main()
