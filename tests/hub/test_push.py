"""Pushing: what the repo holds, what is sent twice, what is left of an earlier push, the token."""

import json

import pytest
from huggingface_hub import DatasetCard, HfApi
from loopback_hub import DEFAULT_TOKEN, Faults

from builder.build import build
from builder.push import push
from llava_amber_activations import ActivationsError, load_activations


def remote_files(repo_id):
    api = HfApi(token=DEFAULT_TOKEN)
    return set(api.list_repo_files(repo_id, repo_type="dataset")) - {".gitattributes"}


def local_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def lfs_uploads(hub):
    return [call for call in hub.requests("PUT") if call.kind == "lfs" and call.status == 200]


def test_repo_holds_the_folder_and_the_tag(hub, cli, narrow_dataset):
    """Every file byte for byte, but for the repo's name in the card; v1.1 is the last commit."""
    result = cli("push", narrow_dataset, "--repo-id", "lab/first", "--private")
    assert result.returncode == 0, result.stderr
    assert f"{hub.endpoint}/datasets/lab/first (tag v1.1" in result.stdout
    assert remote_files("lab/first") == local_files(narrow_dataset)
    for path in local_files(narrow_dataset) - {"README.md", "manifest.json"}:
        assert hub.read("lab/first", path) == (narrow_dataset / path).read_bytes(), path
    manifest = json.loads(hub.read("lab/first", "manifest.json"))
    card = hub.read("lab/first", "README.md")
    assert manifest["files"]["README.md"]["bytes"] == len(card)
    assert b'load_activations("lab/first", layer=5' in card and b"KOKOSde" not in card
    api = HfApi(token=DEFAULT_TOKEN)
    info = api.dataset_info("lab/first")
    assert info.private
    tags = {
        ref.name: ref.target_commit
        for ref in api.list_repo_refs("lab/first", repo_type="dataset").tags
    }
    assert tags == {"v1.1": info.sha}


def test_original_spelling_and_token_nowhere(hub, cli, narrow_dataset, tmp_path):
    """--activations_dir, --repo_id, --token work, and the token is in nothing that was written."""
    token = "hf_recognisableTokenOfThisTest"
    tokens, hub.tokens = hub.tokens, hub.tokens | {token}
    try:
        result = cli(
            *("push", "--activations_dir", narrow_dataset, "--repo_id", "lab/spelled"),
            *("--token", token),
            HF_TOKEN="",
            HF_HOME=str(tmp_path / "hf-home"),
            HF_DEBUG="1",
            TMPDIR=str(tmp_path),
        )
    finally:
        hub.tokens = tokens
    assert result.returncode == 0, result.stderr
    assert "warning: " in result.stderr and "HF_TOKEN" in result.stderr
    assert remote_files("lab/spelled") == local_files(narrow_dataset)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    written += [narrow_dataset / path for path in local_files(narrow_dataset)]
    assert not [path for path in written if token.encode() in path.read_bytes()]
    stored = (hub.read("lab/spelled", path) for path in remote_files("lab/spelled"))
    assert not any(token.encode() in content for content in stored)
    assert token not in result.stdout + result.stderr


def test_pushed_again_nothing_is_sent(hub, narrow_dataset, pushed):
    """The same folder once more uploads no file and leaves one tag."""
    before = HfApi().dataset_info(pushed).sha
    hub.reset_counts()
    push(narrow_dataset, pushed, token=DEFAULT_TOKEN)
    assert lfs_uploads(hub) == []
    tags = HfApi().list_repo_refs(pushed, repo_type="dataset").tags
    assert [tag.name for tag in tags] == ["v1.1"]
    assert {tag.target_commit for tag in tags} == {HfApi().dataset_info(pushed).sha}
    assert before


