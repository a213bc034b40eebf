"""Live batches beside SAELens' `ActivationsStore`, of one hook of the same text model.

Both run a language model, random weights of SmolLM2-135M's depth and width, over texts of 96
tokens, eight at once, and mix rows in a buffer of as many. What is timed is an epoch of ours, and
as many positions of theirs, which has no epochs, once its buffer has been filled. Theirs gets
token ids, and ours makes them of the texts. The hook is an MLP's output, of an early layer and of
the last one: both end a pass behind the hook's layer.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase

import torch
from measuring import Line, rates, touched
from peer import sae_lens
from transformers import LlamaForCausalLM

from capture import CaptureModel, LiveActivations

CONTEXT, N_TEXTS, PER_PASS, BATCH, LAYERS = 96, 24, 8, 256, (5, 29)
MIX_ROWS = 2 * PER_PASS * CONTEXT


def saelens_lines(model: CaptureModel, folder: Path, repeats: int) -> list[Line]:
    """Measure the two in turn at each hook."""
    texts = _make_texts(model, folder)
    live = LiveActivations(
        model,
        texts,
        positions="all",
        prompt_template="none",
        samples_per_pass=PER_PASS,
        chunk_samples=PER_PASS,
        mix_rows=MIX_ROWS,
    )
    return [_line(live, folder, layer, repeats) for layer in LAYERS]


def _line(live: LiveActivations, folder: Path, layer: int, repeats: int) -> Line:
    """Measure the two at one hook, after checking that they give the same vectors."""
    batches = live.hook_batches([layer], x_site=[], batch_size=BATCH, shuffle=True)
    n_rows = sum(len(batch[_hook(layer)]) for batch in batches)
    assert n_rows == CONTEXT * N_TEXTS, n_rows
    mine: list[float] = []
    theirs: list[float] = []
    arguments = [folder, f"model.layers.{layer}.mlp", CONTEXT, PER_PASS, BATCH, MIX_ROWS]
    with sae_lens(folder, "live_peer_side.py", arguments) as peer:
        _check_alike(live, layer, peer.ask("vectors"))
        peer.ask(n_rows)
        for _ in range(repeats):
            mine.append(_seconds(touched(batches)))
            theirs.append(peer.ask(n_rows))
    return Line(
        "Live",
        f"layer {layer}'s MLP output, {MIX_ROWS} rows mixed, texts",
        "SAELens' ActivationsStore",
        "positions/s",
        rates(n_rows, mine),
        rates(n_rows, theirs),
        note="theirs gets token ids; ours says which rows they are where asked",
    )


def _hook(layer: int) -> str:
    return f"blocks.{layer}.hook_mlp_out"


def _seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _make_texts(model: CaptureModel, folder: Path) -> Path:
    """Save the language model and token ids for the peer; write the texts; return their file."""
    config = model.whole.config.get_text_config()
    text = LlamaForCausalLM(config)
    text.model.load_state_dict(model.body.language_model.state_dict())
    text.lm_head.load_state_dict(model.whole.lm_head.state_dict())
    text.save_pretrained(folder / "text")
    model.processor.tokenizer.save_pretrained(folder / "text")
    draw = random.Random(0)
    tokenizer = model.processor.tokenizer
    n_special = len(tokenizer("a")["input_ids"]) - 1
    letters = CONTEXT - n_special
    texts = ["".join(draw.choices(ascii_lowercase + " ", k=letters)) for _ in range(N_TEXTS)]
    ids = [tokenizer(each)["input_ids"] for each in texts]
    assert {len(each) for each in ids} == {CONTEXT}
    (folder / "tokens.json").write_text(json.dumps(ids))
    path = folder / "texts.json"
    path.write_text(json.dumps([{"id": n, "query": each} for n, each in enumerate(texts)]))
    return path


def _check_alike(live: LiveActivations, layer: int, theirs: list[float]) -> None:
    """Check the norms of the first pass's vectors."""
    batch = next(iter(live.hook_batches([layer], x_site=[], batch_size=PER_PASS * CONTEXT)))
    norms = batch[_hook(layer)].norm(dim=-1)
    assert torch.allclose(norms, torch.tensor(theirs), rtol=1e-4), (norms, theirs)
