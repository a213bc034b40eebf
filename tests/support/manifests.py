"""Changing a dataset folder's manifest so that its own checksum is right again."""

import hashlib
import json
from contextlib import contextmanager


def seal(value):
    """The checksum of an object's other keys, by the words of the format alone."""
    others = {key: item for key, item in value.items() if key != "self_sha256"}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def changed_manifest(folder):
    """Yield the manifest of a folder, to change; it is written back with the right checksum."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    yield manifest
    manifest["self_sha256"] = seal(manifest)
    path.write_text(json.dumps(manifest))
