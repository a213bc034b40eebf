"""One damaged file: which, how, and whether its checksums were made to fit again."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutations import Folder, Missing, Mutation, apply, draw

_SEAL = "self_sha256"


@dataclass(frozen=True)
class Case:
    """A damaged file.

    Attributes:
        kind: of `KINDS`.
        root: which of the folders in `originals.py`.
        file: in it.
        mutation: what is done to it.
        resealed: whether the checksums that others keep of it are made to fit, so that the damage
            reaches what stands behind them.
    """

    kind: str
    root: str
    file: str
    mutation: Mutation
    resealed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Case:
        """Read a case of `cases/`."""
        known = {key: value[key] for key in ("kind", "root", "file")}
        return cls(
            **known,
            mutation=Mutation(**value["mutation"]),
            resealed=value.get("resealed", False),
        )


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies, its form, and whether anything keeps its checksum."""

    roots: tuple[str, ...]
    patterns: tuple[tuple[str, str], ...]
    has_checksum: bool = False


_EXPORT = ("export.json", "json")
KINDS = {
    ".pt, layers": Kind(("pt-layers",), (*[("L*/batch_*.pt", "pt")] * 9, _EXPORT)),
    ".pt, samples": Kind(("pt-samples",), (*[("sample_*.pt", "pt")] * 9, _EXPORT)),
    "chunks": Kind(("store",), (("chunks/*.safetensors", "safetensors"),), True),
    "features": Kind(("store",), (("features/*.safetensors", "safetensors"),), True),
    "capture.json": Kind(("store",), (("capture.json", "json"),), True),
    "samples.jsonl": Kind(("store",), (("samples.jsonl", "jsonl"),), True),
    "checksums of a store": Kind(("store",), (("SHA256SUMS", "sums"),)),
    "manifest.json": Kind(("dataset", "own"), (("manifest.json", "json"),), True),
    "Parquet footers": Kind(
        ("dataset", "own"),
        (
            ("all_layers/*.parquet", "parquet_footer"),
            ("data/*.parquet", "parquet_footer"),
            ("samples/*.parquet", "parquet_footer"),
            ("*/*.parquet", "parquet_footer"),
        ),
        True,
    ),
    "Parquet pages": Kind(
        ("dataset", "own"),
        (
            ("all_layers/*.parquet", "parquet_pages"),
            ("samples/*.parquet", "parquet_pages"),
            ("*/*.parquet", "parquet_pages"),
        ),
        True,
    ),
    "statistics.safetensors": Kind(
        ("dataset", "own"), (("statistics.safetensors", "safetensors"),), True
    ),
    "norms.safetensors": Kind(
        ("store", "dataset", "own"), (("norms.safetensors", "safetensors"),), True
    ),
    "query files": Kind(("queries",), (("queries.json", "json"), ("queries.jsonl", "jsonl"))),
}


def folder_of(originals: Path, root: str) -> Path:
    """Return the folder that a root names; the query files lie beside the folders."""
    return originals if root == "queries" else originals / root


def draw_case(kind: str, number: int, seed: int, originals: Path) -> Case | None:
    """Draw the case `number` of a kind; None where the project writes no such file."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    roots = KINDS[kind].roots
    folders = [
        root
        for root in roots
        if any(list(folder_of(originals, root).glob(glob)) for glob, _ in KINDS[kind].patterns)
    ]
    if not folders:
        return None
    root = rng.choice(folders)
    folder = folder_of(originals, root)
    patterns = [each for each in KINDS[kind].patterns if list(folder.glob(each[0]))]
    pattern, form = rng.choice(patterns)
    path = rng.choice(sorted(folder.glob(pattern)))
    mutation = draw(form, path.read_bytes(), number, rng)
    resealed = KINDS[kind].has_checksum and rng.random() < 1 / 3
    return Case(kind, root, path.relative_to(folder).as_posix(), mutation, resealed)


def lay_out(case: Case, originals: Path, folder: Path) -> None:
    """Copy a case's folder and damage its file."""
    if case.root == "queries":
        folder.mkdir(parents=True)
        shutil.copy(originals / case.file, folder / case.file)
    else:
        shutil.copytree(originals / case.root, folder)
    path = folder / case.file
    damaged = apply(path.read_bytes(), case.mutation)
    path.unlink()
    if isinstance(damaged, Folder):
        path.mkdir()
    elif not isinstance(damaged, Missing):
        path.write_bytes(damaged)
    if case.resealed and path.is_file():
        _reseal(folder, case.file)


def _reseal(folder: Path, file: str) -> None:
    """Make every checksum that is kept of a file fit it, as its author could.

    What is so damaged that it cannot be done stays as it is.
    """
    path = folder / file
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        if path.suffix == ".json":
            _reseal_json(path)
        elif path.suffix == ".safetensors":
            _reseal_tensors(path)
            if path.parent.name == "features":
                _reseal_chunk_of(path)
    if (folder / "manifest.json").is_file() and file != "manifest.json":
        _reseal_manifest(folder, file)
    if (folder / "SHA256SUMS").is_file():
        _reseal_sums(folder)


def _reseal_json(path: Path) -> None:
    value = json.loads(path.read_bytes())
    if _SEAL in value:
        path.write_text(json.dumps(_sealed(value)), encoding="utf-8")


def _sealed(value: dict[str, Any]) -> dict[str, Any]:
    others = {key: item for key, item in value.items() if key != _SEAL}
    canonical = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return {**others, _SEAL: hashlib.sha256(canonical.encode()).hexdigest()}


def _reseal_manifest(folder: Path, file: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    content = (folder / file).read_bytes()
    entry = manifest["files"][file]
    entry["sha256"], entry["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    _reseal_json(path)


def _reseal_sums(folder: Path) -> None:
    path = folder / "SHA256SUMS"
    lines = []
    for line in path.read_text().splitlines():
        name = line.split()[-1]
        there = (folder / name).is_file()
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest() if there else "0" * 64
        lines.append(f"{digest}  {name}\n")
    path.write_text("".join(lines))


def _reseal_tensors(path: Path, **changes: str) -> str | None:
    """Put the right checksums of its tensors into a file's metadata, and other changes.

    Returns:
        The checksum over the metadata, where the file has one.
    """
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    spans = {
        name: header[name]["data_offsets"] for name in sorted(header.keys() - {"__metadata__"})
    }
    digests = {
        name: hashlib.sha256(data[start:stop]).hexdigest() for name, (start, stop) in spans.items()
    }
    ((key, text),) = header["__metadata__"].items()
    inner = {**json.loads(text), **changes}
    if isinstance(inner["sha256"], dict):
        inner["sha256"] = digests
        inner = _sealed(inner)
    else:
        # Format 1.0 had one over all of them.
        joined = b"".join(data[start:stop] for start, stop in spans.values())
        inner["sha256"] = hashlib.sha256(joined).hexdigest()
    header["__metadata__"][key] = json.dumps(inner)
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return inner.get(_SEAL)


def _reseal_chunk_of(path: Path) -> None:
    """Make the checksum fit that a chunk has of its features file."""
    seal = _reseal_tensors(path)
    chunk = path.parents[1] / "chunks" / path.name.replace("features-", "chunk-")
    if seal is not None:
        _reseal_tensors(chunk, features_sha256=seal)
