"""Annotated words in an answer: their forms, their kin, and which of them are made up."""

import pytest

from builder.labels.amber import AmberLabels, Relations
from builder.labels.lemmas import noun_forms
from builder.labels.mentions import find_mentions, known_words

RELATIONS = Relations(
    {
        "road": ("path", "street"),
        "sky": (),
        "tree": ("leave",),
        "person": ("people", "man"),
        "bin": ("can",),
        "dog": (),
        "ski": (),
        "light": (),
        "bench": ("chair",),
    },
    frozenset({"light"}),
)


def found(text, truth=(), hallu=(), relations=None):
    labels = AmberLabels(truth=tuple(truth), hallu=tuple(hallu))
    mentions = find_mentions(text, labels, known_words(relations))
    assert [text[m.start : m.stop] for m in mentions] == [m.word for m in mentions]
    return [(m.word, m.annotated, m.hallucinated) for m in mentions]


def test_words_of_the_annotation():
    text = "Clouds over a DOG and two wolves; a cat's tail. Dogged cloudiness."
    assert found(text, ["dog", "cat", "wolf"], ["cloud"]) == [
        *(("Clouds", "cloud", True), ("DOG", "dog", False), ("wolves", "wolf", False)),
        ("cat", "cat", False),
    ]
    assert found(text) == []


def test_kin_and_other_objects():
    """As AMBER has it: true, made up, or else an object that is not there; safe words are not."""
    text = "People walk along a street; a chair, a dog and lights under the skies."
    assert found(text, ["road", "person"], ["bench"], RELATIONS) == [
        ("People", "person", False),
        ("street", "road", False),
        ("chair", "bench", True),
        ("dog", None, True),
        ("lights", None, False),
        ("skies", None, True),
    ]
    # What is true of the picture is not made up, whatever else it stands for.
    assert found("a street", ["road"], ["street"], RELATIONS) == [("street", "road", False)]
    assert found("a street", ["street"], ["road"], RELATIONS) == [("street", "street", False)]
    assert found("a chair", [], ["light", "bench"], RELATIONS) == [("chair", "bench", True)]
    assert found("a light", [], ["light"], RELATIONS) == [("light", "light", False)]
    # Without relations, what is not annotated is not known.
    assert found(text, ["road"], ["bench"]) == []


def test_words_of_several_parts():
    """With a space or a hyphen between them; the longer of two; the last in any form."""
    annotated = ["traffic light", "light", "air-conditioning", "cream", "ice cream cone"]
    text = "Traffic\nlights, traffic, light; air conditioning. Ice-cream cones and ice-cream."
    assert found(text, annotated) == [
        ("Traffic\nlights", "traffic light", False),
        ("light", "light", False),
        ("air conditioning", "air-conditioning", False),
        ("Ice-cream cones", "ice cream cone", False),
    ]
    # A part of another word is none.
    assert found("a dog-friendly, sun-lit hotdog; dogs_2", ["dog", "sun"]) == [
        ("dogs", "dog", False)
    ]


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        *(("skies", "sky"), ("leaves", "leaf"), ("knives", "knife"), ("cookies", "cookie")),
        *(("buses", "bus"), ("benches", "bench"), ("potatoes", "potato"), ("lenses", "lens")),
        *(("poles", "pole"), ("shelves", "shelf"), ("glasses", "glass"), ("cows", "cow")),
        *(("women", "woman"), ("children", "child"), ("feet", "foot"), ("oxen", "ox")),
        *(("geese", "goose"), ("mice", "mouse"), ("snowmen", "snowman"), ("cacti", "cactus")),
    ],
)
def test_forms_of_a_noun(plural, singular):
    """Regular and irregular; either stands for the other, whichever is annotated."""
    assert singular in noun_forms(plural)
    assert found(f"Two {plural}", [singular]) == [(plural, singular, False)]
    assert found(f"One {singular}.", [plural]) == [(singular, plural, False)]


@pytest.mark.parametrize(
    "word", ["bare", "lit", "drank", "sank", "lighter", "walking", "bus", "grass"]
)
def test_what_is_no_other_noun(word):
    """Verbs and adjectives whose lemma would be one, and singulars that end as plurals do."""
    assert noun_forms(word) == (word,)


def test_words_that_are_seldom_nouns():
    """`can` and `leave`, which AMBER's vocabulary has; its evaluation tags the parts of speech."""
    text = "You can see them leave the trash can and a can. Leaves fall."
    assert found(text, ["tree"], [], RELATIONS) == [
        *(("can", None, True), ("can", None, True), ("Leaves", "tree", False)),
    ]
