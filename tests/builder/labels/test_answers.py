"""Yes and no, read from what models say; answers from a file."""

import json

import pytest

from builder.labels.answers import answer_of, read_answers
from llava_amber_activations import ActivationsError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("yes.", "yes"),
        ("No, there is no dog in this image.", "no"),
        ("Yes, there is no snow left.", "yes"),
        ("**Yes**, the sky is sunny.", "yes"),
        ('"No."', "no"),
        ("Answer: Yes", "yes"),
        ("The answer is no.", "no"),
        ("The answer to the question is yes, because the sky is blue.", "yes"),
        ("Well, no.", "no"),
        ("Based on the image, yes.", "yes"),
        ("Nope", "no"),
        ("Yeah, two of them.", "yes"),
        ("Not at all.", "no"),
        ("Correct.", "yes"),
        ("Incorrect: the man stands.", "no"),
        ("Certainly not.", "no"),
        ("The cat is on the table. So yes.", "yes"),
        ("I looked at the picture.\n\nNo", "no"),
        ("There is a cat on the table.", "yes"),
        ("There are no people in this image.", "no"),
        ("There isn’t a dog.", "no"),
        ("There's not a single cloud.", "no"),
        ("  \n YES!", "yes"),
        ("(no)", "no"),
        # Neither.
        ("", None),
        ("The sky is blue.", None),
        ("Yes and no.", None),
        ("Yes or no?", None),
        ("It is unclear whether there is a dog; perhaps yes.", None),
        ("I cannot determine this from the image.", None),
        ("No idea.", None),
        ("The answer could be yes. It could be no.", None),
        ("Nobody is here.", None),
        ("Yesterday it rained.", None),
        ("Notice the dog.", None),
        ("A: the nose of a cow", None),
    ],
)
def test_phrasings(text, expected):
    assert answer_of(text) == expected


@pytest.mark.parametrize("name", ["answers.json", "answers.jsonl"])
def test_answers_of_a_file(tmp_path, name):
    entries = [{"id": 3, "response": "Yes"}, {"id": 1, "response": "A cat.\n", "score": 1}]
    lines = "\n".join(map(json.dumps, entries))
    (tmp_path / name).write_text(lines if name.endswith("l") else json.dumps(entries))
    assert read_answers(tmp_path / name) == {3: "Yes", 1: "A cat.\n"}


@pytest.mark.parametrize("entry", [{}, {"response": None}, {"response": ["Yes"]}])
def test_an_answer_without_text(tmp_path, entry):
    (tmp_path / "answers.json").write_text(json.dumps([{"id": 7, **entry}]))
    with pytest.raises(ActivationsError, match=r"^'response' of id 7 in .*, no text$"):
        read_answers(tmp_path / "answers.json")
