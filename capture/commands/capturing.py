"""`capture`, which runs a model over a benchmark; what `python -m capture` runs, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from capture.commands.options import (
    Always,
    AnswerColumn,
    BatchSize,
    ChunkSamples,
    Compile,
    Dataset,
    DeviceMap,
    Dtype,
    Force,
    ImageColumn,
    ImageDir,
    Layers,
    Logprobs,
    MaxNewTokens,
    MaxSamples,
    Model,
    NTargets,
    NumWorkers,
    OnError,
    OutputDir,
    Pool,
    Positions,
    PromptTemplate,
    QueryColumn,
    ReusePrefix,
    Revision,
    SamplePositions,
    Seed,
    Split,
    StoreDtype,
    System,
    Transcoders,
    Weight,
    XSite,
)
from capture.settings import NOT_GIVEN, PROMPT_TEMPLATES, CaptureSettings
from llava_amber_activations.console.interruption import interruptible
from llava_amber_activations.extras import need_extras
from llava_amber_activations.formats.layers import DEFAULT_N_TARGETS, parse_layers
from llava_amber_activations.formats.recipe import MOST_LAYERS

if TYPE_CHECKING:
    from capture.run import CaptureResult
    from capture.samples.benchmark import Benchmark


_ALL = "all"

_T = TypeVar("_T")


def capture_command(
    model: Model,
    dataset: Dataset,
    output_dir: OutputDir,
    image_dir: ImageDir = None,
    split: Split = None,
    image_column: ImageColumn = None,
    query_column: QueryColumn = None,
    answer_column: AnswerColumn = None,
    prompt_template: PromptTemplate = None,
    system: System = None,
    weight: Weight = None,
    n_targets: NTargets = DEFAULT_N_TARGETS,
    layers: Layers = _ALL,
    positions: Positions = "last",
    x_site: XSite = "resid_mid",
    dtype: Dtype = None,
    store_dtype: StoreDtype = None,
    sample_positions: SamplePositions = None,
    seed: Seed = 0,
    always: Always = None,
    max_new_tokens: MaxNewTokens = None,
    logprobs: Logprobs = False,
    transcoders: Transcoders = None,
    pool: Pool = "max",
    batch_size: BatchSize = "8",
    reuse_prefix: ReusePrefix = None,
    compile_: Compile = False,
    num_workers: NumWorkers = None,
    max_samples: MaxSamples = None,
    chunk_samples: ChunkSamples = None,
    on_error: OnError = "stop",
    revision: Revision = None,
    device_map: DeviceMap = None,
    force: Force = False,
) -> None:
    """Run a model over a benchmark and keep its activations in a capture store.

    Run again after an interruption, it makes only what is missing. With `accelerate launch` (or
    torchrun), the chunks are shared among the processes.
    """
    if max_new_tokens is not None and positions != "generated":
        raise typer.BadParameter("--max-new-tokens goes with --positions generated")
    if answer_column and positions == "generated":
        raise typer.BadParameter(
            "--answer-column gives the model its answers, and --positions generated has it write "
            "them: leave one of them out"
        )
    n_asked = len(dataset)
    if weight and n_asked == 1:
        raise typer.BadParameter("--weight goes with several --dataset: one alone has no share")
    if unknown := set(prompt_template or ()) - set(PROMPT_TEMPLATES):
        raise typer.BadParameter(
            f"--prompt-template is {' or '.join(PROMPT_TEMPLATES)}, not '{unknown.pop()}'"
        )
    folders = _given("--image-dir", image_dir, n_asked)
    need_extras("capture", "capture")
    settings = CaptureSettings(
        model=model,
        dataset=tuple(dataset),
        image_dir=tuple(None if folder is None else Path(folder) for folder in folders),
        split=_given("--split", split, n_asked),
        # Of the pictures, to be left aside is something else than to be taken where they are.
        image_column=_counted("--image-column", image_column, n_asked) or (None,),
        query_column=_given("--query-column", query_column, n_asked),
        answer_column=_given("--answer-column", answer_column, n_asked),
        prompt_template=_counted("--prompt-template", prompt_template, n_asked) or ("chat",),
        weight=_counted("--weight", weight, n_asked) or (None,),
        system=system,
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
        logprobs=logprobs,
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
    if logprobs and not settings.keeps_answers:
        raise typer.BadParameter(
            f"--logprobs is of the tokens of answers, and --positions {positions} keeps none of "
            "them: leave it out, or ask for --positions generated, answer or all"
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


def _given(option: str, values: list[str] | None, n_asked: int) -> tuple[str | None, ...]:
    """Return an option's values, one for all datasets or one for each; None where there is none."""
    counted = _counted(option, values, n_asked)
    return tuple(None if value == NOT_GIVEN else value for value in counted) or (None,)


def _counted(option: str, values: Sequence[_T] | None, n_asked: int) -> tuple[_T, ...]:
    if values and len(values) not in (1, n_asked):
        raise typer.BadParameter(
            f"{option} is given {len(values)} times, and --dataset {n_asked}: give it once for "
            "all, or once for each in their order"
        )
    return tuple(values or ())


def _kept_layers(text: str) -> tuple[int, ...] | None:
    """Return the layers of a list; None of `all`. Which ones the model has is not known yet."""
    return None if text == _ALL else parse_layers(text, range(MOST_LAYERS), "in any model")


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--batch-size is a number from 1 on, or auto, not '{text}'")
    return int(text)
