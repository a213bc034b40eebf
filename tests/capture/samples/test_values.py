"""Texts without pictures, chats, systems' turns and given answers: against a single pass each."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from single_pass import Reference
from text_pass import run_text
from typer.testing import CliRunner

from capture.model.load import load_model
from capture.model.tiny_model import make_tiny_llava
from capture.passes.prompts import least_rows, make_prompts
from capture.recapture import recapture
from capture.samples.queries import read_query_file
from capture.settings import CaptureSettings
from llava_amber_activations import ActivationsError
from llava_amber_activations.cli.app import assemble
from llava_amber_activations.store.samples import Turn

CPU = torch.device("cpu")
LAYERS = 4
TEXT, IMAGE, ANSWER, SYSTEM = 0, 1, 3, 4
COMMENT = "You see badly."
# Of each sample its entry, its prompt as the template has it by hand, and the system's part of it.
CHAT = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "A fox."},
    {"role": "user", "content": "Are you sure?"},
]
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A tree."},
]
MADE = [
    ({"image": "AMBER_1.jpg", "query": "Why?"}, "USER: <image>\nWhy? ASSISTANT:", ""),
    ({"query": "Name three rivers."}, "USER: Name three rivers. ASSISTANT:", ""),
    (
        {"image": "AMBER_2.jpg", "messages": CHAT},
        "USER: <image>\nWho? ASSISTANT: A fox. USER: Are you sure? ASSISTANT:",
        "",
    ),
    ({"image": None, "query": "Sum up, é!"}, "USER: Sum up, é! ASSISTANT:", ""),
    (
        {"image": "AMBER_1.jpg", "messages": SHAREGPT},
        "SYSTEM: Be brief. USER: <image>\nWhat is it? ASSISTANT:",
        "SYSTEM: Be brief. ",
    ),
    (
        {"image": "AMBER_1.jpg", "query": "Where was it?"},
        "USER: <image>\nWhere was it? ASSISTANT:",
        "",
    ),
]
ANSWERS = {4: "A tree."}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_llava(tmp_path_factory.mktemp("model") / "tiny", n_layers=LAYERS)


@pytest.fixture(scope="module")
def single(model):
    return Reference(model)


@pytest.fixture(scope="module")
def capture_entries(make_store, model, image_dir, tmp_path_factory):
    """Function that captures entries, and returns the store."""

    def run(entries, **options):
        folder = tmp_path_factory.mktemp("entries")
        path = folder / "asked.json"
        path.write_text(json.dumps([{"id": 7 + n, **entry} for n, entry in enumerate(entries)]))
        options = {
            "positions": "all",
            "batch_size": 3,
            "chunk_samples": 4,
            "n_targets": 2,
            **options,
        }
        return make_store(folder / "store", model=str(model), dataset=path, **options)

    return run


def records_of(store):
    return [json.loads(line) for line in (store / "samples.jsonl").read_text().splitlines()]


def rows_of(store):
    """Every tensor of a store, all chunks together."""
    chunks = [load_file(path) for path in sorted((store / "chunks").iterdir())]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def check_sample(rows, sample, expected, kinds):
    """Hold a sample's rows against a single pass: tokens, kinds, and every vector."""
    own = rows["sample"] == sample
    assert rows["position"][own].tolist() == list(range(len(expected.input_ids)))
    assert rows["token_id"][own].tolist() == expected.input_ids.tolist()
    assert rows["kind"][own].tolist() == kinds
    for layer in range(LAYERS):
        for name, site in (("x", expected.resid_mid), ("mlp_out", expected.mlp_out)):
            found = rows[f"{name}_{layer:02d}"][own]
            assert torch.allclose(found, site[layer], rtol=1e-3, atol=1e-4), (sample, name, layer)


def kinds_of(expected, system, answer):
    """The kinds of a pass's tokens, one a byte after the first, which begins the text."""
    n_system, n_answer = len(system.encode()), len(answer.encode())
    kinds = [IMAGE if token == 4 else TEXT for token in expected.input_ids.tolist()]
    kinds[1 : 1 + n_system] = [SYSTEM] * n_system
    if n_answer:
        kinds[-n_answer:] = [ANSWER] * n_answer
    return kinds


