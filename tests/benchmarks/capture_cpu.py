"""Capture against the bare forward pass and against a plain script, side by side in one run.

    python tests/benchmarks/capture_cpu.py           (about 10 minutes)

The model is a random LLaVA of middle size: 32 layers of 512, a 336-pixel tower, 576 image tokens.
Every figure is the median of the repeats, with the lowest and the highest; the three are measured
in turn, so that whatever else the machine does falls on all of them. In one run:

    bare      the model's body on prepared batches, without a hook: what a capture cannot beat
    plain     a script in the manner of the original project's: one picture at a time, hooks that
              copy every position to the CPU, one .pt of x and one of 16 targets for each layer
    capture   this project's, pictures read and store written

and the capture of many queries on few pictures with and without the reuse of their prefix.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import psutil
import torch
import transformers
from PIL import Image

from capture.model.load import CaptureModel, load_model
from capture.model.tiny_model import make_tiny_llava
from capture.passes.inputs import make_inputs
from capture.passes.prompts import make_prompts
from capture.pipeline import PassSetup, make_chunks
from capture.run import adopt_recipe
from capture.samples.benchmark import Benchmark
from capture.samples.pictures import FolderPictures, read_picture
from capture.samples.queries import read_queries
from capture.settings import CaptureSettings
from capture.sink.provenance import make_recipe
from llava_amber_activations.store.finish import finish_store
from llava_amber_activations.store.layout import recipe_chunks

N_SAMPLES = 12
REPEATS = 5
GROWTH = (1, 2, 4)
BATCH_SIZE = 4
QUERIES_A_PICTURE = (4, 14)


def make_input(folder: Path, n_samples: int, queries_a_picture: int = 1) -> Path:
    """Draw pictures of noise, 640 × 480, and write a query file over them."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    entries = []
    for number in range(n_samples):
        small = torch.randint(0, 256, (24, 32, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(small.numpy()).resize((640, 480), Image.Resampling.BICUBIC)
        picture.save(images / f"{number}.jpg")
        image = f"{number // queries_a_picture}.jpg"
        # Of the length of AMBER's discriminative queries, a byte a token here.
        query = "Is there a cat?" if queries_a_picture > 1 else "Describe this image."
        entries.append({"id": number, "image": image, "query": query})
    path = folder / f"queries-{n_samples}-{queries_a_picture}.json"
    path.write_text(json.dumps(entries))
    return path


def bare(
    model: CaptureModel, dataset: Path, images: Path, batch_size: int = BATCH_SIZE
) -> Callable[[], None]:
    """Return the bare forward pass over prepared batches, which lie on the model's device."""
    queries, _ = read_queries(dataset)
    batches = []
    for start in range(0, len(queries), batch_size):
        part = queries[start : start + batch_size]
        pictures = [read_picture(FolderPictures(images), query) for query in part]
        batches.append(model.on_device(make_inputs(model.processor, part, pictures)))

    @torch.inference_mode()
    def run() -> None:
        for inputs in batches:
            model.body(**inputs, use_cache=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def plain(
    model: CaptureModel, dataset: Path, images: Path, out: Path, positions: str
) -> Callable[[], None]:
    """Return the plain script; `last` keeps the last position of what the hooks copied."""
    queries, _ = read_queries(dataset)
    layers = model.decoder.layers

    @torch.inference_mode()
    def run() -> None:
        x: dict[int, torch.Tensor] = {}
        mlp_out: dict[int, torch.Tensor] = {}

        def keep(number: int) -> Callable[..., None]:
            def hook(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
                x[number] = args[0].detach().cpu().clone()
                mlp_out[number] = output.detach().cpu().clone()

            return hook

        handles = [layer.mlp.register_forward_hook(keep(n)) for n, layer in enumerate(layers)]
        for batch, query in enumerate(queries):
            inputs = make_inputs(
                model.processor, [query], [read_picture(FolderPictures(images), query)]
            )
            model.whole(**model.on_device(inputs))
            kept = slice(-1, None) if positions == "last" else slice(None)
            for number in range(len(layers) - 1):
                folder = out / f"L{number}"
                folder.mkdir(parents=True, exist_ok=True)
                last = min(number + 16, len(layers) - 1)
                targets = [mlp_out[n][:, kept].clone() for n in range(number + 1, last + 1)]
                torch.save({"x": x[number][:, kept].clone()}, folder / f"batch_{batch}_x.pt")
                torch.save(
                    {"y": targets[0], "targets": targets, "n_targets": len(targets)},
                    folder / f"batch_{batch}_y.pt",
                )
        for handle in handles:
            handle.remove()

    return run


def ours(
    model: CaptureModel,
    dataset: Path,
    images: Path,
    out: Path,
    positions: str,
    chunk_samples: int = BATCH_SIZE,
    share_prefixes: bool = False,
    batch_size: int | None = None,
    sample_positions: int | None = None,
) -> Callable[[], None]:
    """Return a capture into a new store, by a model that is loaded already."""
    dtype = next(model.body.parameters()).dtype
    settings = CaptureSettings(
        model="random",
        dataset=dataset,
        image_dir=images,
        output_dir=out,
        positions=positions,
        sample_positions=sample_positions,
        always=None if sample_positions is None else "last",
        batch_size=batch_size or chunk_samples,
        # Fixed, so that 1, 2 and 4 times the samples differ in the number of chunks alone.
        chunk_samples=chunk_samples,
    )

    def run() -> None:
        queries, checksum = read_queries(dataset)
        benchmark = Benchmark(queries, checksum, FolderPictures(images))
        recipe = make_recipe(settings, model, str(dtype).removeprefix("torch."), benchmark)
        adopt_recipe(out, recipe)
        chunks = enumerate(recipe_chunks(recipe))
        todo = {number: [queries[sample] for sample in samples] for number, samples in chunks}
        make_chunks(
            out,
            todo,
            PassSetup(
                model,
                make_prompts(queries, model, None),
                benchmark.pictures,
                settings,
                share_prefixes=share_prefixes,
            ),
            dtype,
            lambda n_samples: None,
        )
        finish_store(out, recipe)

    return run


def seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def spread(values: list[float], digits: int = 2) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure and print the tables."""
    transformers.utils.logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp(prefix="capture-cpu-"))
    try:
        run_all(folder)
    finally:
        shutil.rmtree(folder)


def run_all(folder: Path) -> None:
    path = make_tiny_llava(folder / "model", hidden_size=512, image_size=336)
    dataset = make_input(folder, N_SAMPLES)
    images = folder / "images"
    model = load_model(str(path), dtype="float32", device=torch.device("cpu"))
    out = folder / "out"
    print(f"{date.today()}, {processor()}, {psutil.cpu_count()} cores,")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; ", end="")
    print(f"{N_SAMPLES} samples, batches of {BATCH_SIZE}, medians of {REPEATS} (lowest–highest)\n")
    print(
        "| positions | | samples/s | of the bare pass | times the plain script | bytes a sample |"
    )
    print("|---|---|---|---|---|---|")
    run_bare = bare(model, dataset, images)
    run_bare()
    for positions in ("last", "all"):
        times: dict[str, list[float]] = {"bare": [], "plain": [], "capture": []}
        sizes = {}
        for _ in range(REPEATS):
            times["bare"].append(seconds(run_bare))
            times["plain"].append(seconds(plain(model, dataset, images, out, positions)))
            sizes["plain"] = size_of(out) // N_SAMPLES
            shutil.rmtree(out)
            times["capture"].append(seconds(ours(model, dataset, images, out, positions)))
            sizes["capture"] = size_of(out) // N_SAMPLES
            shutil.rmtree(out)
        for name, measured in times.items():
            rate = spread([N_SAMPLES / value for value in measured])
            of_bare = [b / v for b, v in zip(times["bare"], measured, strict=True)]
            of_plain = [p / v for p, v in zip(times["plain"], measured, strict=True)]
            print(
                f"| {positions} | {name} | {rate} | {spread(of_bare)} | {spread(of_plain)} | "
                f"{sizes.get(name, 0):,} |",
                flush=True,
            )
    print("\n| queries on one picture | samples/s, plain | prefix reused | times the plain way |")
    print("|---|---|---|---|")
    for count in QUERIES_A_PICTURE:
        shared = make_input(folder, count, queries_a_picture=count)
        taken_by: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(REPEATS):
            for reuse, taken in taken_by.items():
                taken.append(seconds(ours(model, shared, images, out, "last", count, reuse)))
                shutil.rmtree(out)
        rates = [spread([count / value for value in taken_by[reuse]]) for reuse in (False, True)]
        ratios = [a / b for a, b in zip(taken_by[False], taken_by[True], strict=True)]
        print(f"| {count} | {rates[0]} | {rates[1]} | {spread(ratios)} |", flush=True)
    print("\n| samples | seconds of a capture (last) | of those for 1× | host memory, MB |")
    print("|---|---|---|---|")
    first = 0.0
    for factor in GROWTH:
        larger = make_input(folder, factor * N_SAMPLES)
        taken = []
        for _ in range(3):
            taken.append(seconds(ours(model, larger, images, out, "last")))
            shutil.rmtree(out)
        first = first or statistics.median(taken)
        memory = psutil.Process().memory_info().rss / 1e6
        ratio = statistics.median(taken) / first
        print(
            f"| {factor * N_SAMPLES} | {spread(taken)} | {ratio:.2f} | {memory:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
