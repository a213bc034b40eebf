"""The card: its YAML is what the files are, and what was left out is said."""

import dataclasses
import shutil
from fnmatch import fnmatch

import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from datasets.exceptions import NonMatchingSplitsSizesError
from huggingface_hub import DatasetCard

from builder.build import build
from builder.export import export
from builder.folder.card import card_text
from llava_amber_activations.sources.source import open_source


@pytest.fixture(scope="module")
def card(small_dataset):
    return DatasetCard.load(small_dataset / "README.md")


def test_configs_name_the_files(card, small_dataset):
    """Each config's patterns take the files of its splits and no others."""
    files = [path.relative_to(small_dataset).as_posix() for path in small_dataset.rglob("*.*")]
    found = {
        config["config_name"]: {
            entry["split"]: sorted(file for file in files if fnmatch(file, entry["path"]))
            for entry in config["data_files"]
        }
        for config in card.data.to_dict()["configs"]
    }
    own = {f"L{layer}": [f"data/L{layer}-00000-of-00001.parquet"] for layer in range(3)}
    assert next(iter(found)) == "samples"
    assert found == {
        "samples": {"train": ["samples/train-00000-of-00001.parquet"]},
        "default": own,
        "all_layers": {"train": ["all_layers/train-00000-of-00001.parquet"]},
        "L0": {"L0": own["L0"]},
        "L1": {"L1": own["L1"]},
        "L2": {"L2": own["L2"]},
    }


def test_dataset_infos_are_those_of_the_files(card, small_dataset):
    """Rows, bytes and columns of each config."""
    infos = {info["config_name"]: info for info in card.data.to_dict()["dataset_info"]}
    assert sorted(infos) == ["L0", "L1", "L2", "all_layers", "default", "samples"]
    for layer in range(3):
        path = small_dataset / "data" / f"L{layer}-00000-of-00001.parquet"
        split = {"name": f"L{layer}", "num_bytes": path.stat().st_size, "num_examples": 9}
        assert pq.read_metadata(path).num_rows == 9
        assert infos[f"L{layer}"]["splits"] == [split]
        assert infos[f"L{layer}"]["download_size"] == path.stat().st_size
        assert infos["default"]["splits"][layer] == split
    leading = ["sample", "id", "image", "position", "token_id", "kind", "patch_row", "patch_col"]
    columns = [feature["name"] for feature in infos["L1"]["features"]]
    assert columns == [*leading, "x", "targets"]
    columns = [feature["name"] for feature in infos["all_layers"]["features"]]
    vectors = [f"{kind}_{layer:02d}" for kind in ("x", "mlp_out") for layer in range(4)]
    assert columns == [*leading, *vectors]
    assert infos["samples"]["splits"][0]["num_examples"] == 5


def test_counts_are_checked_against_the_card(small_dataset, tmp_path):
    """`load_dataset` takes the folder as it is, and refuses it when a file has other rows."""
    loaded = load_dataset(str(small_dataset), "L1", cache_dir=str(tmp_path / "one"))
    assert loaded["L1"].num_rows == 9
    folder = tmp_path / "dataset"
    shutil.copytree(small_dataset, folder)
    path = folder / "data" / "L1-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 4), path)
    with pytest.raises(NonMatchingSplitsSizesError, match="num_examples=9"):
        load_dataset(str(folder), "L1", cache_dir=str(tmp_path / "two"))


def test_a_folder_built_anew_is_not_read_from_the_cache_of_the_old_one(make_small_store, tmp_path):
    """Other values in files of the same names and sizes, in the same place."""
    for number, scale in enumerate((1, -1)):
        folder = tmp_path / "dataset"
        if folder.exists():
            shutil.rmtree(folder)
        build(make_small_store(tmp_path / f"store-{number}", scale=scale), folder)
        expected = pq.read_table(folder / "data" / "L1-00000-of-00001.parquet")["x"].to_pylist()
        loaded = load_dataset(str(folder), "L1", split="L1", cache_dir=str(tmp_path / "cache"))
        assert loaded["x"][:] == expected, f"store {number}"


def test_text(card):
    """Sizes, the recipe, and commands that hold for this data."""
    assert card.data.size_categories == ["n<1K"]
    assert card.data.pretty_name == "Activations of llava"
    assert "| x_site | `mlp_in` |" in card.text
    assert "2 for L0,\n1 for L2." in card.text
    assert "> 1 samples have no rows" in card.text
    assert "L31" not in card.text and "None" not in card.text.replace("None is padded", "")


COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Of https://github.com/junyangwang0410/AMBER, data/query/query_generative.json.
QUERY_GENERATIVE = "b7e4c36596126ee36d2c3922638b7fa98743c26efda78fea2315f4425258d087"


@pytest.fixture
def card_of(small_dataset):
    """Function that returns the card of `small_dataset` with other values in its recipe."""

    def card(**values):
        manifest = open_source(small_dataset).manifest
        recipe = dataclasses.replace(manifest.recipe, **values)
        text = card_text(
            small_dataset, dataclasses.replace(manifest, recipe=recipe), "lab/of-the-test"
        )
        return DatasetCard(text)

    return card


