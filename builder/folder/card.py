"""The dataset card: YAML for the Hub and `load_dataset`, and a text made from the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import jinja2
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from builder.drawn.card_look import CardLook, look_at
from builder.drawn.card_words import example_lines, figure_words
from builder.folder.provenance import (
    Origin,
    benchmarks_of,
    model_of,
    public_recipe,
    said_of_list,
)
from builder.samples.meanings import meaning_of, readable_type
from llava_amber_activations.console.sizes import readable_size
from llava_amber_activations.files.whole import write_text
from llava_amber_activations.formats.columns import N_ROWS, PICTURE, SAMPLE_COLUMNS, SOURCE
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    CARD_FILE,
    CLT_FEATURES,
    DEFAULT_CONFIG,
    NORMS_FILE,
    REPORT_FILE,
    SAMPLES,
    SAMPLES_SPLIT,
    Manifest,
)
from llava_amber_activations.formats.layers import (
    LayerWindow,
    layers_text,
    mlp_out_name,
    split_layer,
    split_name,
    x_name,
)
from llava_amber_activations.formats.schema import features_of
from llava_amber_activations.sources.source import Source

# A folder that has not been pushed has no name on the Hub yet.
NO_REPO_ID = "OWNER/NAME"
_TEMPLATE = "card.md.j2"
_TAGS = ("activations", "interpretability", "transcoders")
_SIZE_CATEGORIES = (
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (1e7, "1M<n<10M"),
    (1e8, "10M<n<100M"),
)


def write_card(folder: Path, manifest: Manifest, look: CardLook | None) -> None:
    """Write `README.md` into a dataset folder whose other files are there."""
    write_text(folder / CARD_FILE, card_text(folder, manifest, NO_REPO_ID, look))


def card_text(folder: Path, manifest: Manifest, repo_id: str, look: CardLook | None = None) -> str:
    """Return the card of a dataset folder as the repo `repo_id` shows it.

    What it says of the model and of the benchmark is what the recipe says, without the paths of
    the machine that it was made on. The manifest's entry of the card itself is not used: the card
    is made before its checksum.

    Args:
        look: at the dataset; where it is None, it is looked at here.
    """
    look = look or look_at(Source(str(folder), str(folder), manifest))
    recipe = public_recipe(manifest.recipe)
    model, benchmarks = model_of(recipe), benchmarks_of(recipe)
    origins = [model, *benchmarks]
    pretty_name = _pretty_name(manifest, origins)
    licence: dict[str, Any] = {"license": "unknown"}
    if benchmarks and all(origin.is_known for origin in origins):
        licence = {
            "license": "other",
            "license_name": "of-the-model-and-the-benchmark",
            "license_link": "README.md#licence",
        }
    data = DatasetCardData(
        pretty_name=pretty_name,
        **licence,
        language=["en"] if benchmarks and all(each.is_known for each in benchmarks) else None,
        tags=list(dict.fromkeys([*_TAGS, *(tag for origin in origins for tag in origin.tags)])),
        task_categories=["feature-extraction"],
        size_categories=[_size_category(manifest.n_rows)],
        configs=_configs(manifest),
    )
    _dataset_infos(folder, manifest).to_dataset_card_data(data)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters["size"] = readable_size
    template = resources.files("builder.folder").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    layers = list(manifest.splits(DEFAULT_CONFIG))
    # A layer from the middle, and few targets, so that the examples are not the exception.
    counts = _target_counts(manifest)
    splits = layers or list(counts)
    example = splits[min(5, len(splits) - 1)] if splits else split_name(recipe.kept_layers[0])
    text = environment.from_string(template).render(
        repo_id=repo_id,
        is_pushed=repo_id != NO_REPO_ID,
        origins=origins,
        said_of_list=said_of_list,
        citations=[origin.citation for origin in origins if origin.citation is not None],
        uncited=[origin.name for origin in origins if origin.citation is None],
        pretty_name=pretty_name,
        manifest=manifest,
        recipe=recipe,
        layers=layers,
        all_layers=manifest.splits(ALL_LAYERS),
        clt_features=list(manifest.splits(CLT_FEATURES)),
        example=example,
        example_layer=split_layer(example),
        example_targets=min(4, counts.get(example, 1)),
        example_first=0 if recipe.layers is not None and not splits else 1,
        counts=list(counts.items()),
        kept=None if recipe.layers is None else layers_text(recipe.layers),
        first_x=x_name(recipe.kept_layers[0]),
        first_mlp_out=mlp_out_name(recipe.kept_layers[0]),
        sizes=config_sizes(manifest),
        look=look,
        figures=_figures(manifest, look),
        examples=[] if look is None else example_lines(look.examples),
        norms=NORMS_FILE if NORMS_FILE in manifest.files else None,
        report=REPORT_FILE if REPORT_FILE in manifest.files else None,
        **_samples(folder, manifest),
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _figures(manifest: Manifest, look: CardLook | None) -> list[dict[str, str]]:
    """Return the figures that the folder has: path, alternative text and sentence of each."""
    if look is None:
        return []
    return [
        {"path": path, "alt": alt, "sentence": sentence}
        for path, (alt, sentence) in figure_words(look, manifest.recipe.hidden_size).items()
        if path in manifest.files
    ]


def _pretty_name(manifest: Manifest, origins: Sequence[Origin]) -> str:
    kind = "Transcoder features" if manifest.configs == [CLT_FEATURES] else "Activations"
    model, *benchmarks = (origin.name for origin in origins)
    return f"{kind} of {model}{' on ' if benchmarks else ''}{', '.join(benchmarks)}"


def _target_counts(manifest: Manifest) -> dict[str, int]:
    """Return how many targets each layer has, of those that have all of theirs."""
    if manifest.recipe.n_layers < 2:
        return {}
    window = LayerWindow(manifest.recipe.n_layers, manifest.n_targets)
    sources = window.whole_sources(manifest.recipe.kept_layers)
    return {split_name(layer): len(window.targets(layer)) for layer in sources}


def _size_category(n_rows: int) -> str:
    return next((name for limit, name in _SIZE_CATEGORIES if n_rows < limit), "100M<n<1B")


def card_configs(manifest: Manifest) -> dict[str, dict[str, list[str]]]:
    """Return the shards of every split of every config that `load_dataset` shows.

    The splits of the default config are configs of their own too, because
    `load_dataset(repo, split="L5")` downloads every split's files and `load_dataset(repo, "L5")`
    one layer's.
    """
    configs = {config: manifest.splits(config) for config in manifest.all_configs}
    for split, paths in configs.get(DEFAULT_CONFIG, {}).items():
        configs[split] = {split: paths}
    return configs


def _configs(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "config_name": config,
            # What `load_dataset(repo)` opens where no config is named `default`.
            **({"default": True} if config == _unnamed(manifest) else {}),
            # datasets names its cache of a local folder after what the card says: a folder built
            # anew in the same place must say something else.
            "description": f"contents {_digest(manifest, splits)}",
            "data_files": [
                {"split": split, "path": f"{Path(paths[0]).parent}/{split}-*.parquet"}
                for split, paths in splits.items()
            ],
        }
        for config, splits in card_configs(manifest).items()
    ]


def _unnamed(manifest: Manifest) -> str | None:
    """Return the config of vectors that stands for the default one, where there is none."""
    return None if DEFAULT_CONFIG in manifest.configs else next(iter(manifest.configs), None)


def _digest(manifest: Manifest, splits: dict[str, list[str]]) -> str:
    checksums = [manifest.files[path].sha256 for paths in splits.values() for path in paths]
    return hashlib.sha256("".join(checksums).encode()).hexdigest()[:16]


def _dataset_infos(folder: Path, manifest: Manifest) -> datasets.info.DatasetInfosDict:
    infos = datasets.info.DatasetInfosDict()
    for config, splits in card_configs(manifest).items():
        first = next(iter(splits.values()))[0]
        split_dict = datasets.SplitDict()
        for split, paths in splits.items():
            split_dict[split] = datasets.SplitInfo(
                name=split,
                num_bytes=manifest.bytes_of(paths),
                num_examples=manifest.rows_of(paths),
            )
        infos[config] = datasets.DatasetInfo(
            features=features_of(pq.read_schema(folder / first)),
            splits=split_dict,
            download_size=sum(manifest.bytes_of(paths) for paths in splits.values()),
            dataset_size=sum(manifest.bytes_of(paths) for paths in splits.values()),
        )
    return infos


def _samples(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return what the card says of config `samples`: the columns that were joined, the pictures."""
    paths = manifest.shards(SAMPLES, SAMPLES_SPLIT)
    own = {*SAMPLE_COLUMNS, PICTURE}
    if SOURCE in manifest.recipe.extra_columns:
        own.add(SOURCE)
    schema = pq.read_schema(folder / paths[0]) if paths else []
    size = None if manifest.built_from is None else manifest.built_from.picture_size
    shown = "the picture's file"
    if size is not None:
        shown = f"the picture as JPEG, its longest side {size} pixels or less"
    return {
        "samples": bool(paths),
        "joined": [
            (field.name, readable_type(field.type), meaning_of(field.name))
            for field in schema
            if field.name not in own
        ],
        "sources": _sources(folder, manifest, paths),
        "pictures": shown if any(field.name == PICTURE for field in schema) else None,
    }


def _sources(folder: Path, manifest: Manifest, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return a line for each source of a dataset of several: its samples, and its rows."""
    recipe = public_recipe(manifest.recipe)
    if SOURCE not in recipe.extra_columns or not paths:
        return []
    n_rows: Counter[str] = Counter()
    for path in paths:
        table = pq.read_table(folder / path, columns=[SOURCE, N_ROWS])
        for source, count in zip(*(column.to_pylist() for column in table.columns), strict=True):
            n_rows[source] += count
    return [{**vars(source), "n_rows": n_rows[source.name]} for source in recipe.sources or ()]


def config_sizes(manifest: Manifest) -> list[dict[str, Any]]:
    """Return a line for each config whose files are its own."""
    lines = []
    for config in manifest.all_configs:
        splits = manifest.splits(config)
        names = list(splits)
        paths = [path for split in splits.values() for path in split]
        lines.append(
            {
                "name": config,
                "splits": names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}",
                "rows": manifest.rows_of(splits[names[0]]),
                "files": len(paths),
                "bytes": manifest.bytes_of(paths),
            }
        )
    return lines
