"""The commands that make dataset folders: of capture stores, and of `.pt` files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from builder.commands.options import MaxShardSize, NTargets, nothing_kept
from llava_amber_activations.console.interruption import interruptible

NumProc = Annotated[
    int,
    typer.Option(min=1, help="Shards written at once: up to 4 by threads, more by processes."),
]
ImportThreads = Annotated[
    int, typer.Option(min=1, help="Shards written at once; up to 4 where there are cores, or more.")
]


def build(
    store: Annotated[Path, typer.Argument(help="Finished capture store.")],
    dataset: Annotated[Path, typer.Argument(help="New dataset folder.")],
    n_targets: NTargets = None,
    configs: Annotated[
        str | None,
        typer.Option(
            help="default (with L0 …), all_layers, or both.",
            show_default="default,all_layers; all_layers alone where default is over 20 GB",
        ),
    ] = None,
    max_shard_size: MaxShardSize = "500MB",
    annotations: Annotated[
        Path | None,
        typer.Option(help="Benchmark's annotations to join by `id`: JSON.", show_default="none"),
    ] = None,
    relations: Annotated[
        Path | None,
        typer.Option(help="With --annotations: AMBER's relation.json.", show_default="none"),
    ] = None,
    safe_words: Annotated[
        Path | None,
        typer.Option(help="With --relations: AMBER's safe_words.txt.", show_default="none"),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Answers to label instead of the captured ones: JSON of `id` and `response`.",
            show_default="none",
        ),
    ] = None,
    embed_pictures: Annotated[
        bool,
        typer.Option(
            "--embed-pictures",
            help="Put the pictures into config samples. Who publishes the folder then publishes "
            "them, too: see that their licences allow it.",
        ),
    ] = False,
    image_dir: Annotated[
        Path | None,
        typer.Option(
            help="With --embed-pictures, which needs it: folder of the pictures.",
            show_default="none",
        ),
    ] = None,
    picture_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --embed-pictures: longest side in pixels, as JPEG.",
            show_default="the files as they are",
        ),
    ] = None,
    num_proc: NumProc = 1,
    force: Annotated[
        bool, typer.Option("--force", help="Go on where the disk has too little room.")
    ] = False,
) -> None:
    """Build a dataset folder, which load_dataset opens, from a capture store."""
    from builder.asked.store_to_build import check_build
    from builder.samples.asked import SamplesAsked

    if embed_pictures and image_dir is None:
        raise typer.BadParameter("--embed-pictures needs --image-dir")
    if not embed_pictures and (image_dir is not None or picture_size is not None):
        raise typer.BadParameter("--image-dir and --picture-size go with --embed-pictures")
    for option, path in (("--relations", relations), ("--answers", answers)):
        if path is not None and annotations is None:
            raise typer.BadParameter(f"{option} goes with --annotations")
    if safe_words is not None and relations is None:
        raise typer.BadParameter("--safe-words goes with --relations")
    samples = SamplesAsked(annotations, relations, safe_words, answers, image_dir, picture_size)
    names = None if configs is None else [name.strip() for name in configs.split(",")]
    check_build(store, dataset, n_targets, names, max_shard_size, samples, force=force)
    from builder.build import build as build_folder
    from builder.folder.ranks import ranks_of_launch
    from builder.folder.unfinished import said_kept

    ranks = ranks_of_launch()

    was_there = (dataset / "manifest.json").is_file()
    with interruptible(lambda: said_kept(dataset) or nothing_kept(dataset)):
        manifest = build_folder(
            store,
            dataset,
            n_targets=n_targets,
            configs=names,
            max_shard_size=max_shard_size,
            samples=samples,
            num_proc=num_proc,
            force=force,
            ranks=ranks,
        )
    if not ranks.is_first:
        return
    config = next(iter(manifest.splits("default")), manifest.configs[-1])
    already = "built already from this store with these options, " if was_there else ""
    typer.echo(
        f"{dataset}: {already}{len(manifest.files)} files, {manifest.n_rows} rows in "
        f"{', '.join(manifest.configs)}. Next: load_dataset('{dataset}', '{config}')"
    )


def import_(
    pt_dir: Annotated[Path, typer.Argument(help="Folder of .pt files, of either layout.")],
    dataset: Annotated[Path, typer.Argument(help="New dataset folder.")],
    n_layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Decoder layers of the model.",
            show_default="as exported, or as files show",
        ),
    ] = None,
    first_target: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1,
            help="The files' targets start at the next layer (1) or at L (0).",
            show_default="as exported, or 1",
        ),
    ] = None,
    max_shard_size: MaxShardSize = "500MB",
    num_proc: ImportThreads = 1,
) -> None:
    """Make a dataset folder of a folder of .pt files."""
    from builder.asked.files_to_take import check_import

    check_import(pt_dir, dataset, max_shard_size)
    from builder.import_pt import import_pt

    with interruptible(lambda: nothing_kept(dataset)):
        manifest = import_pt(
            pt_dir,
            dataset,
            n_layers=n_layers,
            first_target=first_target,
            max_shard_size=max_shard_size,
            num_proc=num_proc,
        )
    typer.echo(
        f"{dataset}: {len(manifest.files)} files, {manifest.n_rows} rows in "
        f"{', '.join(manifest.configs)}"
    )
    for warning in manifest.warnings:
        typer.echo(f"note: {warning}")
