"""A store in the shape of `--positions all`, at two sizes: time, speed and memory of each command.

    python tests/benchmarks/scale.py SCRATCH [--gigabytes 5 20] [--rows 9600 38400 153600]
                                             [--shards 600 20000]

Samples of 600 rows, of all 64 vectors of 4096 float16 numbers: 300 MiB each. The store is made,
used and deleted, and so is what is made of it: that takes twice its size of disk. Each command runs
in processes of its own. The memory is what they hold themselves, summed over all of them, looked at
every 20 ms: pages of mapped files, which the kernel takes back when it wants them, are left out.

A shuffled stream holds two windows of rows at most, which 5 GB do not fill: what it holds of more
rows is seen on a model of two layers of the same width.

Of larger data sets only the manifest is made, of so many shards of 500 MB (300 GB are 600 of them,
10 TB 20,000): what opening it takes, and what a shuffled stream takes before it reads its first
vector.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from bench import machine

from builder.build import build
from llava_amber_activations.files.whole import write_json
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    ALL_LAYERS_SPLIT,
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    shard_path,
)
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.sources.source import open_source
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import (
    chunk_path,
    recipe_chunks,
    vector_names,
    write_recipe,
)
from llava_amber_activations.store.samples import SampleRecord
from llava_amber_activations.streams.layer_stream import layer_of_source

N_LAYERS, WIDTH, ROWS, CHUNK_SAMPLES = 32, 4096, 600, 8
SAMPLE_BYTES = 2 * N_LAYERS * ROWS * WIDTH * 2
LAYER = 5
_RECIPE: dict[str, Any] = {
    "n_layers": N_LAYERS,
    "hidden_size": WIDTH,
    "n_targets": 16,
    "store_dtype": "float16",
    "dtype": "float16",
    "positions": "all",
    "x_site": "resid_mid",
    "chunk_samples": CHUNK_SAMPLES,
    "model": "drawn values",
    "benchmark": "drawn.json",
}
_LOOK_SECONDS = 0.02

_STREAM = """
import sys
from llava_amber_activations import Activations
acts = Activations(sys.argv[1])
rows = 0
for batch in acts.batches({layer}, n_targets=1, first_target=0, batch_size=4096, shuffle=True):
    rows += len(batch["x"])
assert rows == acts.n_rows, rows
"""


@dataclass(frozen=True)
class Took:
    """What a command took.

    Attributes:
        what: was run.
        n_bytes: it read or wrote, of raw float16.
        seconds: it ran.
        peak: most bytes that its processes held at once.
    """

    what: str
    n_bytes: int
    seconds: float
    peak: int


def main() -> None:
    """Measure both sizes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[5, 20])
    parser.add_argument("--rows", type=int, nargs="*", default=[9_600, 38_400, 153_600])
    parser.add_argument("--shards", type=int, nargs="*", default=[600, 20_000])
    arguments = parser.parse_args()
    print(f"{machine()}\n")
    print("| store | what | s | MB/s of raw float16 | peak memory, MB |")
    print("|---|---|---|---|---|")
    for gigabytes in arguments.gigabytes:
        n_samples = max(1, round(gigabytes * 1e9 / SAMPLE_BYTES))
        folder = arguments.scratch / f"scale-{n_samples}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            for took in measure(folder, n_samples):
                print(
                    f"| {n_samples * SAMPLE_BYTES / 1e9:.1f} GB | {took.what} | {took.seconds:.1f} "
                    f"| {took.n_bytes / took.seconds / 1e6:,.0f} | {took.peak / 1e6:,.0f} |",
                    flush=True,
                )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n| rows | all_layers of two layers, GB | shuffled stream, peak memory, MB |")
    print("|---|---|---|")
    for n_rows in arguments.rows:
        folder = arguments.scratch / f"scale-rows-{n_rows}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            took = streamed(folder, n_rows // ROWS)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"| {n_rows:,} | {2 * took.n_bytes / 1e9:.1f} | {took.peak / 1e6:,.0f} |", flush=True)
    print("\n| shards of 500 MB | manifest, MB | opened in, s | shuffled in, s | row groups |")
    print("|---|---|---|---|---|")
    for n_shards in arguments.shards:
        print(f"| {n_shards:,} | {' | '.join(opened(arguments.scratch, n_shards))} |", flush=True)


def streamed(folder: Path, n_samples: int) -> Took:
    """Measure a shuffled stream of a data set of two layers."""
    store, dataset = folder / "store", folder / "dataset"
    make_all_positions(store, n_samples, n_layers=2)
    build(store, dataset, configs=["all_layers"])
    shutil.rmtree(store)
    pair = 2 * n_samples * ROWS * WIDTH * 2
    return run("stream", pair, [sys.executable, "-c", _STREAM.format(layer=0), dataset])


