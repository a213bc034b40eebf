"""Live batches beside SAELens' `ActivationsStore`, of one hook of the same text model.

Both run a language model, random weights of SmolLM2-135M's depth and width, over texts of 96
tokens, eight at once, and mix rows in a buffer of as many. What is timed is an epoch of ours, and
as many positions of theirs, which has no epochs, once its buffer has been filled. Theirs gets
token ids, and ours makes them of the texts. The hook is the MLP's output of the last layer, which
both can read: theirs ends a pass behind the layer of its hook, ours runs all layers whichever is
asked for.
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

CONTEXT, N_TEXTS, PER_PASS, BATCH, LAYER = 96, 24, 8, 256, 29
MIX_ROWS = 2 * PER_PASS * CONTEXT
HOOK = f"blocks.{LAYER}.hook_mlp_out"


def saelens_lines(model: CaptureModel, folder: Path, repeats: int) -> list[Line]:
    """Measure the two in turn, after checking that they give the same vectors."""
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
    batches = live.hook_batches([LAYER], x_site=[], batch_size=BATCH, shuffle=True)
    n_rows = sum(len(batch[HOOK]) for batch in batches)
    assert n_rows == CONTEXT * N_TEXTS, n_rows
    mine: list[float] = []
    theirs: list[float] = []
    arguments = [folder, f"model.layers.{LAYER}.mlp", CONTEXT, PER_PASS, BATCH, MIX_ROWS]
    with sae_lens(folder, "live_peer_side.py", arguments) as peer:
        _check_alike(live, peer.ask("vectors"))
        peer.ask(n_rows)
        for _ in range(repeats):
            mine.append(_seconds(touched(batches)))
            theirs.append(peer.ask(n_rows))
    return [
        Line(
            "Live",
            f"an MLP's output, {MIX_ROWS} rows mixed, texts",
            "SAELens' ActivationsStore",
            "positions/s",
            rates(n_rows, mine),
            rates(n_rows, theirs),
            note="theirs gets token ids; ours says which rows they are where asked",
        )
    ]


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


def _check_alike(live: LiveActivations, theirs: list[float]) -> None:
    """Check the norms of the first pass's vectors."""
    batch = next(iter(live.hook_batches([LAYER], x_site=[], batch_size=PER_PASS * CONTEXT)))
    found = torch.tensor(theirs)
    assert torch.allclose(batch[HOOK].norm(dim=-1), found, rtol=1e-4), (batch[HOOK].shape, found)
