"""Where results go: nothing is lost, nothing is left by a refusal, a link is followed."""

import pytest

from builder.build import build
from builder.export import export
from builder.import_pt import import_pt
from builder.verify import verify
from llava_amber_activations import ActivationsError


def contents(folder):
    """Every path below a folder, with a file's bytes."""
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


@pytest.fixture
def makers(small_store, small_dataset, write_layers, tmp_path_factory):
    """What makes a folder, by name: each takes the destination."""
    pt = tmp_path_factory.mktemp("makers") / "pt"
    write_layers(pt)
    return {
        "build": lambda folder: build(small_store, folder),
        "import": lambda folder: import_pt(pt, folder),
        "export": lambda folder: export(small_dataset, folder, layout="samples"),
    }


@pytest.mark.parametrize("name", ["build", "import", "export"])
def test_taken(makers, tmp_path, name):
    """A folder that holds something, even a hidden file, and a file: refused and as they were."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for taken in ("folder", "file"):
        with pytest.raises(ActivationsError, match=f"{taken} already holds something"):
            makers[name](tmp_path / taken)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["build", "import", "export"])
def test_empty_folder_and_missing_parents(makers, tmp_path, name):
    (tmp_path / "empty").mkdir()
    makers[name](tmp_path / "empty")
    makers[name](tmp_path / "a" / "b" / "new")
    one = {path.relative_to(tmp_path / "empty") for path in (tmp_path / "empty").rglob("*")}
    assert one
    new = tmp_path / "a" / "b" / "new"
    assert one == {path.relative_to(new) for path in new.rglob("*")}
    assert list((tmp_path / "a" / "b").iterdir()) == [new]


@pytest.mark.parametrize("name", ["build", "import", "export"])
def test_link_to_an_empty_folder(makers, tmp_path, name):
    """As people point at a shared disk: the link stays, and the result is where it points."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    makers[name](tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert any((tmp_path / "disk").iterdir())


def test_what_a_killed_build_left_is_cleared(small_store, tmp_path):
    """The hidden folder beside the destination does not get into the next build."""
    (tmp_path / ".dataset.partial" / "data").mkdir(parents=True)
    (tmp_path / ".dataset.partial" / "data" / "L0-old.parquet").write_bytes(b"half")
    build(small_store, tmp_path / "dataset")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    assert not (tmp_path / "dataset" / "data" / "L0-old.parquet").exists()
    assert verify(tmp_path / "dataset").n_rows == 9


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": "0-9"}, "are not in this data"),
        ({"layers": "first"}, "is not a list of layers"),
        ({"first_target": 0}, "first_target=0 cannot be had"),
        ({"n_targets": 3}, "3 cannot be had"),
    ],
)
def test_refused_export_leaves_nothing(small_store, tmp_path, options, match):
    """So that the same command, put right, does not meet an export with other options."""
    build(small_store, tmp_path / "dataset", configs=["default"])
    with pytest.raises(ActivationsError, match=match):
        export(tmp_path / "dataset", tmp_path / "out", layout="layers", **options)
    assert not (tmp_path / "out").exists()
    assert export(tmp_path / "dataset", tmp_path / "out", layout="layers").n_written == 24


def test_refused_export_of_an_import_leaves_nothing(write_layers, tmp_path):
    """An imported folder has no mlp_out_00, which first_target=0 would need for L0."""
    write_layers(tmp_path / "pt")
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    with pytest.raises(ActivationsError, match="mlp_out_00"):
        export(tmp_path / "dataset", tmp_path / "out", layout="layers", first_target=0)
    assert not (tmp_path / "out").exists()
