"""What a build keeps of every shard that it has finished, so that no later run makes it again.

A file a shard, beside the folder that is being built:

    SHA-256 of all that follows, in hexadecimal
    {"entry": … of the manifest, "moments": which vectors have moments, and of which of their rows}
    the moments, as safetensors

It says what the shard's own file must hold, byte for byte; of what it does not say so, the shard
is made again. So neither file needs to be trusted for its name, nor for being there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from builder.shards.moments import Moments
from builder.shards.tasks import ShardTask
from builder.shards.vector_moments import VectorMoments
from llava_amber_activations.files.checksums import sha256_of
from llava_amber_activations.files.write_errors import write_errors
from llava_amber_activations.formats.dataset_folder import FileEntry
from llava_amber_activations.parsing.typed_json import read_object

Done = tuple[FileEntry | None, dict[str, VectorMoments]]

_WHOLE, _USUAL, _LARGE, _COUNTS = "whole", "usual", "large", "rms_counts"
_SHARD, _PASS = "shard", "pass"


@dataclass(frozen=True)
class FinishedShards:
    """The shards of one build that are finished: what is kept of them, and checking it.

    Attributes:
        records: folder of what is kept.
        build: names what is built from what, how, and by which versions.
        are_checked: whether the shards' files are known to be as they were written: all were made,
            or checked, by processes of this launch.
    """

    records: Path
    build: str
    are_checked: bool = False

    def find(self, folder: Path, task: ShardTask, schema: bytes) -> Done | None:
        """Return what a finished shard gave; None where it is not finished, or not as it was.

        Args:
            folder: that the shard's file is in.
            schema: of the shard, serialized.
        """
        try:
            done = _parse(self._path(task, schema).read_bytes())
        except OSError:
            return None
        if done is None or task.path is None:
            return done
        entry, _ = done
        # Kept by a release whose manifests had no row groups, it is not what this one writes.
        if entry is None or entry.row_groups is None:
            return None
        return done if self.are_checked or _is_as_written(folder / task.path, entry) else None

    def add(self, task: ShardTask, schema: bytes, done: Done) -> None:
        """Keep what a shard gave, whose file is whole and on the disk.

        Raises:
            ActivationsError: it cannot be written.
        """
        path = self._path(task, schema)
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Half of it, or none after the machine went down, is told by its checksum: no fsync.
            path.write_bytes(_text(done))

    def _path(self, task: ShardTask, schema: bytes) -> Path:
        said = dataclasses.asdict(task)
        said["groups"] = [(group.start, group.stop) for group in task.groups]
        key = hashlib.sha256(f"{self.build}\n{json.dumps(said)}\n".encode() + schema).hexdigest()
        return self.records / f"{_PASS if task.path is None else _SHARD}-{key}"


def n_finished(records: Path) -> int:
    """Return of how many shards with a file something is kept."""
    return sum(1 for _ in records.glob(f"{_SHARD}-*"))


def _is_as_written(path: Path, entry: FileEntry) -> bool:
    try:
        return path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256
    except OSError:
        return False


def _text(done: Done) -> bytes:
    entry, moments = done
    head = {
        "entry": None if entry is None else dataclasses.asdict(entry),
        "moments": {name: _parts_of(each) for name, each in moments.items()},
    }
    arrays = {
        f"{name}/{part}/{field}": array
        for name, each in moments.items()
        for part, fields in _arrays_of(each).items()
        for field, array in fields.items()
    }
    body = json.dumps(head).encode() + b"\n" + safetensors.numpy.save(arrays)
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _parse(text: bytes) -> Done | None:
    digest, _, body = text.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    line, _, tensors = body.partition(b"\n")
    head: dict[str, Any] = json.loads(line)
    arrays = safetensors.numpy.load(tensors)
    said = head["entry"]
    entry = None if said is None else read_object(FileEntry, said, _SHARD, "a file of the manifest")
    return entry, {
        name: _vector_moments(arrays, name, parts) for name, parts in head["moments"].items()
    }


def _parts_of(moments: VectorMoments) -> list[str]:
    """Return of which rows moments are kept: of those that are not the same as of all rows."""
    usual = moments.usual is not None and moments.usual is not moments.whole
    none = moments.usual is None
    large = [f"{_LARGE}{size}" for size in moments.large]
    return [_WHOLE, *([_USUAL] if usual else []), *([f"no {_USUAL}"] if none else []), *large]


def _arrays_of(moments: VectorMoments) -> dict[str, dict[str, np.ndarray]]:
    parts = {_WHOLE: moments.whole}
    if moments.usual is not None and moments.usual is not moments.whole:
        parts[_USUAL] = moments.usual
    parts |= {f"{_LARGE}{size}": each for size, each in moments.large.items()}
    arrays = {
        part: {
            field.name: np.ascontiguousarray(np.atleast_1d(getattr(each, field.name)))
            for field in dataclasses.fields(Moments)
        }
        for part, each in parts.items()
    }
    return {**arrays, _COUNTS: {_COUNTS: moments.rms_counts}}


def _vector_moments(arrays: Mapping[str, np.ndarray], name: str, parts: list[str]) -> VectorMoments:
    def of(part: str) -> Moments:
        found = {
            field.name: arrays[f"{name}/{part}/{field.name}"]
            for field in dataclasses.fields(Moments)
        }
        n, norm_sum = int(found.pop("n")[0]), float(found.pop("norm_sum")[0])
        return Moments(n=n, norm_sum=norm_sum, **found)

    whole = of(_WHOLE)
    usual = None if f"no {_USUAL}" in parts else of(_USUAL) if _USUAL in parts else whole
    large = [part for part in parts if part.startswith(_LARGE)]
    return VectorMoments(
        whole,
        usual,
        {int(part.removeprefix(_LARGE)): of(part) for part in large},
        arrays[f"{name}/{_COUNTS}/{_COUNTS}"],
    )
