"""The manifest: typed, in range, inside its folder, and under its own checksum."""

import copy
import json

import pytest
from manifests import seal

from llava_amber_activations import ActivationsError, Recipe
from llava_amber_activations.formats.dataset_folder import FileEntry, Manifest

RECIPE = Recipe(n_layers=2, hidden_size=3, n_targets=1, store_dtype="float32", n_samples=2)
SHARD = "data/L0-00000-of-00001.parquet"
MANIFEST = Manifest(RECIPE, "float32", 1, 2, {SHARD: FileEntry("0" * 64, 9, 2, (1, 1))})


def as_written():
    return json.loads(json.dumps(MANIFEST.to_json()))


def test_its_own_checksum():
    """The last key, by the words of the format."""
    value = as_written()
    assert list(value)[-1] == "self_sha256" and value["self_sha256"] == seal(value)
    assert Manifest.from_json(value, "F") == MANIFEST


def paths_of(value, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from paths_of(value[key], (*path, key))


PLACES = [path for path in paths_of(as_written()) if path]


def put(value, path, item):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = item


@pytest.mark.parametrize("path", PLACES, ids=".".join)
def test_any_changed_value_or_key(path):
    """Whatever is changed, the checksum is not the manifest's; nor is a key that is gone."""
    for item in (None, 7, "7", [], {}, True, 1.5, "1.0"):
        value = as_written()
        put(value, path, item)
        if value == as_written():
            continue
        with pytest.raises(ActivationsError, match=r"^F "):
            Manifest.from_json(value, "F")
    value = holder = as_written()
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    with pytest.raises(ActivationsError, match=r"^F "):
        Manifest.from_json(value, "F")


NUMBERS = (-1, 2**70, "7", None, True, 1.5, [1], {"a": 1})
TEXTS = (7, None, True, ["float32"], {"a": 1})


@pytest.mark.parametrize(
    ("path", "items"),
    [
        (("dtype",), (*TEXTS, "bfloat16", "float64", "")),
        (("n_targets",), (*NUMBERS, 0)),
        (("n_rows",), NUMBERS),
        (("warnings",), ("text", 7, [7], [None], {})),
        (("recipe",), (None, 7, [], {})),
        (("recipe", "format_version"), (*TEXTS, "2.0", "one")),
        (("recipe", "n_layers"), (*NUMBERS, 0, 10_001)),
        (("recipe", "hidden_size"), (*NUMBERS, 0)),
        (("recipe", "n_targets"), (*NUMBERS, 0)),
        (("recipe", "n_samples"), (*NUMBERS, 2**31)),
        (("recipe", "chunk_samples"), (-1, 0, "7", True, 1.5, [1])),
        (("recipe", "store_dtype"), (*TEXTS, "float64", "Float16")),
        (("recipe", "x_site"), (7, "resid_post", [])),
        (("recipe", "positions"), (7, "first", [])),
        (("recipe", "pool"), (7, "min", [])),
        (("recipe", "queries_sha256"), (7, "0" * 63, "G" * 64, "0" * 64 + "\n")),
        (("recipe", "model"), (7, ["m"], {}, True)),
        (("recipe", "versions"), (None, 7, [], {"torch": 2})),
        (("files",), (None, 7, [], {"a": None}, {"a": {"sha256": "0" * 64}})),
        (("files", SHARD, "sha256"), (*TEXTS, "", "0" * 63, "A" * 64)),
        (("files", SHARD, "bytes"), NUMBERS),
        (("files", SHARD, "rows"), NUMBERS),
        (("files", SHARD, "row_groups"), (7, "2", {}, True, [], [1], [3, -1], [2**70], [1, 1, 1])),
        (("files", SHARD, "row_groups"), (["1", 1], [1, None], [1, True], [1, 1.0], [[1, 1]])),
        (("files", SHARD, "row_groups"), ([10**4000] * 2, [2, 2**63 - 1])),
    ],
)
def test_wrong_values(path, items):
    """Under a checksum made anew: a wrong type or range never leaves the parser."""
    for item in items:
        value = as_written()
        put(value, path, item)
        value["self_sha256"] = seal(value)
        with pytest.raises(ActivationsError, match=r"^F is not a manifest of this project: "):
            Manifest.from_json(value, "F")


@pytest.mark.parametrize(
    "path",
    [
        *("../outside", "data/../../outside", "/etc/passwd", "data//L0", "", ".", "data/./x"),
        *("C:/Windows/x", "c:x", "data\\..\\x", "\\\\host\\share", "a\0b", "a\nb", "hf://x/y"),
    ],
)
def test_paths_that_lead_outside(path):
    value = copy.deepcopy(as_written())
    value["files"][path] = value["files"].pop(SHARD)
    value["self_sha256"] = seal(value)
    with pytest.raises(ActivationsError, match=r"F is not a manifest.* not one inside the folder"):
        Manifest.from_json(value, "F")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("data/Lx-00000-of-00001.parquet", "no shard"),
        ("data/L00-00000-of-00001.parquet", "no shard"),
        ("data/train-00000-of-00001.parquet", "no shard"),
        ("all_layers/L0-00000-of-00001.parquet", "no shard"),
        ("clt_features/L0.parquet", "no shard"),
        ("data/L2-00000-of-00001.parquet", "of a layer that the model, of 2, does not have"),
    ],
)
def test_paths_that_are_no_shards(path, said):
    value = as_written()
    value["files"][path] = value["files"].pop(SHARD)
    value["self_sha256"] = seal(value)
    with pytest.raises(ActivationsError, match=f"F is not a manifest.*{said}"):
        Manifest.from_json(value, "F")


def test_files_of_a_newer_minor_version():
    """A folder that no config of this release has is left aside."""
    value = as_written()
    value["files"]["later/train-00000-of-00001.parquet"] = {"sha256": "1" * 64, "bytes": 3}
    value["self_sha256"] = seal(value)
    assert Manifest.from_json(value, "F").configs == ["default"]


def test_row_groups_need_not_be_there():
    """Folders of earlier releases have none; and what has no rows has no row groups."""
    value = as_written()
    assert value["files"][SHARD].pop("row_groups") == [1, 1]
    value["self_sha256"] = seal(value)
    assert Manifest.from_json(value, "F").files[SHARD] == FileEntry("0" * 64, 9, 2)
    with pytest.raises(ActivationsError, match="row_groups add up to 2 rows, and rows is None"):
        FileEntry("0" * 64, 9, None, (1, 1))


def test_a_manifest_of_format_1_0():
    """It has no checksum of its own, and is read; with the checksum of 1.1 it is checked."""
    value = as_written()
    value["format_version"] = value["recipe"]["format_version"] = "1.0"
    with pytest.raises(ActivationsError, match="its own checksum, self_sha256, differs"):
        Manifest.from_json(value, "F")
    del value["self_sha256"]
    assert Manifest.from_json(value, "F").format_version == "1.0"
