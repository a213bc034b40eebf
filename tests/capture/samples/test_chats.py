"""What entries ask, in both forms that data sets have chats in, and what cannot be asked."""

import hashlib
import json

import datasets
import pytest
from transformers import AutoProcessor

from capture.model.tiny_model import make_tiny_llava
from capture.passes.inputs import render_prompt, system_spans, token_ids
from capture.samples.chats import asked_of
from capture.samples.hf_dataset import read_dataset
from capture.samples.queries import Query, read_query_file
from capture.settings import BenchmarkAsked
from llava_amber_activations import ActivationsError
from llava_amber_activations.store.samples import Turn


def turns(*roles):
    return [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "is 3, which is neither a text nor a list of turns"),
        ([], "neither a text nor a list of turns"),
        (["hello"], "turn 0 of it is 'hello', which is not a turn"),
        ([{"role": "tool", "content": "x"}], "which is not a turn"),
        ([{"role": "user", "content": None}], "which is not a turn"),
        ([{"from": "human"}], "which is not a turn"),
        (turns("system"), "has turns of system: after"),
        (turns("assistant", "user"), "has turns of assistant, user"),
        (turns("user", "user"), "has turns of user, user"),
        (turns("user", "system", "user"), "has turns of user, system, user"),
        ([*turns("user"), {"role": "assistant", "content": " "}], "is empty"),
    ],
)
def test_chats_that_are_none(value, said):
    with pytest.raises(ActivationsError, match=said):
        asked_of(value, False, "it")


@pytest.mark.parametrize(
    ("text", "has_picture", "expected"),
    [
        ("<image>\nWhat?", True, "What?"),
        ("What?\n<image>", True, "What?"),
        ("Look: <image> here", True, "Look:  here"),
        ("<image>\nWhat?", False, "<image>\nWhat?"),
        ("\nWhat?\n", True, "\nWhat?\n"),
    ],
)
def test_the_place_of_the_picture_is_taken_out(text, has_picture, expected):
    """In the first of the user's turns, and there alone."""
    chat = [
        {"from": "system", "value": "Be <image> brief."},
        {"from": "human", "value": text},
        {"from": "gpt", "value": "So."},
        {"from": "human", "value": "And <image>?"},
    ]
    asked = asked_of(chat, has_picture, "it")
    assert asked.history == (
        Turn("system", "Be <image> brief."),
        Turn("user", expected),
        Turn("assistant", "So."),
    )
    assert (asked.query, asked.answer) == ("And <image>?", None)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"query": "?"}, "entry 0 of .* lacks the key 'answer'"),
        ({"query": "?", "answer": []}, "'answer' of entry 0 of .* is \\[\\], which is neither"),
        ({"query": "?", "answer": 3}, "'answer' of entry 0 of .* is 3, which is neither a text"),
        ({"query": "?", "answer": "\n"}, "'answer' of entry 0 of .* is empty"),
        ({"messages": turns("user", "assistant"), "answer": "x"}, "another: end the chat"),
        ({"image": 3, "query": "?", "answer": "x"}, "'image' of entry 0 of .* is 3, not str"),
    ],
)
def test_entries_that_give_no_answer(tmp_path, entry, said):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"id": 1, **entry}))
    with pytest.raises(ActivationsError, match=said):
        read_query_file(BenchmarkAsked(path, answer_column="answer"))


def test_other_keys_are_other_queries(tmp_path):
    """A store that was begun with one key is not gone on with by another."""
    path = tmp_path / "q.json"
    entries = [{"id": 1, "image": "1.jpg", "query": "Why?", "picture": "2.jpg", "asked": "Who?"}]
    path.write_text(json.dumps(entries))
    usual = read_query_file(BenchmarkAsked(path))
    other = read_query_file(BenchmarkAsked(path, image_column="picture", query_column="asked"))
    assert usual.queries == [Query(0, 1, "1.jpg", "Why?")]
    assert other.queries == [Query(0, 1, "2.jpg", "Who?")]
    aside = read_query_file(BenchmarkAsked(path, image_column="-"))
    assert aside.queries == [Query(0, 1, None, "Why?")]
    assert usual.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len({usual.sha256, other.sha256, aside.sha256}) == 3


