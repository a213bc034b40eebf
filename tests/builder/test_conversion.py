"""The note on what a pushed folder was converted from."""

import json

from builder.conversion import dataset_to_push
from builder.export import export


def test_a_note_that_a_kill_left_unfinished_is_finished(last_dataset, tmp_path):
    """Killed after the conversion and before the note that names its manifest."""
    export(last_dataset, tmp_path / "pt", layout="layers", layers="0-2", n_targets=1)
    dataset_to_push(tmp_path / "pt")
    note = tmp_path / ".pt-dataset.source.json"
    whole = note.read_bytes()
    note.write_text(json.dumps({**json.loads(whole), "manifest_sha256": None}))
    assert dataset_to_push(tmp_path / "pt") == (tmp_path / "pt-dataset", True)
    assert note.read_bytes() == whole
