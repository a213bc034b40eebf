"""Config `samples` of a pushed repo, and the bytes that reading it fetches."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from loopback_hub import DEFAULT_TOKEN
from manifests import changed_manifest

from builder.push import push
from llava_amber_activations import Activations


def test_samples_fetch_their_own_file(hub, narrow_dataset, narrow_store, tmp_path):
    """`Activations.samples` sends the columns of that file but the pictures, and no other file."""
    lines = (narrow_store / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    folder = tmp_path / "dataset"
    shutil.copytree(narrow_dataset, folder)
    path = folder / "samples" / "train-00000-of-00001.parquet"
    table = pq.ParquetFile(path).read()
    content = np.random.default_rng(0).bytes(1_000_000)
    pictures = pa.array([{"bytes": content, "path": "a.jpg"}] + [None] * 199)
    pq.write_table(table.append_column("picture", pictures), path, compression="zstd")
    with changed_manifest(folder) as manifest:
        entry = manifest["files"]["samples/train-00000-of-00001.parquet"]
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry["bytes"], entry["row_groups"] = path.stat().st_size, [200]
    push(folder, "lab/samples", token=DEFAULT_TOKEN)
    hub.reset_counts()
    found = Activations("lab/samples").samples
    assert [row["query"] for row in found.to_pylist()] == [json.loads(x)["query"] for x in lines]
    assert found.column_names == table.column_names
    manifest_bytes = hub.bytes_sent("manifest.json")
    assert manifest_bytes > 0
    footer = 65536  # pyarrow reads so much of the end of a file at once
    assert 0 < hub.bytes_sent("samples/") <= footer + 20_000
    assert hub.bytes_sent() == hub.bytes_sent("samples/") + manifest_bytes
