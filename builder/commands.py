"""The commands that make, check, describe and publish dataset folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from builder.asked.handover_asked import HandoverAsked
from llava_amber_activations.cli.command_line import AsJson
from llava_amber_activations.console.interruption import interruptible
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.extras import need_extras
from llava_amber_activations.formats.recipe import X_SITES, XSite

MaxShardSize = Annotated[str, typer.Option(help="Most bytes of a Parquet file, uncompressed.")]
NumProc = Annotated[
    int,
    typer.Option(min=1, help="Shards written at once: up to 4 by threads, more by processes."),
]
ImportThreads = Annotated[
    int, typer.Option(min=1, help="Shards written at once; up to 4 where there are cores, or more.")
]
NTargets = Annotated[
    int | None, typer.Option(min=1, help="Targets of a layer.", show_default="as captured")
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of the dataset on the Hub.", show_default="main"),
]
Source = Annotated[str, typer.Argument(help="Dataset folder, or a dataset's id on the Hub.")]


def add_commands(app: typer.Typer) -> None:
    """Add this package's commands to the command line."""
    for name, function in (
        ("build", build),
        ("verify", verify),
        ("info", info),
        ("push", push),
        ("export", export),
        ("import", import_),
    ):
        app.command(name)(function)


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
    num_proc: NumProc = 1,
    force: Annotated[
        bool, typer.Option("--force", help="Go on where the disk has too little room.")
    ] = False,
) -> None:
    """Build a dataset folder, which load_dataset opens, from a capture store."""
    from builder.asked.store_to_build import check_build

    names = None if configs is None else [name.strip() for name in configs.split(",")]
    check_build(store, dataset, n_targets, names, max_shard_size, force=force)
    from builder.build import build as build_folder
    from builder.folder.ranks import ranks_of_launch
    from builder.folder.unfinished import said_kept

    ranks = ranks_of_launch()

    was_there = (dataset / "manifest.json").is_file()
    with interruptible(lambda: said_kept(dataset) or _unfinished(dataset)):
        manifest = build_folder(
            store,
            dataset,
            n_targets=n_targets,
            configs=names,
            max_shard_size=max_shard_size,
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


def export(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder for the .pt files.")],
    format_: Annotated[
        Literal["layers", "samples", "llamascopium", "saelens", "crosslayer-coding"],
        typer.Option(
            "--format",
            help="L0/batch_0_x.pt and batch_0_y.pt, or sample_0000.pt; or what that trainer reads.",
        ),
    ],
    layers: Annotated[
        str | None, typer.Option(help="Such as 0-30 or 0,5,10-12.", show_default="all")
    ] = None,
    n_targets: NTargets = None,
    first_target: Annotated[
        int, typer.Option(min=0, max=1, help="Targets start at the next layer (1) or at L (0).")
    ] = 1,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Most samples of a batch file; all of equal length.")
    ] = 64,
    pad_targets: Annotated[
        bool, typer.Option(help="Append zero tensors up to --n-targets.")
    ] = False,
    x_site: Annotated[
        XSite | None,
        typer.Option(
            help="Where x is read: as captured; or, of a resid_mid capture, mlp_in, computed by "
            "the model's norms.",
            show_default="as captured",
            # As they are written down, where the names of options have hyphens.
            metavar=f"<{'|'.join(X_SITES)}>",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        typer.Option(
            help="Of the vectors; another than they were captured in may round.",
            show_default="as captured; for a trainer as the data set holds them",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="For a trainer: of the order.", show_default="0")
    ] = None,
    chunk_rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="For a trainer: fewest rows of a file.", show_default="4096 or 16384"
        ),
    ] = None,
    skip_first: Annotated[
        bool, typer.Option("--skip-first", help="For a trainer: leave out each position 0.")
    ] = False,
    revision: Revision = None,
) -> None:
    """Write the files that existing trainers read."""
    of_trainer = {
        "--seed": seed,
        "--chunk-rows": chunk_rows,
        "--skip-first": skip_first or None,
    }
    if format_ != "layers" and format_ != "samples":
        of_pt = {
            "--n-targets": n_targets,
            "--first-target": first_target if first_target != 1 else None,
            "--batch-size": batch_size if batch_size != 64 else None,
            "--pad-targets": pad_targets or None,
        }
        _refuse(of_pt, f"--format {format_}")
        asked = HandoverAsked(
            format_, layers, x_site, dtype, seed or 0, chunk_rows, skip_first=skip_first
        )
        _hand_over(source, out, asked, revision)
        return
    _refuse(of_trainer, f"--format {format_}")
    from builder.asked.dataset_to_read import check_export

    check_export(
        *(source, out, format_, layers, n_targets, first_target, pad_targets, revision),
        *(x_site, dtype),
    )
    from builder.export import export as export_files

    with interruptible(
        lambda: f"the files that are whole are kept in {out}, and the same command writes the rest"
    ):
        result = export_files(
            source,
            out,
            layout=format_,
            layers=layers,
            n_targets=n_targets,
            first_target=first_target,
            batch_size=batch_size,
            pad_targets=pad_targets,
            x_site=x_site,
            dtype=dtype,
            revision=revision,
        )
    typer.echo(f"{out}: {result.n_files} files of {result.contents}, {result.n_written} new")


