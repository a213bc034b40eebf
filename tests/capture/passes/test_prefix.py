"""Prefix reuse: many queries on one picture, the picture computed once, the values the same."""

import json
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)
from transformers.utils import generic

from capture.model.load import load_model
from capture.passes import prefix
from capture.passes.inputs import all_token_ids
from capture.passes.prefix import prefix_problem
from capture.passes.preparation import plan_batches
from capture.passes.prompts import Prompts
from capture.run import capture
from capture.samples.queries import read_queries
from capture.settings import CaptureSettings
from llava_amber_activations import ActivationsError

# Which picture, and what is asked: four on the first, three on the second, one on the third.
ASKED = (
    (1, "Is there a cat?"),
    (1, "Is the sky sunny in this image?"),
    (2, "Why?"),
    (1, "Count."),
    (3, "Is there a cat?"),
    (2, "Is there a direct contact between the two people?"),
    (1, "Is there a cat?"),
    (2, "Who took it?"),
)


@pytest.fixture(scope="module")
def shared_queries(tmp_path_factory):
    """Query file whose samples share pictures."""
    path = tmp_path_factory.mktemp("queries") / "shared.json"
    entries = [
        {"id": number, "image": f"AMBER_{picture}.jpg", "query": query}
        for number, (picture, query) in enumerate(ASKED)
    ]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def passes(reference, image_dir):
    """The independent pass of every sample."""
    return [reference.run(image_dir / f"AMBER_{n}.jpg", query) for n, query in ASKED]


def tensors_of(store):
    parts = [load_file(path) for path in sorted((store / "chunks").iterdir())]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture
def token_counts(monkeypatch):
    """How many tokens each forward pass of the language model had, after `check_sites`."""
    counts = []
    original = prefix.run_prefixed

    def run(inputs, model, taps, choice, **options):
        language_model = model.body.get_submodule("language_model")
        handle = language_model.register_forward_pre_hook(
            lambda module, args, kwargs: counts.append(tuple(kwargs["inputs_embeds"].shape[:2])),
            with_kwargs=True,
        )
        try:
            return original(inputs, model, taps, choice, **options)
        finally:
            handle.remove()

    monkeypatch.setattr("capture.sink.chunk.run_prefixed", run)
    return counts


@pytest.mark.parametrize(
    ("mode", "batch_size"),
    [("last", None), ("last", 3), ("all", 1), ("all", 3), ("image", 3), ("text", None)],
)
def test_equals_the_independent_pass(
    make_store, shared_queries, passes, tmp_path, mode, batch_size
):
    """Every mode, with batches of whole groups, of parts of them, and of one query."""
    found = tensors_of(
        make_store(
            tmp_path / "store",
            dataset=shared_queries,
            positions=mode,
            reuse_prefix=True,
            batch_size=batch_size,
            chunk_samples=8,
        )
    )
    keep = {
        "last": lambda ids: [len(ids) - 1],
        "all": lambda ids: list(range(len(ids))),
        "image": lambda ids: [n for n, token in enumerate(ids) if token == 4],
        "text": lambda ids: [n for n, token in enumerate(ids) if token != 4],
    }[mode]
    rows = [(s, p) for s, one in enumerate(passes) for p in keep(one.input_ids.tolist())]
    assert list(zip(found["sample"].tolist(), found["position"].tolist(), strict=True)) == rows
    assert found["token_id"].tolist() == [int(passes[s].input_ids[p]) for s, p in rows]
    for layer in range(32):
        for name, site in ((f"x_{layer:02d}", "resid_mid"), (f"mlp_out_{layer:02d}", "mlp_out")):
            expected = torch.stack([getattr(passes[s], site)[layer][p] for s, p in rows])
            error = (found[name] - expected).norm(dim=1) / expected.norm(dim=1)
            assert error.max() < 1e-4