def test_interrupted_push_sends_only_the_rest(hub, narrow_store, tmp_path):
    """Broken off after some uploads and run again: each file is sent once."""
    folder = tmp_path / "dataset"
    build(narrow_store, folder, n_targets=2, max_shard_size="1GB")
    hub.lfs_threshold, threshold = 1, hub.lfs_threshold
    try:
        hub.faults = Faults(down=True, only="lfs", after=40, retry_after=0)
        with pytest.raises(ActivationsError, match="503"):
            push(folder, "lab/interrupted", token=DEFAULT_TOKEN)
        first = {call.path for call in lfs_uploads(hub)}
        hub.faults = Faults()
        hub.reset_counts()
        push(folder, "lab/interrupted", token=DEFAULT_TOKEN)
        second = {call.path for call in lfs_uploads(hub)}
    finally:
        hub.lfs_threshold = threshold
    assert first and second and not first & second
    assert remote_files("lab/interrupted") == local_files(folder)


def test_files_of_an_earlier_push_are_removed(hub, narrow_store, pushed, tmp_path):
    """A folder with fewer shards replaces one with more, and the tag moves; other files stay."""
    many, few = tmp_path / "many", tmp_path / "few"
    build(narrow_store, many, max_shard_size="600kB")
    build(narrow_store, few, n_targets=2, max_shard_size="1GB")
    push(many, "lab/replaced", token=DEFAULT_TOKEN)
    api = HfApi(token=DEFAULT_TOKEN)
    api.upload_file(
        path_or_fileobj=b"by hand",
        path_in_repo="NOTES.md",
        repo_id="lab/replaced",
        repo_type="dataset",
    )
    push(few, "lab/replaced", token=DEFAULT_TOKEN)
    assert remote_files("lab/replaced") == local_files(few) | {"NOTES.md"}
    layer = load_activations("lab/replaced", layer=5, streaming=True)
    assert sum(1 for _ in layer) == 200
    old = load_activations("lab/replaced", layer=5, streaming=True, revision="main")
    assert len(next(iter(old))["targets"]) == 2


def test_a_folder_of_pt_files_is_converted(hub, cli, narrow_dataset, tmp_path):
    """Says so, and the repo opens as a dataset."""
    exported = cli("export", narrow_dataset, tmp_path / "pt", "--format", "layers", "--layers", "3")
    assert exported.returncode == 0, exported.stderr
    result = cli("push", tmp_path / "pt", "--repo-id", "lab/converted")
    assert result.returncode == 0, result.stderr
    assert "which they were converted to" in result.stdout
    assert sum(1 for _ in load_activations("lab/converted", layer=3, streaming=True)) == 200


def test_a_damaged_folder_is_not_pushed(hub, cli, narrow_store, tmp_path):
    """verify runs first: no repo is made."""
    folder = tmp_path / "dataset"
    build(narrow_store, folder, configs=["all_layers"])
    shard = next((folder / "all_layers").iterdir())
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    result = cli("push", folder, "--repo-id", "lab/damaged")
    assert result.returncode == 1 and shard.name in result.stderr
    assert ("dataset", "lab/damaged") not in hub.store.repos


def test_wrong_token(hub, cli, narrow_dataset):
    """401: one line that says what to do."""
    result = cli("push", narrow_dataset, "--repo-id", "lab/refused", HF_TOKEN="hf_wrong")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: cannot push to lab/refused") and "hf auth login" in error
    assert "Traceback" not in result.stderr and "hf_wrong" not in result.stderr


def test_card_is_valid_yaml_of_the_hub(pushed):
    """The card on the Hub parses and names every config, its splits and their rows."""
    card = DatasetCard.load(pushed)
    configs = {config["config_name"] for config in card.data.to_dict()["configs"]}
    assert configs == {"default", "all_layers", *(f"L{layer}" for layer in range(31))}
    infos = {info["config_name"]: info for info in card.data.to_dict()["dataset_info"]}
    assert {split["num_examples"] for split in infos["default"]["splits"]} == {200}
    assert card.data.size_categories == ["n<1K"]
    assert "figures/rms.png" in card.text and "figures/energy.png" in card.text
