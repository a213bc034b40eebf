"""How likely the tokens of answers were, by the whole model's logits, one text at a time."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from single_pass import Reference
from small_configs import TEXT, VISION
from text_pass import inputs_of
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    CLIPVisionConfig,
    CohereConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from capture.model.tiny_model import make_tiny_llava
from capture.passes.logprobs import check_head, head_logits, read_logprobs
from capture.passes.positions import PositionChoice, select_rows
from llava_amber_activations import ActivationsError

IMAGE = 60
TOWER = CLIPVisionConfig(**VISION, projection_dim=16)


def llava(text):
    config = LlavaConfig(vision_config=TOWER, text_config=text, image_token_index=IMAGE)
    return LlavaForConditionalGeneration(config)


def gemma():
    """Its logits are capped at 1.5, so that none is what its head gives."""
    text = Gemma3TextConfig(**TEXT, head_dim=8, final_logit_softcapping=1.5)
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=61,
        eoi_token_index=62,
    )
    return Gemma3ForConditionalGeneration(config)


def cohere():
    """Its logits are a sixteenth of what its head gives."""
    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=CohereConfig(**TEXT, logit_scale=0.0625),
        image_token_index=IMAGE,
        alignment_intermediate_size=32,
    )
    return AyaVisionForConditionalGeneration(config)


FAMILIES = {
    "llama": lambda: llava(LlamaConfig(**TEXT)),
    "granite": lambda: llava(GraniteConfig(**TEXT, logits_scaling=8.0)),
    "gemma": gemma,
    "cohere": cohere,
}


def tokenizer(text, **options):
    return {"input_ids": torch.tensor([[1, *(ord(letter) % 50 + 3 for letter in text)]])}


def made(family, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        whole = FAMILIES[family]().eval().to(dtype)
    return SimpleNamespace(
        whole=whole,
        body=whole.base_model,
        device=torch.device("cpu"),
        image_token_id=IMAGE,
        processor=SimpleNamespace(tokenizer=tokenizer),
    )


TEXTS = [list(range(3, 14)), [5, 9, 30, 31, 32, 33], [40, 41, 42], [7]]
PROMPTS = [8, 2, 3, 0]


def batch():
    """Four texts, padded on the right: the third has no answer, and the last is nothing else."""
    longest = max(map(len, TEXTS))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in TEXTS])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in TEXTS])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return made(request.param)


@torch.inference_mode()
def found_in(model, choice):
    inputs = batch()
    rows = select_rows(inputs, range(len(TEXTS)), choice, IMAGE, PROMPTS)
    output = model.body(**inputs, use_cache=False)
    states = output.last_hidden_state
    logprobs = read_logprobs(rows, lambda element, at: states[element, at], model, output)
    return rows, logprobs


@torch.inference_mode()
def alone(model, text):
    """The log-probability of each token of a text but the first, of the whole model's logits."""
    logits = model.whole(input_ids=torch.tensor([text])).logits[0].double()
    every = torch.log_softmax(logits, dim=-1)
    return [float(every[at, token]) for at, token in enumerate(text[1:])]


@pytest.mark.parametrize("mode", ["all", "generated", "last"])
def test_every_kept_token_of_an_answer(model, mode):
    rows, logprobs = found_in(model, PositionChoice(mode))
    assert logprobs.dtype == torch.float32
    expected = [alone(model, text) for text in TEXTS]
    n_known = 0
    for sample, position, found in zip(
        rows.columns["sample"].tolist(),
        rows.columns["position"].tolist(),
        logprobs.tolist(),
        strict=True,
    ):
        if position < max(1, PROMPTS[sample]):
            assert found != found
        else:
            assert found == pytest.approx(expected[sample][position - 1], abs=1e-4)
            n_known += 1
    assert n_known == {"all": 7, "generated": 7, "last": 2}[mode]


def test_however_many_logits_are_computed_at_once(model, monkeypatch):
    _, whole = found_in(model, PositionChoice("all"))
    monkeypatch.setattr("capture.passes.logprobs._MOST_LOGITS", 2 * TEXT["vocab_size"])
    _, pieces = found_in(model, PositionChoice("all"))
    assert torch.allclose(whole, pieces, atol=1e-5, equal_nan=True)


def test_the_head_is_proven(model):
    check_head(model, "tiny", "float32")
    # Nothing stands in for the body afterwards.
    assert "forward" not in vars(model.body)