def _refuse(options: Mapping[str, object], with_what: str) -> None:
    """Refuse options that a format does not have.

    Raises:
        typer.BadParameter: one was given.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise typer.BadParameter(f"{', '.join(given)} cannot go with {with_what}")


def _hand_over(source: str, out: Path, asked: HandoverAsked, revision: str | None) -> None:
    from builder.asked.dataset_to_read import check_hand_over

    check_hand_over(source, out, asked, revision)
    from builder.handover.hand_over import hand_over

    with interruptible(
        lambda: f"the chunks that are whole are kept in {out}, and the same command goes on"
    ):
        result = hand_over(source, out, asked, revision=revision)
    left_out = [
        f"{count} {why}"
        for count, why in (
            (result.n_skipped, "first positions left out"),
            (result.n_left_out, "rows left out, so that all chunks are of one size"),
        )
        if count
    ]
    typer.echo(
        f"{out}: {result.n_rows} rows of {len(result.note.layers)} layers in {result.n_chunks} "
        f"chunks, {result.n_written} new{''.join(f'; {each}' for each in left_out)}\n"
        f"To train on it:\n\n{result.code}"
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

    with interruptible(lambda: _unfinished(dataset)):
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


def push(
    repo_id: Annotated[
        str, typer.Option(help="OWNER/NAME on the Hub; made where it does not exist.")
    ],
    dataset: Annotated[
        Path | None, typer.Argument(help="Dataset folder, or a folder of .pt files.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    token: Annotated[
        str | None,
        typer.Option(help="Access token.", show_default="of `hf auth login`, or HF_TOKEN"),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Push to a repo that is not a dataset of this project, too."
        ),
    ] = False,
    activations_dir: Annotated[
        Path | None,
        typer.Option(
            help="DATASET, as the original upload script spells it.", show_default="DATASET"
        ),
    ] = None,
) -> None:
    """Verify a dataset folder and upload it to the Hub, with its card and its format's tag."""
    if (dataset is None) == (activations_dir is None):
        raise typer.BadParameter("give the dataset folder once: DATASET or --activations-dir")
    folder = dataset or activations_dir
    assert folder is not None
    from builder.asked.files_to_take import check_push

    check_push(folder, repo_id, token)
    if token is not None:
        typer.echo(
            "warning: other users and your shell's history can see a token on the command line; "
            "`hf auth login` or HF_TOKEN keeps it to yourself",
            err=True,
        )
    from builder.conversion import dataset_to_push
    from builder.push import push as push_folder

    with interruptible(
        lambda: (
            f"{repo_id} shows what it showed before, unless the push was all but done; what "
            "was sent is not sent again by the same command, which goes on with the rest"
        )
    ):
        to_push, converted = dataset_to_push(folder)
        if converted:
            typer.echo(f"{folder} holds .pt files: pushing {to_push}, which they were converted to")
        pushed = push_folder(
            to_push,
            repo_id,
            private=private or None,
            token=token,
            overwrite=overwrite,
            announce=typer.echo,
        )
    typer.echo(f"{pushed.url} (tag {pushed.tag}, commit {pushed.commit[:8]})")


def verify(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="Capture store or dataset folder.")],
    recapture: Annotated[
        int,
        typer.Option(min=0, help="Then run `recapture` on so many random samples of a store."),
    ] = 0,
    model: Annotated[
        str | None,
        typer.Option(help="With --recapture, which needs it: the model.", show_default="none"),
    ] = None,
    image_dir: Annotated[
        Path | None,
        typer.Option(
            help="With --recapture, which needs it: folder of the pictures.", show_default="none"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="With --recapture: of the draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check every checksum, row count and value; exit 1 naming the first thing wrong."""
    if recapture and (model is None or image_dir is None):
        raise typer.BadParameter("--recapture needs --model and --image-dir")
    if not recapture and (model is not None or image_dir is not None):
        raise typer.BadParameter("--model and --image-dir go with --recapture")
    if recapture:
        need_extras("--recapture", "capture")
    from builder.asked.dataset_to_read import check_verify

    try:
        check_verify(path, store_only=recapture > 0)
        from builder.verify import verify as verify_path

        found = verify_path(path)
    except ActivationsError as error:
        if as_json:
            typer.echo(json.dumps({"path": str(path), "right": False, "error": str(error)}))
        raise
    if as_json:
        typer.echo(json.dumps({"path": str(path), "right": True, **found.to_json()}))
    else:
        typer.echo(
            f"{path}: {found.kind}, {found.n_files} files, {found.n_rows} rows. "
            f"Right: {', '.join(found.checks)}"
        )
    if recapture:
        # Another package's command: known by its name alone.
        commands: Any = context.find_root().command
        again = commands.get_command(context, "recapture")
        again.callback(
            store=path,
            model=model,
            image_dir=image_dir,
            samples=recapture,
            seed=seed,
            as_json=as_json,
        )


def _unfinished(dataset: Path) -> str:
    return f"nothing of {dataset} is kept, and the same command makes it from the beginning"


def info(
    source: Annotated[
        str, typer.Argument(help="Capture store, dataset folder, or a dataset's id on the Hub.")
    ],
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Say what a store or a dataset is: recipe, layers, rows, bytes, dtypes."""
    from builder.info import describe

    described = describe(source, revision)
    if as_json:
        typer.echo(json.dumps({"source": source, **described.to_json()}))
        return
    pairs = described.table()
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        typer.echo(f"{name:<{width}}  {value}")