@pytest.mark.parametrize("reuse_prefix", [False, True])
def test_pictures_texts_and_chats_together(capture_entries, single, image_dir, reuse_prefix):
    """Three samples are on one picture; the same values, whether its prefix is reused or not."""
    store = capture_entries([entry for entry, _, _ in MADE], reuse_prefix=reuse_prefix)
    rows, records = rows_of(store), records_of(store)
    for sample, (entry, prompt, system) in enumerate(MADE):
        picture, answer = entry.get("image"), ANSWERS.get(sample, "")
        expected = run_text(single, prompt, picture and image_dir / picture, answer)
        check_sample(rows, sample, expected, kinds_of(expected, system, answer))
        record = records[sample]
        assert (record["image"], record["prompt"]) == (picture, prompt)
        assert (record["image_sha256"] is None) == (picture is None)
        tokens = [
            t
            for run in record["tokens"]
            for t in ([run] if isinstance(run, str) else [run[0]] * run[1])
        ]
        assert "".join(tokens).replace("<image>" * 4, "<image>") == "<s>" + prompt + answer
        if answer:
            assert record["answer"] == answer and "response" not in record
            assert "".join(tokens[record["response_start"] :]) == answer
        else:
            assert "answer" not in record and "response_start" not in record
    assert [record["query"] for record in records][2] == "Are you sure?"
    assert records[4]["history"] == [{"role": "system", "text": "Be brief."}]


def test_a_system_turn_for_those_that_have_none(capture_entries, single, image_dir):
    store = capture_entries([entry for entry, _, _ in MADE], system=COMMENT)
    rows = rows_of(store)
    for sample, (entry, prompt, own) in enumerate(MADE):
        system = own or f"SYSTEM: {COMMENT} "
        picture, answer = entry.get("image"), ANSWERS.get(sample, "")
        whole = prompt if own else system + prompt
        expected = run_text(single, whole, picture and image_dir / picture, answer)
        check_sample(rows, sample, expected, kinds_of(expected, system, answer))
    recipe = json.loads((store / "capture.json").read_text())
    assert recipe["system"] == COMMENT
    assert recipe["prompt"] == f"SYSTEM: {COMMENT} USER: <image>\n{{query}} ASSISTANT:"


CAPTIONS = ["A cat on a mat.", "Two dogs", "ü", "Nothing at all is here."]


@pytest.fixture(scope="module")
def captions():
    """Entries on one picture and on others, with one answer or several."""
    return [
        {
            "image": f"AMBER_{1 + n // 2}.jpg",
            "query": "Caption it.",
            "captions": [text, "no"] if n else text,
        }
        for n, text in enumerate(CAPTIONS)
    ]


@pytest.mark.parametrize("reuse_prefix", [False, True])
@pytest.mark.parametrize("positions", ["answer", "last", "text"])
def test_given_answers(
    capture_entries, single, image_dir, captions, capsys, positions, reuse_prefix
):
    """Of a list of answers the first; batches of answers of different lengths."""
    options = {"answer_column": "captions", "reuse_prefix": reuse_prefix}
    rows = rows_of(capture_entries(captions, positions=positions, **options))
    assert "3 samples have several answers, of which the first is read" in capsys.readouterr().err
    for sample, text in enumerate(CAPTIONS):
        picture = image_dir / captions[sample]["image"]
        expected = run_text(single, "USER: <image>\nCaption it. ASSISTANT:", picture, text)
        n_all, n_answer = len(expected.input_ids), len(text.encode())
        kept = {
            "answer": range(n_all - n_answer, n_all),
            "last": range(n_all - 1, n_all),
            "text": [n for n in range(n_all - n_answer) if expected.input_ids[n] != 4],
        }[positions]
        own = rows["sample"] == sample
        assert rows["position"][own].tolist() == list(kept)
        found = rows["x_03"][own]
        assert torch.allclose(found, expected.resid_mid[3][list(kept)], rtol=1e-3, atol=1e-4)


def test_plain_text_without_a_template(capture_entries, single):
    """With the token that begins a text, as the tokenizer gives it."""
    texts = ["Call me Ishmael.", "x", "Some years ago, never mind how long"]
    store = capture_entries(
        [{"query": text} for text in texts], prompt_template="none", image_dir=None
    )
    rows = rows_of(store)
    for sample, text in enumerate(texts):
        expected = run_text(single, text)
        assert expected.input_ids[0] == 1  # <s>
        check_sample(rows, sample, expected, [TEXT] * len(expected.input_ids))
    recipe = json.loads((store / "capture.json").read_text())
    assert (recipe["prompt"], recipe["image_processor"] is None) == ("{query}", False)


