"""One damaged file: which, how, and whether its checksums were made to fit again."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutations import Folder, Missing, Mutation, apply, draw


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
            ("*/*.parquet", "parquet_footer"),
        ),
        True,
    ),
    "Parquet pages": Kind(
        ("dataset", "own"),
        (("all_layers/*.parquet", "parquet_pages"), ("*/*.parquet", "parquet_pages")),
        True,
    ),
    "statistics.safetensors": Kind(
        ("dataset", "own"), (("statistics.safetensors", "safetensors"),), True
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
    """Make every checksum that is kept of a file fit it, as its author could."""
    path = folder / file
    _reseal_itself(path)
    manifest_path = folder / "manifest.json"
    if manifest_path.is_file() and path != manifest_path:
        manifest = json.loads(manifest_path.read_bytes())
        entry = manifest["files"][file]
        content = path.read_bytes()
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        entry["bytes"] = len(content)
        manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
        _reseal_itself(manifest_path)


def _reseal_itself(path: Path) -> None:
    """Make the checksum that a JSON file or a chunk carries of itself fit it, where it can be."""
    content = path.read_bytes()
    try:
        if path.suffix == ".json":
            value = json.loads(content)
            if "self_sha256" in value:
                value["self_sha256"] = _sealed(value)
                path.write_text(json.dumps(value), encoding="utf-8")
        elif path.suffix == ".safetensors":
            path.write_bytes(_resealed_tensors(content))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return


def _sealed(value: dict[str, Any]) -> str:
    others = {key: item for key, item in value.items() if key != "self_sha256"}
    canonical = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _resealed_tensors(content: bytes) -> bytes:
    """Put the SHA-256 of a file's tensors, in the order of their names, into its metadata."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    digest = hashlib.sha256()
    for name in sorted(header.keys() - {"__metadata__"}):
        start, stop = header[name]["data_offsets"]
        digest.update(data[start:stop])
    metadata = header["__metadata__"]
    for key in metadata:
        inner = json.loads(metadata[key])
        if "sha256" in inner:
            inner["sha256"] = digest.hexdigest()
            metadata[key] = json.dumps(inner)
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + data
