"""What `export` and `verify` are asked for: a dataset that has it, and room for the files."""

from __future__ import annotations

from pathlib import Path

from builder.asked.handover_asked import HandoverAsked
from builder.asked.new_place import ITEM_BYTES
from builder.pt.export_note import EXPORT_FILE, check_free
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.extras import need_extras
from llava_amber_activations.files.room import check_room
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    CLT_FEATURES,
    DEFAULT_CONFIG,
    Manifest,
)
from llava_amber_activations.formats.dtypes import dataset_dtype
from llava_amber_activations.formats.layers import (
    LayerWindow,
    check_n_targets,
    layers_text,
    parse_layers,
)
from llava_amber_activations.reading.wanted_hooks import hook_shards
from llava_amber_activations.sources.sites import is_computed
from llava_amber_activations.sources.source import Source, open_source
from llava_amber_activations.store.layout import is_store
from llava_amber_activations.store.samples import read_samples

LAYERS, SAMPLES = "layers", "samples"


def check_verify(path: Path, *, store_only: bool = False) -> None:
    """Check that there is something to verify: a finished store, or a dataset folder.

    Args:
        store_only: refuse a dataset folder, which nobody can recapture.

    Raises:
        ActivationsError: there is not.
    """
    if not path.is_dir():
        raise ActivationsError(f"{path} is not a folder: give a capture store or a dataset folder")
    if is_store(path):
        read_samples(path)
    elif store_only:
        raise ActivationsError(f"{path} is not a capture store, which alone can be recaptured")
    else:
        open_source(path)


def check_export(
    source: str,
    out: Path,
    layout: str,
    layers: str | None,
    n_targets: int | None,
    first_target: int,
    pad_targets: bool,
    revision: str | None,
    x_site: str | None = None,
    dtype: str | None = None,
) -> None:
    """Check what can be checked of an export before its tools are loaded.

    Raises:
        ActivationsError: the source is no dataset or does not hold what is asked for, something is
            in the way at `out`, or its disk has too little room.
    """
    opened = open_source(source, revision)
    manifest = opened.manifest
    recipe = manifest.recipe
    check_targets(layout, n_targets, pad_targets, recipe.n_layers)
    check_site(opened, layout, x_site)
    if n_targets is not None:
        check_n_targets(n_targets, recipe.n_layers, first_target)
    window = LayerWindow(recipe.n_layers, n_targets or manifest.n_targets, first_target)
    chosen = chosen_layers(opened, layout, window, layers)
    check_free(out)
    if (out / EXPORT_FILE).is_file():
        return  # what is there already is not written again
    if layout == LAYERS:
        n_vectors = sum(1 + len(window.targets(layer)) for layer in chosen)
    else:
        n_vectors = len(chosen)
    item = ITEM_BYTES[export_dtype(manifest, dtype)]
    n_bytes = manifest.n_rows * n_vectors * recipe.hidden_size * item
    check_room(out, n_bytes, f"an export of {len(chosen)} layers")


def export_dtype(manifest: Manifest, asked: str | None) -> str:
    """Return the dtype of exported tensors: as captured, unless another is asked for.

    What was captured in bfloat16 a dataset holds as float32, which is turned back exactly.
    """
    captured = manifest.recipe.store_dtype
    return asked or (captured if dataset_dtype(captured) == manifest.dtype else manifest.dtype)


def check_hand_over(source: str, out: Path, asked: HandoverAsked, revision: str | None) -> None:
    """Check what can be checked of a hand-over before its tools are loaded.

    Raises:
        ActivationsError: as `check_export`, or what the layout needs is not installed.
    """
    if asked.format == "crosslayer-coding":
        need_extras("--format crosslayer-coding", "crosslayer-coding")
    opened = open_source(source, revision)
    manifest = opened.manifest
    hook_shards(opened)
    layers = manifest.recipe.kept_layers
    n_layers = len(layers if asked.layers is None else parse_layers(asked.layers, layers))
    check_free(out)
    if (out / EXPORT_FILE).is_file():
        return
    item = ITEM_BYTES[manifest.dtype if asked.dtype is None else asked.dtype]
    n_bytes = manifest.n_rows * 2 * n_layers * manifest.recipe.hidden_size * item
    check_room(out, n_bytes, f"an export of {n_layers} layers")


def chosen_layers(
    source: Source, layout: str, window: LayerWindow, asked: str | None
) -> tuple[int, ...]:
    """Return the layers that a layout is made of: those asked for, or all that it can be made of.

    Raises:
        ActivationsError: the dataset has none, or not those.
    """
    available = _available_layers(source, layout, window)
    if asked is None:
        return available
    whole = layout == LAYERS and source.manifest.recipe.layers is not None
    where = "in this data with all of their targets" if whole else "in this data"
    return parse_layers(asked, available, where)


def _available_layers(source: Source, layout: str, window: LayerWindow) -> tuple[int, ...]:
    manifest = source.manifest
    kept = manifest.recipe.layers
    if layout == SAMPLES and CLT_FEATURES in manifest.configs:
        return manifest.layers(CLT_FEATURES)
    if ALL_LAYERS in manifest.configs and kept is None:
        return tuple(window.sources)
    if ALL_LAYERS in manifest.configs and kept is not None:
        layers = window.whole_sources(kept) if layout == LAYERS else kept
        if not layers:
            raise ActivationsError(
                f"{source.name} has the layers {layers_text(kept)}, and of none of them all "
                f"{window.n_targets} targets: ask for fewer, with --n-targets, for the layer's own "
                "with --n-targets 1 --first-target 0, or for --format samples"
            )
        return layers
    layers = manifest.layers(DEFAULT_CONFIG)
    if not layers:
        raise ActivationsError(f"{source.name} has no x and targets: export it as --format samples")
    return layers


def check_targets(layout: str, n_targets: int | None, pad: bool, n_layers: int) -> None:
    """Check that targets are asked for where there are some, and padding within reason.

    Raises:
        ActivationsError: they are not.
    """
    if layout == SAMPLES and (pad or n_targets is not None):
        raise ActivationsError(
            "sample files have no targets: n_targets and pad_targets are of the layers layout"
        )
    if pad and n_targets is not None and n_targets > n_layers:
        raise ActivationsError(
            f"padding up to n_targets={n_targets}, where the model has {n_layers} layers, would "
            "write nothing but zeros: give as many as there are layers at most"
        )


def check_site(source: Source, layout: str, x_site: str | None) -> None:
    """Check that `x` can be had at a site, and is what the layout holds where one is asked for.

    Raises:
        ActivationsError: it cannot, or is not.
    """
    if x_site is not None and layout == SAMPLES and CLT_FEATURES in source.manifest.configs:
        raise ActivationsError(
            f"{source.name} has transcoder features, which sample files hold in the place of x: "
            "leave x_site out"
        )
    is_computed(source, x_site)
