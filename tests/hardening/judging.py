"""What becomes of a damaged file: everything that reads it is run, and what it gave is judged.

Each step ends `right`, `refused` (an ActivationsError of one line), `other` (values that the file
now says, read by something that checks nothing) or `wrong` (everything else).
"""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from cases import Case
from norms_by_hand import mlp_in_by_hand
from originals import (
    N_LAYERS,
    N_TARGETS,
    WIDTH,
    Expected,
    Tensors,
    dataset_problem,
    pt_values,
    settings_of,
)
from safetensors.numpy import load_file

from builder.build import build
from builder.export import export
from builder.import_pt import import_pt
from builder.info import info
from builder.verify import verify
from capture.run import capture
from capture.samples.queries import read_queries
from llava_amber_activations import (
    Activations,
    ActivationsError,
    activation_batches,
    load_activations,
    load_statistics,
    open_layer,
)

RIGHT, REFUSED, OTHER, WRONG = "right", "refused", "other", "wrong"


@dataclass(frozen=True)
class Step:
    """One reader, how it ended, and what it said."""

    name: str
    outcome: str
    said: str = ""


class WrongError(Exception):
    """What a reader gave is not right; the message says how."""


class OtherValuesError(Exception):
    """A reader that checks nothing gave what the damaged file says."""


@dataclass(frozen=True)
class Bench:
    """A damaged copy, and what it was a copy of.

    Attributes:
        case: what was damaged, and how.
        folder: the damaged copy.
        originals: the root of the undamaged files.
        out: an empty folder for what the readers make.
    """

    case: Case
    folder: Path
    originals: Path
    out: Path
    expected: Expected


Reader = tuple[str, Callable[[Bench], None]]


def judge(bench: Bench) -> Iterator[str | Step]:
    """Yield the name of each step before it begins, and how it ended."""
    for name, read in readers_of(bench.case):
        yield name
        yield attempt(name, lambda read=read: read(bench))


def attempt(name: str, read: Callable[[], None]) -> Step:
    """Run one reader and say how it ended."""
    try:
        read()
    except ActivationsError as error:
        problem = _no_sentence(str(error))
        return Step(name, WRONG if problem else REFUSED, problem or str(error))
    except OtherValuesError as other:
        return Step(name, OTHER, str(other))
    except WrongError as wrong:
        return Step(name, WRONG, str(wrong))
    except BaseException as error:
        ours = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "/tests/" not in frame.filename and "site-packages" not in frame.filename
        ]
        at = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        return Step(name, WRONG, f"{type(error).__name__}: {str(error)[:200]}{at}")
    return Step(name, RIGHT)


def _no_sentence(text: str) -> str | None:
    """Say what keeps an error from being one line for a user; None where nothing does."""
    if not text.strip() or "\n" in text or "\r" in text:
        return f"not one line: {text[:200]!r}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"cannot be printed: {text[:200]!r}"
    return f"too long a line ({len(text)} characters): {text[:200]}" if len(text) > 1500 else None


def readers_of(case: Case) -> list[Reader]:
    """Return what reads a kind of file, in order."""
    if case.root == "store":
        return _STORE
    if case.root in ("dataset", "own"):
        return _DATASET
    if case.root == "queries":
        return _QUERIES
    return [("import", _import)]


# A capture store.


def _verify_store(bench: Bench) -> None:
    verify(bench.folder)
    _check_store(bench)


def _check_store(bench: Bench) -> None:
    """Check a store that `verify` let pass: right, or of the right form where it was resealed."""
    expected = bench.expected
    if bench.case.resealed:
        for path in sorted((bench.folder / "chunks").glob("chunk-*.safetensors")):
            for name, values in load_file(path).items():
                vector = name.startswith(("x_", "mlp_out_"))
                good = not vector or (
                    values.dtype == np.float32
                    and values.shape[1:] == (WIDTH,)
                    and np.isfinite(values).all()
                )
                if not good:
                    raise WrongError(f"verify let {name} of {path.name} pass: {values.dtype}")
        return
    recipe = json.loads((bench.folder / "capture.json").read_bytes())
    if recipe != expected.recipe:
        raise WrongError(f"verify let capture.json pass: {_difference(recipe, expected.recipe)}")
    lines = (bench.folder / "samples.jsonl").read_bytes().splitlines()
    samples = [json.loads(line) for line in lines if line.strip()]
    if samples != expected.samples:
        raise WrongError(f"verify let samples.jsonl pass: {_difference(samples, expected.samples)}")
    for directory, files in (("chunks", expected.chunks), ("features", expected.features)):
        for name, tensors in files.items():
            found = load_file(bench.folder / directory / name)
            if not _equal(found, tensors):
                raise WrongError(f"verify let other values in {name} pass")