def test_half_precision():
    """The softmax of bfloat16 logits is taken in float32."""
    model = made("llama", torch.bfloat16)
    check_head(model, "tiny", "bfloat16")
    rows, logprobs = found_in(model, PositionChoice("generated"))
    with torch.inference_mode():
        output = model.body(**batch(), use_cache=False)
        before = rows.columns["position"].long() - 1
        first = rows.columns["position"] > 0
        states = output.last_hidden_state[rows.element[first], before[first]]
        logits = model.whole.lm_head(states).float()
    tokens = rows.columns["token_id"][first].long()
    expected = torch.log_softmax(logits, -1)[torch.arange(len(tokens)), tokens]
    assert torch.allclose(logprobs[first], expected, atol=1e-6)


ANSWERED = ["A cat on a mat.", "Two dogs", "ü", "Nothing at all is here."]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_llava(tmp_path_factory.mktemp("model") / "tiny", n_layers=2)


@pytest.mark.parametrize("positions", ["all", "answer"])
@pytest.mark.parametrize("reuse_prefix", [False, True])
def test_answers_that_were_given(make_store, tiny, image_dir, tmp_path, positions, reuse_prefix):
    """Two on each of two pictures, whose prefixes are computed once or not; and a text."""
    entries = [
        {"id": n, "image": f"AMBER_{1 + n // 2}.jpg", "query": "What?", "text": answer}
        for n, answer in enumerate(ANSWERED)
    ]
    entries.append({"id": 9, "query": "Who?", "text": "A fox."})
    queries = tmp_path / "queries.json"
    queries.write_text(json.dumps(entries), encoding="utf-8")
    asked = {"positions": positions, "reuse_prefix": reuse_prefix, "logprobs": True}
    path = tmp_path / "store"
    sizes = {"n_targets": 1, "batch_size": 3, "chunk_samples": 5}
    make_store(path, model=str(tiny), dataset=queries, answer_column="text", **sizes, **asked)
    rows = load_file(path / "chunks" / "chunk-00000.safetensors")
    known = rows["logprob"].isfinite()
    assert torch.equal(known, rows["kind"] == 3)
    single = Reference(tiny)
    for sample, entry in enumerate(entries):
        image = image_dir / entry["image"] if "image" in entry else None
        prompt = f"USER: {'<image>' + chr(10) if image else ''}{entry['query']} ASSISTANT:"
        inputs = inputs_of(single, prompt, image, entry["text"])
        ids = inputs["input_ids"][0]
        with torch.inference_mode():
            every = torch.log_softmax(single.model(**inputs).logits[0].double(), dim=-1)
        n_answer = len(entry["text"].encode())
        at = range(len(ids) - n_answer, len(ids))
        own = known & (rows["sample"] == sample)
        assert rows["position"][own].tolist() == list(at)
        expected = torch.stack([every[n - 1, ids[n]] for n in at])
        assert torch.allclose(rows["logprob"][own].double(), expected, atol=1e-4)


def test_no_sample_has_an_answer(make_store, tmp_path):
    """It is said before the model is loaded."""
    with pytest.raises(ActivationsError, match="no sample has one: name their column"):
        make_store(tmp_path / "store", positions="all", logprobs=True)


def test_a_whole_that_asks_more_than_its_head(monkeypatch):
    """What depends on where a token is cannot be had of its state alone: one sentence."""
    model = made("llama")
    forward = model.whole.forward

    def shifted(**inputs):
        output = forward(**inputs)
        if "forward" not in vars(model.body):
            output.logits = output.logits + torch.arange(output.logits.shape[1])[:, None]
        return output

    monkeypatch.setattr(model.whole, "forward", shifted)
    with pytest.raises(ActivationsError, match=r"--logprobs cannot be had of tiny: .* differ by"):
        check_head(model, "tiny", "float32")


def test_a_whole_without_a_body_of_its_own():
    model = made("llama")
    model.body = made("llama").body
    with pytest.raises(ActivationsError, match="keeps no head apart from its body"):
        check_head(model, "tiny", "float32")


def test_a_head_that_fails(monkeypatch):
    """And what stood in for the body is gone."""
    model = made("llama")
    monkeypatch.setattr(type(model.whole.lm_head), "forward", lambda *inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        head_logits(model, model.body(**batch()), torch.zeros(1, TEXT["hidden_size"]))
    assert "forward" not in vars(model.body)