def opened(scratch: Path, n_shards: int) -> list[str]:
    """Measure a data set of which there is the manifest alone."""
    # Two samples of 600 rows, each nine groups of 64 and one of 24.
    groups = (*[64] * 9, 24) * 2
    recipe = Recipe(**_RECIPE, n_samples=2 * n_shards)
    files = {
        shard_path(ALL_LAYERS, ALL_LAYERS_SPLIT, number, n_shards): FileEntry(
            f"{number:064x}", 434_000_000, sum(groups), groups
        )
        for number in range(n_shards)
    }
    manifest = Manifest(
        recipe, dtype="float16", n_targets=16, n_rows=sum(groups) * n_shards, files=files
    )
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / MANIFEST_FILE
        write_json(path, manifest.to_json())
        begun = time.perf_counter()
        source = open_source(folder)
        opened = time.perf_counter()
        stream = layer_of_source(source, LAYER, 1, 0)
        pieces = list(stream.pieces(stream.open_shards()))
        np.random.default_rng(0).permutation(len(pieces))
        ended = time.perf_counter()
        return [
            f"{path.stat().st_size / 1e6:.1f}",
            *(f"{opened - begun:.2f}", f"{ended - opened:.2f}", f"{len(pieces):,}"),
        ]


def measure(folder: Path, n_samples: int) -> list[Took]:
    """Make a store, and run every command on it."""
    store, dataset = folder / "store", folder / "dataset"
    make_all_positions(store, n_samples)
    whole = n_samples * SAMPLE_BYTES
    pair = 2 * n_samples * ROWS * WIDTH * 2
    amber = [sys.executable, "-m", "llava_amber_activations", "-q"]
    build_all = [*amber, "build", store, dataset, "--configs", "all_layers"]
    export = [*amber, "export", dataset, folder / "pt", "--layers", LAYER, "--n-targets", "1"]
    took = [
        run("verify the store", whole, [*amber, "verify", store]),
        run("build all_layers", whole, build_all),
    ]
    first = digests(dataset)
    shutil.rmtree(dataset)
    killed = took[-1].seconds / 2
    run("", 0, build_all, kill_after=killed)
    took.append(run(f"build again, killed after {killed:.0f} s", whole, build_all))
    if digests(dataset) != first:
        raise RuntimeError("the build that was killed and run again gave other files")
    shutil.rmtree(dataset)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2]
    ranks = [*torchrun, "-m", "builder", *build_all[len(amber) :]]
    took.append(run("build in 2 ranks", whole, ranks))
    if digests(dataset) != first:
        raise RuntimeError("the build in 2 ranks gave other files")
    took += [
        run("verify the data set", whole, [*amber, "verify", dataset]),
        run(
            f"shuffled stream of layer {LAYER}, x and mlp_out",
            pair,
            [sys.executable, "-c", _STREAM.format(layer=LAYER), dataset],
        ),
        run(f"export of layer {LAYER}, 1 target", pair, [*export, "--format", "layers"]),
    ]
    return took


def run(
    what: str, n_bytes: int, command: Sequence[object], kill_after: float | None = None
) -> Took:
    """Run a command, looking at what its processes hold; end all of them after a time."""
    start = time.perf_counter()
    process = psutil.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, held_bytes(process))
        if kill_after is not None and time.perf_counter() - start > kill_after:
            for each in [*process.children(recursive=True), process]:
                each.kill()
            process.wait()
            return Took(what, n_bytes, kill_after, peak)
        time.sleep(_LOOK_SECONDS)
    if process.returncode:
        raise RuntimeError(f"{what} ended with {process.returncode}")
    return Took(what, n_bytes, time.perf_counter() - start, peak)


def held_bytes(process: psutil.Process) -> int:
    """Return what a process and those below it hold, without pages of files."""
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            text = Path(f"/proc/{each.pid}/smaps_rollup").read_text()
            total += sum(
                int(found) for found in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB$", text, re.M)
            )
    except (OSError, psutil.Error):
        return 0  # one of them has just ended
    return total * 1024


def digests(dataset: Path) -> str:
    """Return the manifest, which has the checksum of every file of the data set."""
    return (dataset / "manifest.json").read_text()


def make_all_positions(folder: Path, n_samples: int, n_layers: int = N_LAYERS) -> None:
    """Write a finished store of drawn values; the rows of each chunk are others."""
    recipe = Recipe(**{**_RECIPE, "n_layers": n_layers}, n_samples=n_samples)
    write_recipe(folder, recipe)
    generator = np.random.default_rng(0)
    n_rows = CHUNK_SAMPLES * ROWS
    scale = generator.lognormal(0.0, 0.5, WIDTH).astype(np.float32)
    drawn = generator.standard_normal((2 * n_rows, WIDTH), dtype=np.float32)
    pool = torch.from_numpy((drawn * scale).astype(np.float16))
    for number, samples in enumerate(recipe_chunks(recipe)):
        n = len(samples) * ROWS
        tensors: dict[str, torch.Tensor] = {}
        for slot, name in enumerate(vector_names(range(n_layers))):
            start = (97 * slot + 31 * number) % n_rows
            tensors[name] = pool[start : start + n]
        numbers = torch.arange(samples.start, samples.stop, dtype=torch.int32)
        tensors["sample"] = numbers.repeat_interleave(ROWS)
        tensors["position"] = torch.arange(ROWS, dtype=torch.int32).repeat(len(samples))
        tensors["token_id"] = torch.full((n,), 32000, dtype=torch.int32)
        tensors["kind"] = torch.ones(n, dtype=torch.int32)
        tensors["patch_row"] = torch.full((n,), -1, dtype=torch.int32)
        tensors["patch_col"] = tensors["patch_row"].clone()
        records = [
            SampleRecord(s, s + 1, f"AMBER_{s + 1}.jpg", "Describe this image.", None, ROWS)
            for s in samples
        ]
        write_chunk(chunk_path(folder, number), tensors, records)
    finish_store(folder, recipe)


if __name__ == "__main__":
    main()