def _build(bench: Bench) -> None:
    built = bench.out / "built"
    manifest = build(bench.folder, built)
    if bench.case.resealed:
        verify(built)
        return
    problem = dataset_problem(built, bench.expected)
    if problem:
        raise WrongError(f"build made a dataset in which {problem}")
    recipe = manifest.recipe.to_json()
    before = bench.expected.manifest["dataset"]["recipe"]
    if {key: recipe.get(key) for key in before} != before:
        raise WrongError(f"build vouches for another recipe: {_difference(recipe, before)}")


def _info(bench: Bench) -> None:
    for name, value in info(bench.folder):
        if not isinstance(value, str) or "\n" in value:
            raise WrongError(f"info gives {name} as {value!r}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise WrongError(f"info gives a {name} that cannot be printed") from None


def _resume(bench: Bench) -> None:
    settings = settings_of(bench.originals, bench.folder)
    capture(settings, device=torch.device("cpu"))
    try:
        verify(bench.folder)
    except ActivationsError:
        # What was captured before is opened by a resume, and read whole by verify alone.
        return
    _check_store(bench)


_STORE: list[Reader] = [
    ("verify", _verify_store),
    ("build", _build),
    ("info", _info),
    ("capture again", _resume),
]


# A dataset folder.


def _verify_dataset(bench: Bench) -> None:
    verify(bench.folder)
    if bench.case.resealed:
        for path in sorted(bench.folder.glob("*/*.parquet")):
            _check_form(bench, path)
        return
    manifest = json.loads((bench.folder / "manifest.json").read_bytes())
    before = bench.expected.manifest[bench.case.root]
    if manifest != before:
        raise WrongError(f"verify let manifest.json pass: {_difference(manifest, before)}")
    changed = bench.case.file
    if changed != "manifest.json" and (
        (bench.folder / changed).read_bytes()
        != (bench.originals / bench.case.root / changed).read_bytes()
    ):
        raise WrongError(f"verify let {changed} pass, whose bytes differ")


def _check_form(bench: Bench, path: Path) -> None:
    """Check that a shard which was let pass has vectors of the width and dtype of the rest."""
    table = pq.ParquetFile(path).read()
    for name in ("x", "x_01", "mlp_out_02"):
        if name in table.schema.names:
            type_ = table.schema.field(name).type
            good = (
                pa.types.is_fixed_size_list(type_)
                and type_.list_size == WIDTH
                and type_.value_type == pa.float32()
                and table[name].null_count == 0
            )
            if not good:
                raise WrongError(f"verify let {path.name} pass, whose {name} is {type_}")


def _statistics(bench: Bench) -> None:
    statistics = load_statistics(bench.folder)
    found = {
        name: getattr(statistics.robust if name != of_all else statistics, of_all).numpy()
        for name in bench.expected.statistics
        for of_all in (name.removeprefix("robust_"),)
    }
    if not _equal(found, bench.expected.statistics):
        raise OtherValuesError("the statistics differ")


def _samples(bench: Bench) -> None:
    """Judge the table of samples: as before, or as pyarrow reads the damaged file."""
    found = Activations(bench.folder).samples
    expected = [_with_all_tokens(line) for line in bench.expected.samples]
    rows = found.to_pylist()
    if rows == [{name: line.get(name) for name in found.column_names} for line in expected]:
        return
    if bench.case.file.startswith("samples/"):
        plain = pq.ParquetFile(bench.folder / bench.case.file).read().to_pylist()
        if rows != [{name: row.get(name) for name in found.column_names} for row in plain]:
            raise WrongError("samples are neither as before nor as pyarrow reads the file")
    raise OtherValuesError("the samples differ")


def _with_all_tokens(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line of samples.jsonl with each run of equal tokens written out."""
    runs = line.get("tokens")
    if runs is None:
        return line
    pairs = [(run, 1) if isinstance(run, str) else run for run in runs]
    return {**line, "tokens": [text for text, times in pairs for _ in range(times)]}


def _read_batches(dataset: Any) -> Tensors:
    parts: dict[str, list[np.ndarray]] = {}
    for batch in activation_batches(dataset, 64):
        for name, tensor in batch.items():
            parts.setdefault(name, []).append(tensor.numpy().copy())
    return {name: np.concatenate(each) for name, each in parts.items()}


def _open_layer(layer: int) -> Reader:
    def read(bench: Bench) -> None:
        _compare_layer(bench, layer, _read_batches(open_layer(bench.folder, layer)))

    return f"open_layer {layer}", read


def _mlp_in(layer: int) -> Reader:
    """Judge what is computed by the norms: as before, or at least as the damaged file says."""

    def read(bench: Bench) -> None:
        found = _read_batches(open_layer(bench.folder, layer, x_site="mlp_in"))["x"]
        norms = bench.folder / "norms.safetensors"
        x, _ = bench.expected.vectors(layer)
        if _near(found, mlp_in_by_hand(bench.originals / bench.case.root / norms.name, x, layer)):
            return
        # Of damaged shards the own site is judged, whose values these are computed of.
        if bench.case.file == norms.name and not (
            bench.case.resealed and _near(found, mlp_in_by_hand(norms, x, layer))
        ):
            raise WrongError(f"mlp_in of L{layer} is neither as before nor as the file now says")
        raise OtherValuesError(f"mlp_in of L{layer} has other values than before")

    return f"open_layer {layer} at mlp_in", read


def _near(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def _load(layer: int, streaming: bool) -> Reader:
    def read(bench: Bench) -> None:
        cache = bench.out / "cache"
        dataset = load_activations(bench.folder, layer, streaming=streaming, cache_dir=cache)
        _compare_layer(bench, layer, _read_batches(dataset))

    return f"load_activations {layer}{' streaming' if streaming else ''}", read


def _export(bench: Bench) -> None:
    export(bench.folder, bench.out / "pt", layout="layers", batch_size=2)


_DATASET: list[Reader] = [
    ("verify", _verify_dataset),
    ("info", _info),
    ("load_statistics", _statistics),
    ("samples", _samples),
    *(_open_layer(layer) for layer in range(N_LAYERS - 1)),
    *(_mlp_in(layer) for layer in range(N_LAYERS - 1)),
    _load(0, streaming=True),
    _load(1, streaming=False),
    ("export", _export),
]


def _compare_layer(bench: Bench, layer: int, found: Tensors) -> None:
    """Judge a layer's rows: as before, or at least as pyarrow reads the damaged files."""
    x, targets = bench.expected.vectors(layer)
    tensors = bench.expected.tensors
    wanted = {"x": x, "targets": targets}
    wanted |= {name: tensors[name] for name in ("sample", "position", "token_id")}
    ids = [bench.expected.samples[sample]["id"] for sample in tensors["sample"]]
    wanted["id"] = np.array(ids, dtype=np.int32)
    if _equal({name: found.get(name) for name in wanted}, wanted):
        return
    if bench.case.file.endswith(".parquet"):
        plain = _plain_layer(bench.folder, layer, found)
        if plain is None:
            raise WrongError("values out of a file that pyarrow cannot read")
        differs = [name for name in plain if not _equal_arrays(found[name], plain[name])]
        if differs:
            raise WrongError(f"{differs} are neither as before nor as pyarrow reads the file")
    raise OtherValuesError(f"L{layer} has other values than before")


def _plain_layer(folder: Path, layer: int, found: Tensors) -> Tensors | None:
    """Read by pyarrow what a layer's readers should have read; None where it cannot."""
    try:
        paths = sorted((folder / "all_layers").glob("*.parquet"))
        own = not paths
        paths = paths or sorted((folder / "data").glob(f"L{layer}-*.parquet"))
        tables = [pq.ParquetFile(path).read() for path in paths]
        targets = range(layer + 1, min(layer + N_TARGETS, N_LAYERS - 1) + 1)
        plain = {}
        for name in found:
            names = [name]
            if not own and name in ("x", "targets"):
                names = [f"x_{layer:02d}"] if name == "x" else [f"mlp_out_{k:02d}" for k in targets]
            parts = [
                np.concatenate([np.array(table[each].to_pylist()) for table in tables])
                for each in names
            ]
            plain[name] = np.stack(parts, axis=1) if name == "targets" and not own else parts[0]
            if name == "kind":
                codes = {"text": 0, "image": 1, "generated": 2}
                plain[name] = np.array([codes.get(kind, -1) for kind in parts[0]], np.int32)
        return plain
    except Exception:
        return None


# `.pt` folders.


def _import(bench: Bench) -> None:
    imported = bench.out / "imported"
    manifest = import_pt(bench.folder, imported)
    verify(imported)
    if bench.case.file == "export.json":
        recipe = manifest.recipe.to_json()
        before = bench.expected.manifest["dataset"]["recipe"]
        # Sizes come from the files. Without an export.json nothing else is known.
        left_out = ("origin", "n_layers", "hidden_size", "n_targets", "n_samples", "store_dtype")
        if not (bench.folder / "export.json").exists():
            return
        for key in before.keys() - set(left_out):
            if recipe.get(key) != before[key]:
                raise WrongError(f"import takes another recipe: {key} is {recipe.get(key)!r}")
        return
    if _imported_as(imported, bench.originals / bench.case.root):
        return
    try:
        right = _imported_as(imported, bench.folder)
    except Exception as error:
        raise WrongError(
            f"imported other values; read alone it is {type(error).__name__}"
        ) from None
    if not right:
        raise WrongError("imported values that are neither as before nor what the file says")


def _imported_as(imported: Path, folder: Path) -> bool:
    """Whether a dataset folder holds what the `.pt` files of a folder say, read by torch alone."""
    layers: dict[int, list[np.ndarray]] = {}
    config, column = "data", "x"
    for path in sorted(folder.glob("L*/batch_*_x.pt")):
        (x,) = pt_values(path).values()
        layers.setdefault(int(path.parent.name[1:]), []).append(x.reshape(-1, x.shape[-1]))
        # Targets are read too, so that what is wrong with them is not passed over.
        pt_values(path.with_name(path.name.replace("_x", "_y")))
    for path in sorted(folder.glob("sample_*.pt")):
        config, column = "clt_features", "features"
        for name, tensor in pt_values(path).items():
            layer = int(name.rpartition("/")[2])
            layers.setdefault(layer, []).append(tensor.reshape(-1, tensor.shape[-1]))
    for layer, parts in layers.items():
        paths = sorted((imported / config).glob(f"L{layer}-*.parquet"))
        tables = [pq.ParquetFile(path).read([column]) for path in paths]
        values = [np.array(table[column].to_pylist(), np.float32) for table in tables]
        widths = {each.shape[1] for each in [*parts, *values]}
        if len(widths) > 1 or not values:
            return False
        if not _equal_arrays(np.concatenate(values), np.concatenate(parts)):
            return False
    return bool(layers)


# Query files.


def _read_queries(bench: Bench) -> None:
    path = bench.folder / bench.case.file
    queries, _ = read_queries(path)
    content = path.read_bytes()
    if path.suffix == ".jsonl":
        entries = [json.loads(line) for line in content.decode().split("\n") if line.strip()]
    else:
        entries = json.loads(content)
    for query, entry in zip(queries, entries, strict=True):
        if (query.id, query.image, query.query) != tuple(
            entry.get(k) for k in ("id", "image", "query")
        ):
            raise WrongError(f"query {query.sample} is not what the file says")
        f"{query.image}{query.query}".encode()


def _capture_queries(bench: Bench) -> None:
    settings = dataclasses.replace(
        settings_of(bench.originals, bench.out / "store"),
        dataset=bench.folder / bench.case.file,
        positions="last",
        transcoders=None,
        max_samples=3,
        on_error="skip",
    )
    capture(settings, device=torch.device("cpu"))
    verify(bench.out / "store")


_QUERIES: list[Reader] = [("read_queries", _read_queries), ("capture", _capture_queries)]


def _equal(found: Any, wanted: Tensors) -> bool:
    return found.keys() == wanted.keys() and all(
        _equal_arrays(found[name], wanted[name]) for name in wanted
    )


def _equal_arrays(first: Any, second: Any) -> bool:
    if first is None or first.shape != second.shape:
        return False
    if first.dtype.kind == "f":
        return bool(np.array_equal(first, second, equal_nan=True))
    return bool(np.array_equal(first, second))


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = {*found, *wanted}
        differs = [key for key in keys if found.get(key) != wanted.get(key)]
        return ", ".join(f"{key}: {str(found.get(key))[:60]!r}" for key in differs)
    return str(found)[:100]
