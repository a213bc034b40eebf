"""Capture on a GPU at the shape of LLaVA-1.5-7B: the bare pass, a plain script, this project.

    python tests/benchmarks/capture_gpu.py

The weights are random, in float16, made on the GPU: `LlavaForConditionalGeneration(LlavaConfig())`
is the real model's shape. Pictures are 640 × 480 JPEG files, prompts about 620 tokens with the
picture's 576. What the three candidates do stands in `capture_cpu.py`; the plain script is slow
and gets fewer samples, each figure is of its own samples a second. Beside them:

    of the disk     the capture's bytes a second, of those of the bare write and fsync of as many
    of the smaller  its samples a second, of what the bare pass or the bare write allows at most
    of peak         the pass's operations (counted by torch) a second, of those of a large product
    idle            share of a capture's time in which no kernel and no copy ran on the GPU

`live` takes batches of 4096 rows of one layer and four targets, mixed, straight from the model: no
disk, and its own figure of idle time.

`32 + last` is `--positions all --sample-positions 32 --always last`. The disk is that of TMPDIR.
`--device cpu --layers 4 --hidden-size 64 --vision-layers 2 --last 6 --all 4 --plain 2
--batch-size 2` tries the script where there is no GPU, in about two minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import psutil
import torch
import transformers
from capture_cpu import bare, make_input, ours, plain, seconds, size_of, spread
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from capture import LiveActivations
from capture.model.load import CaptureModel, prepare_model
from capture.model.tiny_model import make_tiny_llava
from capture.passes.inputs import make_inputs
from capture.samples.pictures import FolderPictures, read_picture
from capture.samples.queries import read_queries

MATRIX = 8192
FEW = 32
WRITE_BYTES = 1 << 28
# The last layer with so many targets, so that the passes are whole.
LIVE_LAYER, LIVE_TARGETS, LIVE_BATCH = 27, 4, 4096
COLUMNS = (
    *("positions", "", "samples", "samples/s", "of the bare pass", "times the plain script"),
    *("of the disk", "of the smaller", "of peak", "idle", "bytes a sample", "host memory, MB"),
)


@dataclass(frozen=True)
class Asked:
    """What one capture is asked for: the positions by their name, and how many samples."""

    name: str
    positions: str
    n_samples: int
    chunk_samples: int
    sample_positions: int | None = None


def make_model(folder: Path, arguments: argparse.Namespace) -> CaptureModel:
    """Make the real model's shape with random weights where it will run."""
    device = torch.device(arguments.device)
    # The small model's processor asks the same prompt, and reads a byte a token.
    processor = LlavaProcessor.from_pretrained(make_tiny_llava(folder, n_layers=1, image_size=336))
    tokenizer = processor.tokenizer
    config = LlavaConfig(image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    text = config.text_config
    text.pad_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    if arguments.layers:
        text.num_hidden_layers = arguments.layers
    if arguments.vision_layers:
        # The features are those of the last layer but one.
        config.vision_config.num_hidden_layers = arguments.vision_layers
    if arguments.hidden_size:
        text.hidden_size = arguments.hidden_size
        text.intermediate_size = 2 * arguments.hidden_size
        text.num_attention_heads = text.num_key_value_heads = 4
        text.head_dim = arguments.hidden_size // 4
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16 if device.type == "cuda" else torch.float32)
    with device:
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    return prepare_model(model, processor, device)


def operations(model: CaptureModel, dataset: Path, images: Path) -> float:
    """Count the floating-point operations of one sample's pass."""
    queries, _ = read_queries(dataset)
    inputs = make_inputs(
        model.processor, queries[:1], [read_picture(FolderPictures(images), queries[0])]
    )
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.body(**model.on_device(inputs), use_cache=False)
    return float(counter.get_total_flops())


def matrix_peak(model: CaptureModel) -> float:
    """Measure the operations a second of a large matrix product in the model's dtype."""
    size = MATRIX if model.device.type == "cuda" else 1024
    dtype = next(model.body.parameters()).dtype
    left, right = (torch.randn(size, size, dtype=dtype, device=model.device) for _ in range(2))
    times = []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(10):
            torch.mm(left, right)
        _synchronize(model)
        times.append((time.perf_counter() - began) / 10)
    return 2 * size**3 / min(times)


def live(
    model: CaptureModel, dataset: Path, images: Path, asked: Asked, batch_size: int
) -> Callable[[], None]:
    """Return an epoch of batches straight from the model."""

    def run() -> None:
        opened = LiveActivations(
            model,
            dataset,
            image_dir=images,
            positions=asked.positions,
            sample_positions=asked.sample_positions,
            always=None if asked.sample_positions is None else "last",
            samples_per_pass=batch_size,
            chunk_samples=asked.chunk_samples,
        )
        layer = min(LIVE_LAYER, opened.layers[-1])
        for _ in opened.batches(layer, LIVE_TARGETS, batch_size=LIVE_BATCH, shuffle=True):
            pass
        _synchronize(model)

    return run


