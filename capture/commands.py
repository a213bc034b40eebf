"""The commands that run a model; `capture` is what `python -m capture` runs, too."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from capture.settings import (
    CHUNK_SAMPLES,
    CHUNK_SAMPLES_LAST,
    DEFAULT_MAX_NEW_TOKENS,
    MOST_WORKERS,
    CaptureSettings,
)
from llava_amber_activations.cli.command_line import AsJson
from llava_amber_activations.console.interruption import interruptible
from llava_amber_activations.extras import need_extras
from llava_amber_activations.formats.dtypes import DType
from llava_amber_activations.formats.layers import DEFAULT_N_TARGETS, parse_layers
from llava_amber_activations.formats.recipe import (
    MOST_LAYERS,
    X_SITES,
    Always,
    Pool,
    Positions,
    XSite,
)

if TYPE_CHECKING:
    from capture.run import CaptureResult
    from capture.samples.benchmark import Benchmark


_ALL = "all"


def add_commands(app: typer.Typer) -> None:
    """Add this package's commands to the command line."""
    app.command("capture")(capture_command)
    app.command("recapture")(recapture_command)
    app.command("demo-input", hidden=True)(demo_input)


def capture_command(
    model: Annotated[str, typer.Option(help="Model: an id on the Hub, or a folder.")],
    dataset: Annotated[
        str,
        typer.Option(
            help='Query file, [{"id": 1, "image": "1.jpg", "query": "…"}, …] or JSON lines of the '
            "same; or hf:NAME, a dataset with pictures in it."
        ),
    ],
    output_dir: Annotated[
        Path, typer.Option(help="Capture store to begin, to go on with, or to finish.")
    ],
    image_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that holds the query file's pictures, which needs it.",
            show_default="none",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With hf:NAME: the split.", show_default="the first")
    ] = None,
    image_column: Annotated[str, typer.Option(help="With hf:NAME: the pictures.")] = "image",
    query_column: Annotated[str, typer.Option(help="With hf:NAME: the queries.")] = "query",
    n_targets: Annotated[
        int, typer.Option(min=1, help="MLP outputs that `build` gives each layer as targets.")
    ] = DEFAULT_N_TARGETS,
    layers: Annotated[
        str,
        typer.Option(
            help="Decoder layers whose vectors are kept, such as 0,5,10-15: a layer has targets in "
            "the data where they are kept as well."
        ),
    ] = _ALL,
    positions: Annotated[
        Positions, typer.Option(help="Which token positions of each sample are kept.")
    ] = "last",
    x_site: Annotated[
        XSite,
        typer.Option(
            help="Where x is read: the stream that the MLP block reads (resid_mid), the stream "
            "that enters the layer (resid_pre), or what the MLP receives after its norm (mlp_in). "
            "Of resid_mid, mlp_in is computed when it is read.",
            # As they are written down, where the names of options have hyphens.
            metavar=f"<{'|'.join(X_SITES)}>",
        ),
    ] = "resid_mid",
    dtype: Annotated[
        DType | None,
        typer.Option(
            help="What the model computes in.", show_default="float16 on a GPU, else float32"
        ),
    ] = None,
    store_dtype: Annotated[
        DType | None, typer.Option(help="What is kept.", show_default="the same as --dtype")
    ] = None,
    sample_positions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Draw so many of those positions from each sample.",
            show_default="all of them",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of that draw.")] = 0,
    always: Annotated[
        Always | None,
        typer.Option(
            help="Keep the last token of each sample beside them.", show_default="those alone"
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --positions generated: most tokens of a response.",
            show_default=str(DEFAULT_MAX_NEW_TOKENS),
        ),
    ] = None,
    transcoders: Annotated[
        Path | None,
        typer.Option(
            help="Folder of trained transcoder_L*.pt, whose features are kept as well.",
            show_default="none",
        ),
    ] = None,
    pool: Annotated[
        Pool, typer.Option(help="How a sample's features are pooled over its positions.")
    ] = "max",
    batch_size: Annotated[
        str,
        typer.Option(help="Samples in one forward pass; auto finds the most that fit."),
    ] = "8",
    reuse_prefix: Annotated[
        bool | None,
        typer.Option(
            help="Compute what precedes the queries on one picture once.",
            show_default="where several queries share a picture and a trial shows that it changes "
            "nothing",
        ),
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Have torch compile the norms and the MLPs.")
    ] = False,
    num_workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that read pictures ahead.",
            show_default=f"0 on a CPU, else {MOST_WORKERS}",
        ),
    ] = None,
    max_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Capture only the first so many samples.", show_default="all"),
    ] = None,
    chunk_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples in one file.",
            show_default=f"{CHUNK_SAMPLES_LAST} with --positions last, else {CHUNK_SAMPLES}",
        ),
    ] = None,
    on_error: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="What an unreadable picture does: stop the run, or skip its sample."),
    ] = "stop",
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of the model on the Hub.", show_default="main"),
    ] = None,
    device_map: Annotated[
        Literal["auto"] | None,
        typer.Option(
            help="Deal a model that no single GPU holds out to all of them.",
            show_default="one device",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on where the disk has too little room.")
    ] = False,
) -> None:
    """Run a model over a query file and keep its activations in a capture store.

    Run again after an interruption, it makes only what is missing. With `accelerate launch` (or
    torchrun), the chunks are shared among the processes.
    """
    if max_new_tokens is not None and positions != "generated":
        raise typer.BadParameter("--max-new-tokens goes with --positions generated")
    need_extras("capture", "capture")
    settings = CaptureSettings(
        model=model,
        dataset=dataset,
        image_dir=image_dir,
        split=split,
        image_column=image_column,
        query_column=query_column,
        output_dir=output_dir,
        n_targets=n_targets,
        layers=_kept_layers(layers),
        positions=positions,
        x_site=x_site,
        dtype=dtype,
        store_dtype=store_dtype,
        sample_positions=sample_positions,
        seed=seed,
        max_new_tokens=max_new_tokens,
        transcoders=transcoders,
        pool=pool,
        batch_size=_batch_size(batch_size),
        reuse_prefix=reuse_prefix,
        compile=compile_,
        num_workers=num_workers,
        max_samples=max_samples,
        chunk_samples=chunk_samples,
        on_error=on_error,
        revision=revision,
        device_map=device_map,
        always=always,
        force=force,
    )
    from capture.beforehand import check_capture

    benchmark = check_capture(settings)
    # torch and transformers take seconds to import, which --help and mistakes should not.
    with interruptible(lambda: _kept(output_dir)):
        result = _capture(settings, benchmark)
    made = f"{result.chunks_made} of {result.chunks_total} chunks made now"
    if result.records is None:
        typer.echo(f"{output_dir}: {made}; the others are another process's, or still to make")
        return
    n_rows = sum(record.n_rows for record in result.records)
    skipped = sum(record.error is not None for record in result.records)
    note = f", {skipped} of them skipped (samples.jsonl says why)" if skipped else ""
    typer.echo(
        f"{output_dir}: {len(result.records)} samples{note}, {n_rows} rows; {made}. "
        f"Next: llava-amber build {output_dir} DATASET"
    )