@pytest.mark.parametrize(
    "options",
    [
        {"system": COMMENT},
        {"system": COMMENT, "positions": "answer"},
        {"positions": "image"},
    ],
)
def test_such_samples_are_captured_again(capture_entries, model, image_dir, options):
    store = capture_entries([entry for entry, _, _ in MADE], **options)
    found = recapture(store, model=str(model), image_dir=image_dir, n_samples=6, seed=0, device=CPU)
    assert found.largest_error < 1e-5
    if "positions" not in options:
        assert found.samples == list(range(6))
        with pytest.raises(ActivationsError, match="sample 0 has a picture: give --image-dir"):
            recapture(store, model=str(model), image_dir=None, n_samples=6, seed=0, device=CPU)


def test_plain_text_is_captured_again(capture_entries, model):
    entries = [{"query": "Call me Ishmael."}, {"query": "x"}]
    store = capture_entries(entries, prompt_template="none", image_dir=None)
    found = recapture(store, model=str(model), image_dir=None, n_samples=2, seed=0, device=CPU)
    assert found.samples == [0, 1] and found.largest_error < 1e-5


@pytest.mark.parametrize("always", [None, "last"])
@pytest.mark.parametrize("positions", ["last", "all", "image", "text", "answer"])
def test_rows_are_known_before_the_model_runs(
    capture_entries, model, captions, tmp_path, positions, always
):
    """Of samples with pictures and answers, with neither, and with a system's turn."""
    entries = [*captions, {"image": None, "query": "Caption nothing.", "captions": "No."}]
    options = {"positions": positions, "always": always, "answer_column": "captions"}
    store = capture_entries(entries, system=COMMENT, **options)
    n_rows = sum(record["n_rows"] for record in records_of(store))
    recipe = json.loads((store / "capture.json").read_text())
    settings = CaptureSettings(
        *(str(model), next(iter(store.parent.glob("*.json"))), None, tmp_path),
        system=COMMENT,
        **options,
    )
    asked = replace(settings.benchmarks[0], image_dir=None)
    queries = [
        replace(query, history=(Turn("system", COMMENT),))
        for query in read_query_file(asked).queries
    ]
    loaded = load_model(str(model), dtype="float32", device=CPU)
    assert least_rows(make_prompts(queries, loaded, None), queries, settings) == n_rows
    assert recipe["answer_column"] == "captions"


def test_what_is_read_must_fit_the_model(capture_entries, captions):
    """Prompt and answer together."""
    with pytest.raises(ActivationsError, match=r"sample 0 has 4\d{3} tokens with its picture and"):
        capture_entries(
            [{**captions[0], "captions": "x" * 4090}], answer_column="captions", on_error="stop"
        )


def test_positions_that_no_sample_has(capture_entries):
    for positions, said in (("answer", "no sample has one: give --answer"), ("image", "pictures")):
        with pytest.raises(ActivationsError, match=said):
            capture_entries([{"query": "?"}], positions=positions, image_dir=None)
    with pytest.raises(ActivationsError, match="names a picture: leave --image-dir out"):
        capture_entries([{"query": "?"}])
    with pytest.raises(ActivationsError, match="holds '<image>'"):
        capture_entries([{"query": "<image>"}], prompt_template="none", image_dir=None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--answer-column", "a", "--positions", "generated"], "--answer-column gives the model"),
        (["--weight", "1"], "--weight goes with several --dataset"),
        (["--dataset", "b.json", "--weight", "1", "--weight", "2", "--weight", "3"], "is given 3"),
        (["--dataset", "b.json", "--image-dir", "a"] * 2 + ["--split", "-"] * 2, "--image-dir is"),
        (["--prompt-template", "raw"], "--prompt-template is chat or none, not 'raw'"),
    ],
)
def test_wrong_usage(options, said):
    command = ["capture", "--model", "m", "--dataset", "a.json", "--output-dir", "store"]
    result = CliRunner().invoke(assemble(), [*command, *options])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())
