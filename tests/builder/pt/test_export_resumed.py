"""An export that goes on: from the same vectors alone, and over files that are whole alone."""

import json
import shutil

import pytest
import torch
from manifests import changed_manifest

from builder.build import build
from builder.export import export
from llava_amber_activations import ActivationsError

LAYOUTS = ("layers", "samples")


@pytest.fixture(scope="module")
def other_dataset(make_small_store, tmp_path_factory):
    """The same samples and recipe with other values."""
    folder = tmp_path_factory.mktemp("other")
    build(make_small_store(folder / "store", scale=2.0), folder / "dataset")
    return folder / "dataset"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dataset_that_has_changed(small_dataset, other_dataset, tmp_path, layout):
    """Half of one state and half of another would pass for an export of one."""
    out, source = tmp_path / "out", tmp_path / "source"
    shutil.copytree(small_dataset, source)
    export(source, out, layout=layout)
    files = {path: path.read_bytes() for path in out.rglob("*.pt")}
    first = next(iter(files))
    first.unlink()
    shutil.rmtree(source)
    shutil.copytree(other_dataset, source)
    with pytest.raises(ActivationsError, match="another state of this dataset"):
        export(source, out, layout=layout)
    assert not first.exists()
    # From the first state again, wherever it lies.
    result = export(small_dataset, out, layout=layout)
    assert result.n_written >= 1
    assert {path: path.read_bytes() for path in out.rglob("*.pt")} == files


def test_a_new_card_is_no_other_state(small_dataset, tmp_path):
    """A push writes the card anew, and the vectors stay: the export goes on."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(small_dataset, source)
    export(source, out, layout="layers")
    entry = {"sha256": "0" * 64, "bytes": 7, "rows": None}
    with changed_manifest(source) as manifest:
        assert "README.md" in manifest["files"]
        manifest["files"]["README.md"] = entry
    assert export(source, out, layout="layers").n_written == 0


def test_a_folder_of_release_1_0(small_dataset, tmp_path):
    """It did not note the state: refused, because it cannot be known."""
    out = tmp_path / "out"
    export(small_dataset, out, layout="layers")
    note = json.loads((out / "export.json").read_text())
    for key in ("data_sha256", "format_version", "self_sha256"):
        del note[key]
    (out / "export.json").write_text(json.dumps(note))
    with pytest.raises(ActivationsError, match=r"which release 1\.0 did not note"):
        export(small_dataset, out, layout="layers")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("left", [0, 10, 400, -1])
def test_files_that_broke_off(small_dataset, tmp_path, layout, left):
    """A copy of an export that was cut short is completed, not taken for whole."""
    export(small_dataset, tmp_path / "whole", layout=layout)
    export(small_dataset, tmp_path / "out", layout=layout)
    cut = sorted((tmp_path / "out").rglob("*.pt"))[1]
    cut.write_bytes(cut.read_bytes()[:left])
    assert export(small_dataset, tmp_path / "out", layout=layout).n_written in (1, 2)
    for path in (tmp_path / "whole").rglob("*.pt"):
        again = tmp_path / "out" / path.relative_to(tmp_path / "whole")
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": ""}, "is not a list of layers"),
        ({"layers": "0-" + "9" * 5000}, "is not a list of layers"),
        ({"layers": "-1"}, "is not a list of layers"),
        ({"layers": "2-1"}, "the layers 2-1 run backwards"),
        ({"layers": "0-999999999999"}, "are not in this data"),
        ({"n_targets": 0}, "n_targets must be at least 1"),
        ({"first_target": 2}, "first_target must be 0 or 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"n_targets": 10**9, "pad_targets": True}, "would write nothing but zeros"),
        ({"layout": "samples", "pad_targets": True}, "sample files have no targets"),
        ({"layout": "samples", "n_targets": 2}, "sample files have no targets"),
    ],
)
def test_odd_options(small_dataset, tmp_path, options, match):
    """Each one sentence, and nothing is begun."""
    with pytest.raises(ActivationsError, match=match):
        export(small_dataset, tmp_path / "out", **{"layout": "layers", **options})
    assert not (tmp_path / "out").exists()


def test_large_options_that_mean_all(small_dataset, tmp_path):
    export(small_dataset, tmp_path / "a", layout="layers", n_targets=10**9, batch_size=10**9)
    y = torch.load(tmp_path / "a" / "L0" / "batch_0_y.pt", weights_only=True)
    assert len(y["targets"]) == 3