@pytest.mark.parametrize("site", ["resid_pre", "mlp_in"])
def test_on_and_off_are_alike_at_other_sites(make_store, shared_queries, tmp_path, site):
    options = {"dataset": shared_queries, "positions": "all", "x_site": site, "chunk_samples": 4}
    off = tensors_of(make_store(tmp_path / "off", reuse_prefix=False, **options))
    on = tensors_of(make_store(tmp_path / "on", reuse_prefix=True, **options))
    assert on.keys() == off.keys()
    for name, tensor in off.items():
        if tensor.dtype == torch.int32:
            assert torch.equal(on[name], tensor)  # kind, patch_row and patch_col among them
        else:
            assert torch.allclose(on[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_picture_is_computed_once(make_store, shared_queries, token_counts, tmp_path):
    """Two prefixes of 11 tokens, seven suffixes; the picture with one query goes the plain way."""
    make_store(tmp_path / "store", dataset=shared_queries, batch_size=8, chunk_samples=8)
    longest = max(len(f"\n{query} ASSISTANT:") for picture, query in ASKED if picture != 3)
    # <s>, "USER: ", four patches; a token a byte.
    assert token_counts == [(2, 1 + 6 + 4), (7, longest)]


def test_image_positions_need_no_query(make_store, shared_queries, token_counts, tmp_path):
    make_store(tmp_path / "store", dataset=shared_queries, positions="image", batch_size=8)
    assert token_counts and all(n_tokens == 11 for _, n_tokens in token_counts)


def test_off_by_default_where_no_picture_is_shared(make_store, token_counts, tmp_path, monkeypatch):
    """Not even tried."""
    monkeypatch.setattr("capture.opening.prefix_problem", None)
    make_store(tmp_path / "store")
    assert token_counts == []


def test_sampled_positions(make_store, shared_queries, tmp_path):
    """The draw is of the sample alone, so it is that of the plain path."""
    options = {"dataset": shared_queries, "positions": "all", "sample_positions": 5, "seed": 3}
    on = tensors_of(make_store(tmp_path / "on", reuse_prefix=True, **options))
    off = tensors_of(make_store(tmp_path / "off", reuse_prefix=False, **options))
    assert torch.equal(on["position"], off["position"]) and len(on["position"]) == 40
    assert torch.allclose(on["x_31"], off["x_31"], rtol=1e-3, atol=1e-4)


def test_unreadable_pictures(make_store, shared_queries, image_dir, tmp_path):
    """Every sample of the picture is skipped, each with its own reason; the others are right."""
    images = tmp_path / "images"
    images.mkdir()
    for path in image_dir.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "AMBER_2.jpg").write_bytes(b"not a picture")
    options = {"dataset": shared_queries, "image_dir": images, "chunk_samples": 8}
    store = make_store(tmp_path / "store", on_error="skip", **options)
    lines = [json.loads(line) for line in (store / "samples.jsonl").read_text().splitlines()]
    assert [line["n_rows"] for line in lines] == [1, 1, 0, 1, 1, 0, 1, 0]
    assert all(f"of sample {n} cannot be read" in lines[n]["error"] for n in (2, 5, 7))
    with pytest.raises(ActivationsError, match="sample 2 cannot be read"):
        make_store(tmp_path / "stop", on_error="stop", **options)


def test_two_ranks_make_the_same_bytes(make_store, shared_queries, tmp_path, tiny_llava, image_dir):
    """Which queries share a prefix is decided within a chunk, whoever makes it."""
    one = make_store(tmp_path / "one", dataset=shared_queries)
    settings = CaptureSettings(
        **{"model": str(tiny_llava), "dataset": shared_queries, "image_dir": image_dir},
        **{"output_dir": tmp_path / "two", "batch_size": 5, "chunk_samples": 3},
    )
    for rank in (1, 0):
        capture(settings, device=torch.device("cpu"), rank=rank, world_size=2)
    for path in sorted((one / "chunks").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / "chunks" / path.name).read_bytes()


def test_batches_of_groups(tiny_llava, shared_queries):
    """Whole groups share a batch while they fit; one too large for any is cut."""
    queries, _ = read_queries(shared_queries)
    processor = AutoProcessor.from_pretrained(tiny_llava)
    ids = all_token_ids(processor, [query.chat for query in queries])
    prompts = Prompts({query.sample: ids[query.chat] for query in queries})

    def plans(size):
        return [
            ([query.sample for query in plan.queries], plan.shared)
            for plan in plan_batches(0, queries, prompts, size, 4)
        ]

    assert plans(8) == [([0, 1, 3, 6, 2, 5, 7], True), ([4], False)]
    assert plans(4) == [([0, 1, 3, 6], True), ([2, 5, 7], True), ([4], False)]
    assert plans(3) == [([0, 1, 3], True), ([6], True), ([2, 5, 7], True), ([4], False)]


def test_a_prompt_that_begins_with_the_query(tiny_llava, shared_queries, make_store, tmp_path):
    """Said where it was asked for; otherwise the plain way is taken."""
    processor = AutoProcessor.from_pretrained(tiny_llava)
    processor.chat_template = (
        "{% for part in messages[0]['content'] if part['type'] == 'text' %}{{ part['text'] }}"
        "{% endfor %} <image> ASSISTANT:"
    )
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_llava.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    processor.save_pretrained(model)
    with pytest.raises(ActivationsError, match=r"does not hold.*begin with the picture"):
        make_store(tmp_path / "a", model=str(model), dataset=shared_queries, reuse_prefix=True)
    off = make_store(tmp_path / "b", model=str(model), dataset=shared_queries, reuse_prefix=False)
    default = make_store(tmp_path / "c", model=str(model), dataset=shared_queries)
    for path in sorted((off / "chunks").iterdir()):
        assert path.read_bytes() == (default / "chunks" / path.name).read_bytes()


def test_a_decoder_that_looks_ahead(tiny_llava, monkeypatch):
    """A model whose picture sees the query does not pass the trial."""
    model = load_model(str(tiny_llava), dtype="float32", device=torch.device("cpu"))
    assert prefix_problem(model, "float32") is None
    decoder = model.body.get_submodule("language_model")
    original = decoder.forward

    def seeing_everything(*args, inputs_embeds, **kwargs):
        return original(*args, inputs_embeds=inputs_embeds + inputs_embeds.mean(1, True), **kwargs)

    monkeypatch.setattr(decoder, "forward", seeing_everything)
    assert "differs by" in prefix_problem(model, "float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(tiny_llava, monkeypatch, value):
    """One NaN, of which no comparison is true, does not pass the trial."""
    model = load_model(str(tiny_llava), dtype="float32", device=torch.device("cpu"))
    original = prefix.run_prefixed

    def spoiled(*args):
        found, rows = original(*args)
        found[17, 3, 5] = value
        return found, rows

    monkeypatch.setattr(prefix, "run_prefixed", spoiled)
    assert "differs by inf" in prefix_problem(model, "float32")


def test_a_decoder_without_a_cache(tiny_llava, monkeypatch):
    model = load_model(str(tiny_llava), dtype="float32", device=torch.device("cpu"))
    decoder = model.body.get_submodule("language_model")
    original = decoder.forward

    def forgetting(*args, **kwargs):
        output = original(*args, **kwargs)
        return type(output)(last_hidden_state=output.last_hidden_state)

    monkeypatch.setattr(decoder, "forward", forgetting)
    assert "'NoneType' object has no attribute" in prefix_problem(model, "float32")


def test_transformers_present_names(tiny_llava, caplog):
    """transformers warns of the cache's older name by `warnings` and by its logger, once each."""
    model = load_model(str(tiny_llava), dtype="float32", device=torch.device("cpu"))
    generic.logger.warning_once.cache_clear()
    with warnings.catch_warnings(), caplog.at_level("WARNING", logger="transformers"):
        warnings.simplefilter("error")
        assert prefix_problem(model, "float32") is None
    assert caplog.messages == []


def test_generated_positions_share_nothing(make_store, shared_queries, tmp_path):
    with pytest.raises(ActivationsError, match=r"--reuse-prefix does not hold.*generated"):
        make_store(
            tmp_path / "store", dataset=shared_queries, positions="generated", reuse_prefix=True
        )


@pytest.fixture(scope="module")
def tiny_next(tiny_llava, tmp_path_factory):
    """LLaVA-NeXT, which cuts a picture into as many tiles as its shape asks for."""
    folder = tmp_path_factory.mktemp("next") / "tiny-next"
    tiny = AutoProcessor.from_pretrained(tiny_llava)
    points = [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3},
            **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        ),
        text_config=LlamaConfig(
            **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.15},
            **{"vocab_size": len(tiny.tokenizer), "max_position_embeddings": 512},
        ),
        image_token_index=4,
        image_grid_pinpoints=points,
    )
    torch.manual_seed(0)
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=points,
        ),
        tokenizer=tiny.tokenizer,
        **{"patch_size": 14, "vision_feature_select_strategy": "default"},
        **{"num_additional_image_tokens": 1, "chat_template": tiny.chat_template},
    ).save_pretrained(folder)
    return folder


