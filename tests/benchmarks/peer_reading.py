"""7 A peer: `ActivationsStore` of SAELens reading the cache that its own runner writes.

    python tests/benchmarks/peer_reading.py SCRATCH

4096 rows of 4096 float16 numbers of one hook, which is what theirs reads at once, mixed, in batches
of 512; each batch is touched. Theirs reads its own layout, a context of 128 a row, eight at a time,
and mixes within a buffer of 2560 rows. Ours reads the columns of this hook from a data set of 64
vectors a row, and mixes over all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from ground import LAYER, MANY_ROWS, Ground
from measuring import Line, alternate, rates, run_section, touch
from peer import Peer, sae_lens
from safetensors.torch import save_file

from llava_amber_activations import Activations

SECTION = "7 A peer"
HOOK = f"blocks.{LAYER}.hook_resid_mid"
CONTEXT, BATCH = 128, 512


def measure(scratch: Path, repeats: int) -> list[Line]:
    """Measure one hook, in float16 and as float32."""
    ground = Ground(scratch)
    folder = scratch / "peer"
    folder.mkdir(exist_ok=True)
    acts = Activations(ground.dataset(MANY_ROWS))
    (vectors,) = ground.vectors([f"x_{LAYER:02d}"], MANY_ROWS)
    save_file({HOOK: vectors}, folder / "rows.safetensors")

    def ours(dtype: torch.dtype, *, prepared: bool) -> Callable[[], None]:
        options = {"prepared": True, "cache_dir": scratch / "cache"} if prepared else {}
        batches = acts.hook_batches(
            [LAYER], mlp_out=False, batch_size=BATCH, shuffle=True, dtype=dtype, **options
        )

        def run() -> None:
            for batch in batches:
                touch(batch[HOOK])

        return run

    arguments = [folder / "rows.safetensors", folder / "cache", HOOK, CONTEXT, BATCH]
    with sae_lens(folder, "sae_lens_reading.py", arguments) as peer:
        _check_alike(peer, vectors)
        seconds = alternate(
            {
                "prepared": ours(torch.float16, prepared=True),
                "shards": ours(torch.float16, prepared=False),
                "theirs": lambda: peer.ask("float16"),
                "shards, float32": ours(torch.float32, prepared=False),
                "theirs, float32": lambda: peer.ask("float32"),
            },
            repeats,
        )
    size = MANY_ROWS.rows * MANY_ROWS.width * 2 / 1e6
    figures = {name: rates(size, times) for name, times in seconds.items()}
    return [
        Line(
            SECTION,
            f"hook_batches of one hook, batches of {BATCH}, {how}",
            "SAELens' ActivationsStore, its own cache",
            "MB/s",
            figures[mine],
            figures[theirs],
        )
        for how, mine, theirs in (
            ("prepared", "prepared", "theirs"),
            ("from the shards", "shards", "theirs"),
            ("from the shards, as float32", "shards, float32", "theirs, float32"),
        )
    ]


def _check_alike(peer: Peer, vectors: torch.Tensor) -> None:
    """Check that the peer gives rows of ours."""
    theirs = set(peer.ask("rows"))
    if not theirs or theirs - set(vectors[:, 0].tolist()):
        raise RuntimeError("SAELens gives rows that are none of the data set's")


if __name__ == "__main__":
    run_section(measure, __doc__)
