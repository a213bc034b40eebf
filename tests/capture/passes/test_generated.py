"""Responses: greedy ones, read once more by the model, in AMBER's form."""

import json
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava_amber_activations.store.samples import read_samples

N_NEW = 6


@pytest.fixture(scope="module")
def generated_store(make_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("generated") / "store"
    asked = {"positions": "generated", "max_new_tokens": N_NEW, "logprobs": True}
    return make_store(path, chunk_samples=8, **asked)


@pytest.fixture(scope="module")
def answers(reference, image_dir, query_file):
    """Each sample's prompt and greedy response, token by token, one sample at a time."""
    found = []
    for entry in json.loads(query_file.read_text()):
        prompt = f"USER: <image>\n{entry['query']} ASSISTANT:"
        with Image.open(image_dir / entry["image"]) as image:
            inputs = reference.processor(
                images=image.convert("RGB"), text=prompt, return_tensors="pt"
            )
        ids = inputs["input_ids"]
        n_prompt = ids.shape[1]
        for _ in range(N_NEW):
            with torch.no_grad():
                logits = reference.model(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    pixel_values=inputs["pixel_values"],
                ).logits[0, -1]
            logits[4] = -torch.inf  # a response holds no image token
            token = int(logits.argmax())
            if token == 2:
                break
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        found.append((ids[0], n_prompt, inputs["pixel_values"]))
    return found


def test_rows_are_the_responses_positions(generated_store, answers, reference):
    """Positions, token ids, kind, and every layer's mlp_out, against one pass over it all."""
    chunk = load_file(generated_store / "chunks" / "chunk-00000.safetensors")
    expected = [
        (sample, position, int(ids[position]))
        for sample, (ids, n_prompt, _) in enumerate(answers)
        for position in range(n_prompt, len(ids))
    ]
    found = zip(*(chunk[name].tolist() for name in ("sample", "position", "token_id")), strict=True)
    assert list(found) == expected and len(expected) > 30
    assert set(chunk["kind"].tolist()) == {2}
    outputs = {layer: [] for layer in range(32)}
    for ids, n_prompt, pixels in answers:
        handles = [
            layer.mlp.register_forward_hook(
                lambda m, a, o, n=number, start=n_prompt: outputs[n].append(o[0, start:].clone())
            )
            for number, layer in enumerate(reference.model.model.language_model.layers)
        ]
        with torch.no_grad():
            reference.model(
                input_ids=ids[None],
                attention_mask=torch.ones_like(ids)[None],
                pixel_values=pixels,
            )
        for handle in handles:
            handle.remove()
    for layer in range(32):
        whole = torch.cat(outputs[layer])
        assert (chunk[f"mlp_out_{layer:02d}"] - whole).norm() < 1e-4 * whole.norm()


def test_how_likely_each_token_was(generated_store, answers, reference):
    """By the logits of the whole model, one sample at a time; the recipe names the column."""
    chunk = load_file(generated_store / "chunks" / "chunk-00000.safetensors")
    expected = []
    for ids, n_prompt, pixels in answers:
        with torch.no_grad():
            logits = reference.model(
                input_ids=ids[None],
                attention_mask=torch.ones_like(ids)[None],
                pixel_values=pixels,
            ).logits[0]
        of_all = torch.log_softmax(logits.double(), dim=-1)
        expected += [of_all[at - 1, ids[at]] for at in range(n_prompt, len(ids))]
    found = chunk["logprob"]
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), torch.stack(expected), atol=1e-4)
    assert found.min() < -0.1
    recipe = json.loads((generated_store / "capture.json").read_text())
    assert recipe["extra_columns"] == ["logprob"]


def test_responses_are_written_for_the_benchmark(generated_store, answers, reference):
    """samples.jsonl and responses.json carry each decoded response, with the benchmark's id."""
    texts = [
        reference.processor.tokenizer.decode(ids[n:], skip_special_tokens=True).strip()
        for ids, n, _ in answers
    ]
    lines = [json.loads(s) for s in (generated_store / "samples.jsonl").read_text().splitlines()]
    assert [line["response"] for line in lines] == texts
    assert json.loads((generated_store / "responses.json").read_text()) == [
        {"id": 101 + sample, "response": text} for sample, text in enumerate(texts)
    ]


def test_tokens_of_the_responses(generated_store, answers, reference):
    """After the prompt's, from `response_start` on: joined, the whole text that the model read."""
    lines = [json.loads(s) for s in (generated_store / "samples.jsonl").read_text().splitlines()]
    records = read_samples(generated_store)
    for line, record, (ids, n_prompt, _) in zip(lines, records, answers, strict=True):
        assert line["response_start"] == record.response_start == n_prompt
        assert len(record.tokens) == len(ids)
        decode = reference.processor.tokenizer.decode
        assert "".join(record.tokens[:]) == decode(ids, skip_special_tokens=False)
        assert decode(ids[:n_prompt]).startswith("".join(record.tokens[:n_prompt]))


def test_no_responses_without_generation(last_store):
    assert not (last_store / "responses.json").exists()
    assert "response" not in (last_store / "samples.jsonl").read_text()
    assert json.loads((last_store / "capture.json").read_text())["max_new_tokens"] is None


def test_length_goes_with_generation(cli):
    result = cli(
        *("capture", "--model", "m", "--dataset", "d", "--image-dir", "i", "--output-dir", "o"),
        *("--max-new-tokens", "5"),
    )
    assert result.returncode == 2 and "--positions generated" in result.stderr


def test_progress_of_answers(make_store, monkeypatch):
    """While a batch is generated: its tokens, their limit, and how many answers have ended."""
    notes = []
    monkeypatch.setattr("capture.passes.generation._SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(
        "capture.run.Progress.update",
        lambda progress, n=1, note=None: notes.append(note),
    )
    make_store(positions="generated", max_new_tokens=5, max_samples=4, batch_size=4)
    said = [
        re.fullmatch(r"answers: (\d+) of at most 5 tokens, (\d) of (\d) ended", note or "")
        for note in notes
    ]
    counts = [tuple(map(int, match.groups())) for match in said if match]
    # Chunks of three samples, each a batch: answers of three and of one.
    assert {total for _, _, total in counts} == {3, 1}
    assert max(tokens for tokens, _, _ in counts) <= 5
    for total in (3, 1):
        tokens = [n for n, _, of in counts if of == total]
        assert tokens == list(range(1, len(tokens) + 1))