@pytest.fixture(scope="module")
def chats_folder(tmp_path_factory):
    """A dataset of chats of ShareGPT's form, with several answers each, and no picture."""
    folder = tmp_path_factory.mktemp("hf") / "chats"
    folder.mkdir()
    chat = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]
    rows = {
        "conversations": [[*chat, {"from": "human", "value": f"And {n}?"}] for n in range(3)],
        "replies": [[f"You {n}.", "Nobody."] for n in range(3)],
        "text": [f"Text {n}" for n in range(3)],
    }
    datasets.Dataset.from_dict(rows).to_parquet(str(folder / "train.parquet"))
    return folder


def test_chats_and_answers_of_a_dataset(chats_folder):
    """A dataset without pictures needs no option to say so."""
    asked = BenchmarkAsked(
        f"hf:{chats_folder}", query_column="conversations", answer_column="replies"
    )
    entries, _, pictures = read_dataset(asked)
    assert pictures is None and entries.n_first_of_several == 3
    history = (Turn("user", "Who?"), Turn("assistant", "I."))
    assert entries.queries == [
        Query(n, n, None, f"And {n}?", history=history, answer=f"You {n}.") for n in range(3)
    ]
    without = BenchmarkAsked(f"hf:{chats_folder}", query_column="conversations")
    assert read_dataset(without)[0].sha256 != entries.sha256


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"query_column": "replies"}, "'replies' of .* does not hold texts: choose .*--query"),
        (
            {"query_column": "text", "answer_column": "conversations"},
            "'conversations' of .* does not hold texts: choose one with --answer-column",
        ),
        (
            {"query_column": "text", "answer_column": "x"},
            "no column 'x'.*choose with --answer-column",
        ),
        ({"query_column": "text", "image_column": "text"}, "does not hold pictures"),
        ({"query_column": "text", "image_column": "x"}, "leave the pictures aside with --image-c"),
    ],
)
def test_columns_of_something_else(chats_folder, columns, said):
    with pytest.raises(ActivationsError, match=said):
        read_dataset(BenchmarkAsked(f"hf:{chats_folder}", **columns))


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return AutoProcessor.from_pretrained(
        make_tiny_llava(tmp_path_factory.mktemp("model") / "tiny", n_layers=1)
    )


USER_TURNS = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] }}: "
    "{% for part in m['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}\n{% endif %}{% endfor %}assistant:"
)
ROLES_REFUSED = "{{ raise_exception('System role not supported') }}"
# Of Gemma's kind, and of Pixtral's older one: the system's text stands in a user's turn.
IN_THE_FIRST = (
    "{% set s = messages[0]['content'][0]['text'] + '\n\n' if messages[0]['role'] == 'system' "
    "else '' %}{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>"
    "{{ s if loop.first }}{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)
IN_THE_LAST = IN_THE_FIRST.replace("loop.first", "loop.last")
# Of Qwen2-VL's kind: where no system's turn is given, it writes one.
ITS_OWN = (
    "{% if messages[0]['role'] != 'system' %}[system]You help.[end]{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}[end]{% endfor %}"
)
CHAT = Query(
    *(0, 0, "1.jpg", "And?"),
    history=(Turn("system", "Be brief."), Turn("user", "Who?"), Turn("assistant", "I.")),
)


@pytest.mark.parametrize(
    ("template", "said"),
    [(USER_TURNS, "leaves out the system's turn"), (ROLES_REFUSED, "refuses a chat of system, u")],
)
def test_templates_without_a_place_for_it(processor, monkeypatch, template, said):
    monkeypatch.setattr(processor, "chat_template", template)
    with pytest.raises(ActivationsError, match=said):
        render_prompt(processor, CHAT.chat)


@pytest.mark.parametrize(
    ("template", "system"),
    [
        (IN_THE_FIRST, "Be brief.\n\n"),
        (IN_THE_LAST, "Be brief.\n\n"),
        # What differs from its own: not the full stop, which both have.
        (ITS_OWN, "Be brief"),
        (ITS_OWN.replace("You help.", ""), "Be brief."),
    ],
)
def test_where_the_system_turn_is(processor, monkeypatch, template, system):
    """By the text at those positions, the tokens of the tiny model being bytes."""
    monkeypatch.setattr(processor, "chat_template", template)
    ids = token_ids(processor, CHAT.chat)
    image = ids.index(4)
    more = 7  # tokens that the picture has beyond the one that stands for it
    (span,) = system_spans(processor, [CHAT], [len(ids) + more], 4)
    expanded = [*ids[:image], *[4] * (1 + more), *ids[image + 1 :]]
    assert processor.tokenizer.decode(expanded[span.start : span.stop]) == system
