"""The text of each token: joined, they are what the tokenizer decodes all of them to."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from capture.passes.token_pieces import token_pieces

IMAGE = 1


def tokenizer_of(vocabulary, decoder, pre_tokenizer=None):
    """A fast tokenizer of `vocabulary`; <s> and <image> are its first tokens."""
    tokens = {token: number for number, token in enumerate(["<s>", "<image>", *vocabulary])}
    backend = Tokenizer(models.BPE(vocab=tokens, merges=[], byte_fallback=True))
    backend.decoder = decoder
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        extra_special_tokens={"image_token": "<image>"},
    )


# As GPT-2's and Llama 3's: every token is bytes.
BYTES = tokenizer_of(
    sorted(pre_tokenizers.ByteLevel.alphabet()),
    decoders.ByteLevel(),
    pre_tokenizers.ByteLevel(add_prefix_space=False),
)
# As Llama 2's and LLaVA-1.5's: words, a mark for a space, bytes for what is no word.
WORDS = tokenizer_of(
    ["▁A", "▁cat", "s", "▁", "\n", ":", *(f"<0x{byte:02X}>" for byte in range(256))],
    decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    ),
)


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["bytes", "words"])
@given(st.data())
def test_joined_they_are_the_decoded_text(tokenizer, data):
    """Of any tokens, those too that make up no text; a token has one piece, a picture's its own."""
    known = st.lists(st.integers(0, len(tokenizer) - 1), max_size=12)
    before, after = data.draw(known), data.draw(known)
    picture = data.draw(st.integers(0, 7))
    ids = [*before, *[IMAGE] * picture, *after]
    pieces = token_pieces(tokenizer, ids, IMAGE)
    assert len(pieces) == len(ids) and "".join(pieces) == decoded(tokenizer, ids)
    # The first of them may bring what those before it owe.
    assert set(pieces[len(before) + 1 : len(before) + picture]) <= {"<image>"}


def test_a_character_of_several_tokens():
    """Is its last token's; a space that a decoder takes away at the beginning is no one's."""
    ids = BYTES("Où 😀!")["input_ids"]
    assert token_pieces(BYTES, ids, IMAGE) == ["O", "", "ù", " ", "", "", "", "😀", "!"]
    assert token_pieces(BYTES, ids[:-2], IMAGE) == ["O", "", "ù", " ", "", "", "�"]
    names = ["▁A", "<s>", *["<image>"] * 3, "▁cat", "s", "<0xC3>", "<0xB9>"]
    ids = WORDS.convert_tokens_to_ids(names)
    expected = ["A", "<s>", *["<image>"] * 3, " cat", "s", "", "ù"]
    assert token_pieces(WORDS, ids, IMAGE) == expected
    # A decoder for which bytes that are no character spoil those beside them.
    ids = WORDS.convert_tokens_to_ids([*names, "<0xF0>"])
    assert token_pieces(WORDS, ids, IMAGE) == [*expected[:-2], "�", "", "��"]


@pytest.mark.parametrize("picture", [1, 3])
def test_a_decoder_that_changes_what_it_has_said(picture):
    """The text is still whole, each character at the token that settles it."""
    decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("n't", " not")])
    tokenizer = tokenizer_of(["do", "n", "'", "t"], decoder)
    ids = tokenizer.convert_tokens_to_ids(["<s>", *["<image>"] * picture, "do", "n", "'", "t"])
    pieces = token_pieces(tokenizer, ids, IMAGE)
    assert pieces == ["<s>", *["<image>"] * picture, "do", "", "", " not"]
    assert "".join(pieces) == decoded(tokenizer, ids)


def test_a_tokenizer_that_is_not_fast():
    """Is asked to decode alone."""
    slow = SimpleNamespace(is_fast=False, decode=BYTES.decode)
    ids = [BYTES.bos_token_id, *[IMAGE] * 4, *BYTES("ù\n")["input_ids"]]
    assert token_pieces(slow, ids, IMAGE) == ["<s>", *["<image>"] * 4, "", "ù", "\n"]


def test_what_a_capture_writes(all_store, last_store, reference, query_file):
    """Prompt and tokens of every sample, whatever is kept of it; ids are those of the rows."""
    for store in (all_store, last_store):
        lines = [json.loads(line) for line in (store / "samples.jsonl").read_text().splitlines()]
        for line, entry in zip(lines, json.loads(query_file.read_text()), strict=True):
            prompt = f"USER: <image>\n{entry['query']} ASSISTANT:"
            assert line["prompt"] == prompt and "response_start" not in line
            items = [item if isinstance(item, list) else [item, 1] for item in line["tokens"]]
            texts = [text for text, times in items for _ in range(times)]
            assert "".join(texts) == "<s>" + prompt.replace("<image>", "<image>" * 4)
            assert ["<image>", 4] in line["tokens"]
            if store == all_store:
                assert len(texts) == line["n_rows"]
