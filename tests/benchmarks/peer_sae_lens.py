"""7 A peer: SAELens' `CacheActivationsRunner`, in a virtual environment of its own.

    python tests/benchmarks/peer_sae_lens.py SCRATCH

A tiny random Llama of 32 layers, the same weights and the same token ids on both sides, every
position kept, float32. What is timed is running the model and writing; loading it is not.

The same work: one forward pass over the tokens, and one vector a position on the disk.
Not the same: theirs takes one hook a run, so that the 64 that a set of CLTs needs are 64 forward
passes; it writes Arrow, and token ids with each. Ours keeps all 64 of one pass, always, so that for
one hook it writes 64 times what was asked for; it hashes what it writes and fsyncs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from measuring import Line, rates, run_section
from peer import Peer, sae_lens
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from capture.model.structure.prove import prove_decoder
from capture.model.taps import Taps
from llava_amber_activations.store.chunk import Chunk, write_chunk
from llava_amber_activations.store.layout import vector_names

SECTION = "7 A peer"
N_LAYERS, WIDTH = 32, 128
CONTEXT, BATCH, N_SEQUENCES = 128, 8, 16
TOKENS = CONTEXT * N_SEQUENCES
VOCABULARY = 512

# The layer's output stands for `x`: theirs hooks what modules return, not what they receive.
HOOKS = [f"model.layers.{n}{part}" for n in range(N_LAYERS) for part in ("", ".mlp")]


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Measure one hook and all 64, in turn with ours."""
    folder = scratch / "peer"
    ids = _model_and_tokens(folder)
    ours, theirs = folder / "ours.safetensors", folder / "theirs"
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    with sae_lens(folder, "sae_lens_side.py", [folder, TOKENS, WIDTH]) as peer:
        for hooks in (HOOKS[:2], HOOKS[:1]):
            _theirs(peer, theirs, hooks)
        mine: list[float] = []
        of_one: list[float] = []
        of_all: list[float] = []
        _ours(model, ids, ours)
        for _ in range(repeats):
            mine.append(_ours(model, ids, ours))
            of_one.append(_theirs(peer, theirs, HOOKS[:1]))
            of_all.append(_theirs(peer, theirs, HOOKS))
        rows = _check_alike(ours, theirs)
    written = sum(path.stat().st_size for path in theirs.rglob("*") if path.is_file())
    size = ours.stat().st_size
    return [
        *(
            Line(
                SECTION,
                "64 hooks of one text model",
                f"CacheActivationsRunner, {runs}",
                "positions/s",
                rates(TOKENS, mine),
                rates(TOKENS, theirs_took),
                note=note,
            )
            for runs, theirs_took, note in (
                ("64 runs", of_all, "one pass against 64"),
                ("1 hook", of_one, "64 times the vectors"),
            )
        ),
        Line(
            SECTION,
            "bytes written for 64 hooks",
            "CacheActivationsRunner",
            "KiB a position",
            [size / TOKENS / 1024],
            [written / TOKENS / 1024],
            note=f"{rows} rows of {TOKENS} asked for; both float32",
        ),
    ]


def _model_and_tokens(folder: Path) -> torch.Tensor:
    """Save a random model, a tokenizer and token ids for both sides: int64 [sequences, T]."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (N_SEQUENCES, CONTEXT), generator=generator)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        initializer_range=0.15,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    vocabulary = {f"t{number}": number for number in range(VOCABULARY)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")),
        **{"unk_token": "t0", "bos_token": "t1", "eos_token": "t2", "pad_token": "t0"},
    ).save_pretrained(folder / "model")
    # More than is asked for: theirs must not run out in the middle of a batch.
    (folder / "tokens.json").write_text(json.dumps(ids.repeat(2, 1).tolist()))
    return ids


@torch.inference_mode()
def _ours(model: LlamaForCausalLM, ids: torch.Tensor, out: Path) -> float:
    """Capture all layers and write a chunk; return the seconds."""
    start = time.perf_counter()
    decoder = prove_decoder(model.base_model, {"input_ids": ids[:1]}).decoder
    parts = []
    with Taps(decoder, "resid_mid", torch.float32) as taps:
        for batch in ids.split(BATCH):
            with taps.aimed(torch.arange(batch.numel()), torch.device("cpu")) as gathered:
                model.base_model(input_ids=batch, use_cache=False)
            parts.append(gathered)
    names = vector_names(range(N_LAYERS))
    tensors = dict(zip(names, torch.cat(parts, dim=1).unbind(), strict=True))
    sample = torch.arange(N_SEQUENCES, dtype=torch.int32).repeat_interleave(CONTEXT)
    position = torch.arange(CONTEXT, dtype=torch.int32).repeat(N_SEQUENCES)
    token_id = ids.reshape(-1).to(torch.int32)
    write_chunk(out, {**tensors, "sample": sample, "position": position, "token_id": token_id}, [])
    return time.perf_counter() - start


def _theirs(peer: Peer, out: Path, hooks: Sequence[str]) -> float:
    return float(peer.ask(out, *hooks))


def _check_alike(ours: Path, theirs: Path) -> int:
    """Check that both sides hold the same MLP outputs; return how many rows theirs has."""
    chunk = Chunk(ours)
    rows = 0
    for layer in (0, 17, N_LAYERS - 1):
        dataset = datasets.load_from_disk(str(theirs / f"model.layers.{layer}.mlp"))
        found = torch.tensor(dataset.with_format("numpy")[:][f"model.layers.{layer}.mlp"])
        rows = found.shape[0] * found.shape[1]
        expected = chunk.rows(f"mlp_out_{layer:02d}", 0, TOKENS)
        error = (found.reshape(-1, WIDTH)[:TOKENS] - expected).norm() / expected.norm()
        if error > 1e-3:
            raise RuntimeError(f"layer {layer} differs by {error:.1e} between the two")
    return rows


if __name__ == "__main__":
    run_section(measure, __doc__)