def _capture(settings: CaptureSettings, benchmark: Benchmark) -> CaptureResult:
    """Capture as a process of the launch that this one is of."""
    import torch
    from accelerate import PartialState

    from capture.run import capture

    # Without being told, accelerate takes the processes of a launch without a GPU for one each.
    state = PartialState(cpu=not torch.accelerator.is_available())
    return capture(
        settings,
        device=state.device,
        rank=state.process_index,
        world_size=state.num_processes,
        benchmark=benchmark,
    )


def _kept(store: Path) -> str:
    """Say what a capture that is stopped leaves."""
    from llava_amber_activations.store.layout import (
        is_store,
        missing_chunks,
        read_recipe,
        recipe_chunks,
    )

    if not is_store(store):
        return "nothing was captured yet; the same command begins again"
    recipe = read_recipe(store)
    total = len(recipe_chunks(recipe))
    made = total - len(missing_chunks(store, recipe))
    return f"{made} of {total} chunks are kept in {store}, and the same command makes the rest"


def recapture_command(
    store: Annotated[Path, typer.Argument(help="Finished capture store.")],
    model: Annotated[str, typer.Option(help="Model: an id on the Hub, or a folder.")],
    image_dir: Annotated[Path, typer.Option(help="Folder that holds the samples' pictures.")],
    samples: Annotated[int, typer.Option(min=1, help="How many, drawn at random.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Capture some samples of a store again, and compare every vector."""
    need_extras("recapture", "capture")
    from capture.beforehand import check_recapture

    check_recapture(store, model, image_dir)
    from accelerate import PartialState

    from capture.recapture import recapture

    again = recapture(
        store,
        model=model,
        image_dir=image_dir,
        n_samples=samples,
        seed=seed,
        device=PartialState().device,
    )
    if as_json:
        typer.echo(json.dumps({"path": str(store), "right": True, **asdict(again)}))
        return
    typer.echo(
        f"{store}: samples {', '.join(map(str, again.samples))} captured again; the largest "
        f"relative error is {again.largest_error:.1e}, {again.tolerance:.0e} is allowed"
    )


def demo_input(
    folder: Annotated[Path, typer.Argument(help="Folder for the model, pictures and queries.")],
) -> None:
    """Make a tiny random LLaVA, a few pictures and a query file, to try things on."""
    need_extras("demo-input", "capture")
    from capture.model.tiny_model import make_tiny_llava
    from capture.samples.drawn import draw_benchmark

    model = make_tiny_llava(folder / "model")
    n_pictures, n_queries = draw_benchmark(folder)
    typer.echo(f"{model}: a random LLaVA of 32 layers, 64 wide")
    typer.echo(f"{folder}: {n_pictures} pictures in images, {n_queries} queries in queries.json")


def _kept_layers(text: str) -> tuple[int, ...] | None:
    """Return the layers of a list; None of `all`. Which ones the model has is not known yet."""
    return None if text == _ALL else parse_layers(text, range(MOST_LAYERS), "in any model")


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--batch-size is a number from 1 on, or auto, not '{text}'")
    return int(text)
