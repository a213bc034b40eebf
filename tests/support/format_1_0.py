"""Stores and manifests as format 1.0 wrote them, by its own words alone."""

import hashlib
import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

_RECIPE_KEYS = (
    *("format_version", "n_layers", "hidden_size", "n_targets", "store_dtype", "n_samples"),
    *("origin", "model", "revision", "dtype", "x_site", "positions", "sample_positions", "seed"),
    *("max_new_tokens", "transcoders_sha256", "pool", "prompt", "benchmark", "queries_sha256"),
    *("chunk_samples", "image_processor", "versions"),
)
_RECORD_KEYS = ("sample", "id", "image", "query", "image_sha256", "n_rows", "error", "response")
_MANIFEST_KEYS = ("format_version", "dtype", "n_targets", "n_rows", "warnings", "recipe", "files")


def _write(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _recipe(value):
    return {key: value[key] for key in _RECIPE_KEYS} | {"format_version": "1.0"}


def make_store_1_0(store):
    """Turn a finished store into what format 1.0 would have written."""
    (store / "SHA256SUMS").unlink()
    (store / "norms.safetensors").unlink(missing_ok=True)
    lines = (store / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    records = [{key: v for key, v in json.loads(s).items() if key in _RECORD_KEYS} for s in lines]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (store / "samples.jsonl").write_text(text, encoding="utf-8")
    _write(store / "capture.json", _recipe(json.loads((store / "capture.json").read_text())))
    for path in (store / "chunks").iterdir():
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["chunk"])
        tensors = load_file(path)
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
        samples = [{key: record.get(key) for key in _RECORD_KEYS} for record in header["samples"]]
        text = json.dumps({"samples": samples, "sha256": digest.hexdigest()})
        save_file(tensors, path, metadata={"chunk": text})
    for path in (store / "features").glob("*"):
        save_file(load_file(path), path)
    return store


def make_manifest_1_0(folder):
    """Turn a dataset folder's manifest into what format 1.0 would have written."""
    value = json.loads((folder / "manifest.json").read_text())
    value = {key: value[key] for key in _MANIFEST_KEYS} | {"format_version": "1.0"}
    value["recipe"] = _recipe(value["recipe"])
    for entry in value["files"].values():
        del entry["row_groups"]
    if value["files"].pop("norms.safetensors", None) is not None:
        (folder / "norms.safetensors").unlink()
    _write(folder / "manifest.json", value)
    return folder