def test_prefixes_of_unequal_length(make_store, tiny_next, image_dir, tmp_path):
    """Pictures in one batch whose tiles, and so whose prefixes, are of several lengths."""
    sizes = [(80, 40), (40, 80), (64, 64), (90, 40)]
    for number, size in enumerate(sizes):
        with Image.open(image_dir / f"AMBER_{number + 1}.jpg") as picture:
            picture.convert("RGB").resize(size).save(tmp_path / f"{number}.png")
    entries = [
        {"id": n, "image": f"{n % 4}.png", "query": query} for n, (_, query) in enumerate(ASKED)
    ]
    queries = tmp_path / "queries.json"
    queries.write_text(json.dumps(entries))
    options = {"model": str(tiny_next), "dataset": queries, "image_dir": tmp_path}
    options |= {"positions": "all", "batch_size": 8}
    on = tensors_of(make_store(tmp_path / "on", reuse_prefix=True, chunk_samples=8, **options))
    off = tensors_of(make_store(tmp_path / "off", reuse_prefix=False, chunk_samples=8, **options))
    image_tokens = torch.bincount(on["sample"][on["kind"] == 1])
    assert len(set(image_tokens.tolist())) > 1
    for name, tensor in off.items():
        if tensor.dtype == torch.int32:
            assert torch.equal(on[name], tensor)
        else:
            assert torch.allclose(on[name], tensor, rtol=1e-3, atol=1e-4)


def test_queries_with_more_or_fewer_pictures():
    """A prompt with a second picture's token, or none, shares nothing."""
    assert prefix.prefix_ids([1, 9, 4, 7], 4) == (1, 9)
    assert prefix.prefix_ids([1, 4, 4], 4) is None
    assert prefix.prefix_ids([1, 2], 4) is None
