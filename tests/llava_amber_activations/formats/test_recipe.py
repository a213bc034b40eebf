"""The recipe: what is written is read back, across minor versions and not across major ones."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import seal

from llava_amber_activations import ActivationsError, Recipe
from llava_amber_activations.formats.dataset_folder import FileEntry, Manifest
from llava_amber_activations.formats.version import check_format_version
from llava_amber_activations.store.layout import read_recipe, write_recipe

RECIPE = Recipe(n_layers=2, hidden_size=3, n_targets=1, store_dtype="float32", n_samples=2)
SHARD = "data/L0-00000-of-00001.parquet"
MANIFEST = Manifest(RECIPE, "float32", 1, 2, {SHARD: FileEntry("0" * 64, 9, 2)})

texts = st.none() | st.text(max_size=20)
recipes = st.builds(
    Recipe,
    n_layers=st.integers(1, 99),
    hidden_size=st.integers(1, 9999),
    n_targets=st.integers(1, 99),
    store_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    n_samples=st.integers(0, 9999),
    model=texts,
    prompt=texts,
    benchmark=texts,
    seed=st.none() | st.integers(0),
    versions=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
)


@given(recipes)
def test_round_trip(recipe):
    """Through the text of a JSON file, every field."""
    text = json.dumps(recipe.to_json())
    assert Recipe.from_json(json.loads(text), "here") == recipe


def test_the_file_of_a_store(tmp_path):
    """capture.json is an object of the contract's keys, the format's version first."""
    write_recipe(tmp_path, RECIPE)
    value = json.loads((tmp_path / "capture.json").read_text(encoding="utf-8"))
    assert next(iter(value)) == "format_version" and value["format_version"] == "1.1"
    assert value.keys() >= {
        *("model", "revision", "dtype", "x_site", "positions", "prompt", "n_layers"),
        *("hidden_size", "n_targets", "benchmark", "versions", "queries_sha256"),
    }
    assert (value["n_layers"], value["hidden_size"], value["store_dtype"]) == (2, 3, "float32")
    assert read_recipe(tmp_path) == RECIPE


def test_the_recipe_of_a_capture(last_store):
    """A real capture's file says what it was captured with."""
    value = json.loads((last_store / "capture.json").read_text(encoding="utf-8"))
    assert value["format_version"] == "1.1" and value["origin"] == "capture"
    assert (value["n_layers"], value["hidden_size"], value["n_targets"]) == (32, 64, 16)
    assert (value["x_site"], value["positions"]) == ("resid_mid", "last")
    assert (value["dtype"], value["store_dtype"]) == ("float32", "float32")
    assert (value["n_samples"], value["chunk_samples"]) == (8, 3)
    assert value["prompt"] == "USER: <image>\n{query} ASSISTANT:"


def test_differences():
    """Each field that differs, with both values; none where nothing does."""
    other = dataclasses.replace(RECIPE, x_site="mlp_in", n_targets=4)
    assert RECIPE.differences(other) == ["n_targets (1, not 4)", "x_site (None, not 'mlp_in')"]
    assert other.differences(RECIPE) == ["n_targets (4, not 1)", "x_site ('mlp_in', not None)"]
    assert RECIPE.differences(dataclasses.replace(RECIPE)) == []


@given(recipes, recipes)
def test_differences_name_every_field(one, other):
    named = {text.partition(" ")[0] for text in one.differences(other)}
    fields = (field.name for field in dataclasses.fields(Recipe))
    assert named == {name for name in fields if getattr(one, name) != getattr(other, name)}


def test_the_layers_that_were_kept():
    """All where the key is missing, as before there was one; else those that it lists."""
    value = RECIPE.to_json()
    n_layers = RECIPE.n_layers
    assert value.pop("layers") is None
    assert Recipe.from_json(value, "f").kept_layers == range(n_layers)
    last = n_layers - 1
    assert Recipe.from_json({**value, "layers": [last]}, "f").kept_layers == (last,)
    for damaged in ([], [last, last], [n_layers], [-1]):
        with pytest.raises(ActivationsError, match=r"f is not .*: layers must be ascending layers"):
            Recipe.from_json({**value, "layers": damaged}, "f")