def _synchronize(model: CaptureModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def idle_share(model: CaptureModel, run: Callable[[], None]) -> float:
    """Return the share of a run's time in which the GPU had nothing to do; NaN without a GPU."""
    if model.device.type != "cuda":
        return float("nan")
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        run()
        _synchronize(model)
        taken = time.perf_counter() - began
    busy = _covered(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA
    )
    return 1 - busy / 1e6 / taken


def _covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of a union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--hidden-size", type=int)
    parser.add_argument("--vision-layers", type=int)
    parser.add_argument("--last", type=int, default=1004, help="samples of `last`")
    parser.add_argument("--all", type=int, default=128, help="samples of `all`, and of `32 + last`")
    parser.add_argument("--plain", type=int, default=16, help="samples of the plain script")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="capture-gpu-"))
    try:
        run_all(folder, arguments)
    finally:
        shutil.rmtree(folder)


def run_all(folder: Path, arguments: argparse.Namespace) -> None:
    transformers.utils.logging.disable_progress_bar()
    model = make_model(folder / "processor", arguments)
    gpu = torch.cuda.get_device_name() if model.device.type == "cuda" else "no GPU"
    peak = matrix_peak(model)
    print(f"{date.today()}, {gpu}; torch {torch.__version__}, transformers ", end="")
    print(f"{transformers.__version__}; batches of {arguments.batch_size}, medians of ", end="")
    print(f"{arguments.repeats} (lowest–highest); a matrix product {peak / 1e12:.1f} TFLOP/s\n")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for asked in (
        Asked("last", "last", arguments.last, chunk_samples=256),
        Asked(f"{FEW} + last", "all", arguments.all, chunk_samples=16, sample_positions=FEW),
        Asked("all", "all", arguments.all, chunk_samples=16),
    ):
        for line in measure(folder, model, asked, peak, arguments):
            print(f"| {' | '.join(line)} |", flush=True)


def measure(
    folder: Path, model: CaptureModel, asked: Asked, peak: float, arguments: argparse.Namespace
) -> list[list[str]]:
    """Measure the candidates in turn at one kind of positions; a line of the table each."""
    images, out, n_samples = folder / "images", folder / "out", asked.n_samples
    dataset = make_input(folder, n_samples)
    n_plain = min(arguments.plain, n_samples)
    few = make_input(folder, n_plain)
    flop = operations(model, dataset, images)

    def captured(queries: Path) -> Callable[[], None]:
        return ours(
            model,
            queries,
            images,
            out,
            asked.positions,
            asked.chunk_samples,
            batch_size=arguments.batch_size,
            sample_positions=asked.sample_positions,
        )

    run_ours = captured(dataset)
    candidates = {
        "bare": (bare(model, dataset, images, arguments.batch_size), n_samples),
        "plain": (plain(model, few, images, out, asked.positions), n_plain),
        "capture": (run_ours, n_samples),
        "live": (live(model, dataset, images, asked, arguments.batch_size), n_samples),
    }
    if asked.sample_positions is not None:
        del candidates["plain"]  # which keeps all positions or the last
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    disk: list[float] = []
    sizes = {"bare": 0, "live": 0}
    memory = {}
    captured(few)()
    shutil.rmtree(out)
    for _ in range(arguments.repeats):
        for name, (run, count) in candidates.items():
            rates[name].append(count / seconds(run))
            memory[name] = psutil.Process().memory_info().rss / 1e6
            if out.exists():
                sizes[name] = size_of(out) // count
                shutil.rmtree(out)
        disk.append(n_samples / written(folder / "bare-write", sizes["capture"] * n_samples))
    idle = {name: idle_share(model, candidates[name][0]) for name in ("capture", "live")}
    shutil.rmtree(out, ignore_errors=True)
    lines = []
    for name, measured in rates.items():
        of_disk = of_smaller = ""
        if name == "capture":
            smaller = list(map(min, rates["bare"], disk))
            of_disk, of_smaller = _of(measured, disk), _of(measured, smaller)
        lines.append(
            [
                *(asked.name, name, str(candidates[name][1]), spread(measured)),
                _of(measured, rates["bare"]),
                _of(measured, rates["plain"]) if "plain" in rates else "",
                *(of_disk, of_smaller),
                f"{statistics.median(measured) * flop / peak:.2f}",
                f"{idle[name]:.2f}" if name in idle else "",
                *(f"{sizes[name]:,}", f"{memory[name]:,.0f}"),
            ]
        )
    return lines


def _of(measured: list[float], other: list[float]) -> str:
    return spread([a / b for a, b in zip(measured, other, strict=True)])


def written(path: Path, n_bytes: int) -> float:
    """Return the seconds of a bare write and fsync of so many bytes, which lie in memory."""
    block = np.random.default_rng(0).bytes(min(n_bytes, WRITE_BYTES))
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, n_bytes, len(block)):
            file.write(memoryview(block)[: n_bytes - start])
        os.fsync(file.fileno())
    taken = time.perf_counter() - began
    path.unlink()
    return taken


if __name__ == "__main__":
    main()