def test_norms_are_told_of(last_dataset, card):
    """Where they are there, and how they are used; and nowhere else."""
    text = (last_dataset / "README.md").read_text()
    assert "`norms.safetensors` holds that norm of every layer" in text
    assert 'acts.batches(layer=5, x_site="mlp_in")' in text
    assert "norms.safetensors" not in card.text


def test_known_model_and_benchmark(card_of):
    """LLaVA-1.5 by its id on the Hub and AMBER by its file's checksum bring their terms."""
    card = card_of(
        model="llava-hf/llava-1.5-7b-hf",
        revision=COMMIT,
        benchmark="query_generative.json",
        queries_sha256=QUERY_GENERATIVE,
    )
    assert card.data.pretty_name == "Activations of llava-1.5-7b-hf on AMBER"
    assert card.data.license == "other" and card.data.language == ["en"]
    assert {"llava", "amber", "activations"} <= set(card.data.tags)
    assert "Llama 2 Community License" in card.text and "Apache 2.0" in card.text
    assert "@article{wang2023amber," in card.text and "@inproceedings{liu2024improved," in card.text
    assert "not known" not in card.text


@pytest.mark.parametrize(
    ("values", "name", "says"),
    [
        (
            {"model": "Qwen/Qwen2.5-VL-7B-Instruct", "revision": COMMIT},
            "Activations of Qwen2.5-VL-7B-Instruct",
            "see https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct.",
        ),
        (
            {"benchmark": "hf:lmms-lab/POPE", "dataset_revision": COMMIT},
            "Activations of llava on POPE",
            "see https://huggingface.co/datasets/lmms-lab/POPE.",
        ),
        (
            {"benchmark": "query_all.json", "queries_sha256": "0" * 64},
            "Activations of llava on query_all.json",
            "It has the name of a file of AMBER, and not that file's checksum.",
        ),
        ({"model": None}, "Activations of an unknown model", "Which model it is is not known"),
    ],
)
def test_an_unknown_origin_is_said_to_be_unknown(card_of, values, name, says):
    """Neither AMBER nor LLaVA is named where the recipe does not name it."""
    card = card_of(**values)
    assert card.data.pretty_name == name
    assert card.data.license == "unknown" and card.data.language is None
    assert says in card.text
    assert "not known" in card.text and "```bibtex" not in card.text
    assert "LLaVA-1.5" not in card.text and "amber" not in card.data.tags


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"model": "/home/someone/models/my-llava"}, "| model | `my-llava` |"),
        ({"model": "../models/my-llava/"}, "| model | `my-llava` |"),
        ({"model": "someone/my-llava"}, "| model | `my-llava` |"),
        ({"model": r"C:\Users\someone\my-llava"}, "| model | `my-llava` |"),
        (
            {
                "model": "/home/someone/hub/models--llava-hf--llava-1.5-7b-hf/snapshots/" + COMMIT,
                "revision": COMMIT,
            },
            "| model | `llava-hf/llava-1.5-7b-hf` |",
        ),
        (
            {"benchmark": "hf:/home/someone/pope", "dataset_revision": "1" * 64},
            "| benchmark | `hf:pope` |",
        ),
    ],
)
def test_no_path_of_a_machine_is_published(card_of, values, shown):
    """A folder's name is; where it lay is not, nor is it called a model of the Hub."""
    text = str(card_of(**values))
    assert shown in text
    assert "someone" not in text and "huggingface.co/someone" not in text


def test_a_folder_that_is_not_pushed_names_no_repo(card):
    """Least of all that of another data set."""
    assert 'Activations("OWNER/NAME")' in card.text and "acts.batches(layer=" in card.text
    assert "KOKOSde" not in str(card)


def test_skipped_samples(make_store, image_dir, tmp_path):
    """A broken picture: its sample has no rows and no file, the others keep their numbers."""
    images = tmp_path / "images"
    shutil.copytree(image_dir, images)
    (images / "AMBER_3.jpg").write_bytes(b"not a picture")
    store = make_store(tmp_path / "store", image_dir=images, on_error="skip")
    manifest = build(store, tmp_path / "dataset", configs=["all_layers"])
    table = pq.read_table(
        tmp_path / "dataset" / "all_layers" / "train-00000-of-00001.parquet",
        columns=["sample", "id", "image"],
    )
    kept = [0, 1, 3, 4, 5, 6, 7]
    assert table["sample"].to_pylist() == kept
    assert table["id"].to_pylist() == [101 + sample for sample in kept]
    assert table["image"].to_pylist() == [f"AMBER_{1 + sample}.jpg" for sample in kept]
    assert manifest.n_rows == 7
    assert len(manifest.warnings) == 1 and "1 samples have no rows" in manifest.warnings[0]
    assert manifest.warnings[0] in (tmp_path / "dataset" / "README.md").read_text()
    export(tmp_path / "dataset", tmp_path / "pt", layout="samples", layers="0")
    files = sorted(path.name for path in (tmp_path / "pt").glob("*.pt"))
    assert files == [f"sample_{sample:04d}.pt" for sample in kept]
    last = torch.load(tmp_path / "pt" / "sample_0007.pt", weights_only=True)
    assert last["activations"][0].shape == (64,)