def test_a_newer_minor_version():
    """It is read, and what it adds left aside."""
    value = {**RECIPE.to_json(), "format_version": "1.7", "added": 1}
    assert Recipe.from_json(value, "f") == dataclasses.replace(RECIPE, format_version="1.7")


def test_a_manifest_of_a_newer_minor_version():
    """So is a manifest, whatever it says beyond of itself, its recipe and its files."""
    value = json.loads(json.dumps(MANIFEST.to_json()))
    assert Manifest.from_json(value, "f") == MANIFEST
    value.update(format_version="1.3", added=1)
    value["recipe"]["added"] = 1
    value["files"][SHARD]["added"] = 1
    value["self_sha256"] = seal(value)
    found = Manifest.from_json(value, "f")
    assert found == dataclasses.replace(MANIFEST, format_version="1.3")


@pytest.mark.parametrize("version", ["2.0", "2", "10.4"])
def test_a_newer_major_version(version):
    """One sentence: where, what it is, what this release reads, and which release reads it."""
    major = version.partition(".")[0]
    for read, value in ((Recipe, RECIPE.to_json()), (Manifest, MANIFEST.to_json())):
        with pytest.raises(ActivationsError) as refused:
            read.from_json({**value, "format_version": version, "added": 1}, "STORE/capture.json")
        assert str(refused.value) == (
            f"STORE/capture.json is of format {version}, and this release reads format 1.x: "
            f"install llava-amber-activations {major}.0 or newer to read it"
        )


@pytest.mark.parametrize(
    "version", [None, "", "new", "v1.0", "-1.0", "0.9", "1.", "1.0.0", "1.0\n", "١.٠", 1, [], {}]
)
def test_what_is_no_version(version):
    with pytest.raises(ActivationsError, match="f names no format version"):
        check_format_version(version, "f")


def test_keys_that_are_missing():
    """The file and the keys are named."""
    value = RECIPE.to_json()
    del value["hidden_size"], value["n_layers"]
    with pytest.raises(ActivationsError, match=r"f is not a capture recipe.*n_layers.*hidden_size"):
        Recipe.from_json(value, "f")
    manifest = MANIFEST.to_json()
    del manifest["files"]
    manifest["self_sha256"] = seal(manifest)
    with pytest.raises(ActivationsError, match=r"f is not a manifest.*files"):
        Manifest.from_json(manifest, "f")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00", b"[]", b'"1.0"', b"null"])
def test_a_damaged_file(tmp_path, text):
    (tmp_path / "capture.json").write_bytes(text)
    with pytest.raises(ActivationsError, match=r"capture\.json (is not JSON|holds a JSON)"):
        read_recipe(tmp_path)


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(ActivationsError, match=r"is not a capture store: it has no capture\.json"):
        read_recipe(tmp_path)


def test_why_a_field_is_none():
    """What was not asked for is not used, and what nobody wrote down is unknown."""
    captured = dataclasses.replace(
        RECIPE,
        model="lab/model",
        revision="c" * 40,
        positions="last",
        benchmark="queries.json",
        auto_batch_size=True,
    )
    not_used = (
        *("sample_positions", "seed", "always", "max_new_tokens", "transcoders_sha256", "pool"),
        *("dataset_revision", "weights_sha256", "batch_size"),
    )
    assert {captured.why_none(name) for name in not_used} == {"not used"}
    assert captured.why_none("device") == captured.why_none("compile") == "unknown"
    local = dataclasses.replace(captured, revision=None, weights_sha256="a" * 64)
    assert local.why_none("revision") == "not used"
    # Where it was asked for, or a release before did not write it down, nobody knows.
    asked = dataclasses.replace(
        captured, positions="generated", benchmark="hf:lab/pictures", auto_batch_size=None
    )
    for name in ("max_new_tokens", "dataset_revision", "batch_size"):
        assert asked.why_none(name) == "unknown"
    imported = Recipe(n_layers=4, hidden_size=8, n_targets=3, store_dtype="float32", n_samples=2)
    assert {imported.why_none(field.name) for field in dataclasses.fields(Recipe)} == {"unknown"}
