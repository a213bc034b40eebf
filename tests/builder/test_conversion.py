"""The note on what a pushed folder was converted from."""

import json
import subprocess
import sys

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


def test_a_lock_that_a_kill_left_is_cleared(last_dataset, tmp_path):
    """Killed after the conversion was in its place and before its lock was taken away."""
    export(last_dataset, tmp_path / "pt", layout="layers", layers="0-2", n_targets=1)
    dataset_to_push(tmp_path / "pt")
    before = sorted(path.name for path in tmp_path.iterdir())
    program = (
        "import os, pathlib, sys\n"
        "from llava_amber_activations.files.leftovers import folder_lock_path\n"
        "from llava_amber_activations.files.locks import held\n"
        "with held(folder_lock_path(pathlib.Path(sys.argv[1])), 'it is made'): os._exit(9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, tmp_path / "pt-dataset"], check=False)
    assert killed.returncode == 9
    assert (tmp_path / ".pt-dataset.lock").is_file()
    dataset_to_push(tmp_path / "pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
