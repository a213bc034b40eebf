"""Pushing: what the repo holds, what is sent twice, what is left of an earlier push, the token."""

import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import DatasetCard, HfApi
from loopback_hub import DEFAULT_TOKEN, Faults

from builder.build import build
from builder.push import push
from llava_amber_activations import ActivationsError, activation_batches, load_activations


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
    assert b'Activations("lab/first")' in card and b"acts.batches(layer=5" in card
    assert b"KOKOSde" not in card
    api = HfApi(token=DEFAULT_TOKEN)
    info = api.dataset_info("lab/first")
    assert info.private
    tags = {
        ref.name: ref.target_commit
        for ref in api.list_repo_refs("lab/first", repo_type="dataset").tags
    }
    assert tags == {"v1.1": info.sha}


def test_no_path_of_this_machine_is_pushed(hub, last_dataset):
    """A model that lay in a folder is its last name, in the card and in the manifest."""
    model = Path(json.loads((last_dataset / "manifest.json").read_text())["recipe"]["model"])
    push(last_dataset, "lab/no-paths", token=DEFAULT_TOKEN)
    for path in ("README.md", "manifest.json"):
        content = hub.read("lab/no-paths", path).decode()
        assert model.name in content
        assert str(model.parent) not in content and str(Path.home()) not in content
    assert load_activations("lab/no-paths", 5, streaming=True).n_shards


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


def test_changed_pt_files_are_converted_anew(hub, cli, narrow_dataset, tmp_path):
    """A second push of a folder of which one file has other values pushes those."""
    folder = tmp_path / "pt"
    exported = cli("export", narrow_dataset, folder, "--format", "layers", "--layers", "3")
    assert exported.returncode == 0, exported.stderr

    def push_and_read():
        result = cli("push", folder, "--repo-id", "lab/changed-pt")
        assert result.returncode == 0, result.stderr
        batches = activation_batches(load_activations("lab/changed-pt", 3, streaming=True))
        return torch.cat([batch["x"] for batch in batches]).numpy()

    before = push_and_read()
    conversion = tmp_path / "pt-dataset" / "manifest.json"
    made = conversion.stat().st_mtime_ns
    assert np.array_equal(push_and_read(), before)
    assert conversion.stat().st_mtime_ns == made, "what is unchanged is not converted again"
    path = folder / "L3" / "batch_0_x.pt"
    x = torch.load(path, weights_only=True)["x"]
    torch.save({"x": -x}, path)
    after = push_and_read()
    n_changed = len(x)
    assert np.array_equal(after[:n_changed], -before[:n_changed])
    assert np.array_equal(after[n_changed:], before[n_changed:])
    pushed = json.loads(hub.read("lab/changed-pt", "manifest.json"))["files"]
    assert remote_files("lab/changed-pt") == {*pushed, "manifest.json"}


def test_a_folder_in_the_way_of_a_conversion_is_kept(cli, narrow_dataset, tmp_path):
    """Something else named as the conversion would be is neither pushed nor deleted."""
    exported = cli("export", narrow_dataset, tmp_path / "pt", "--format", "samples", "--layers=3")
    assert exported.returncode == 0, exported.stderr
    shutil.copytree(narrow_dataset, tmp_path / "pt-dataset")
    result = cli("push", tmp_path / "pt", "--repo-id", "lab/in-the-way")
    assert result.returncode == 1 and "pt-dataset is in the way" in result.stderr
    assert local_files(tmp_path / "pt-dataset") == local_files(narrow_dataset)


def test_another_repo_is_not_touched(hub, cli, narrow_dataset):
    """What would be lost is named; --overwrite says what goes, and keeps the rest."""
    api = HfApi(token=DEFAULT_TOKEN)
    api.create_repo("lab/foreign", repo_type="dataset")
    foreign = {
        "README.md": b"---\nlicense: mit\n---\nmine",
        "data/L1-00000-of-00009.parquet": b"a shard",
        "data/deeper/train.parquet": b"of another config",
        "figures/plot.png": b"a picture",
        "train.csv": b"1,2",
    }
    for path, content in foreign.items():
        api.upload_file(
            path_or_fileobj=content,
            path_in_repo=path,
            repo_id="lab/foreign",
            repo_type="dataset",
        )
    result = cli("push", narrow_dataset, "--repo-id", "lab/foreign")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: lab/foreign on the Hub is not a dataset of this project")
    assert "delete data/L1-00000-of-00009.parquet and replace README.md" in error
    assert "--overwrite" in error
    for path, content in foreign.items():
        assert hub.read("lab/foreign", path) == content
    result = cli("push", narrow_dataset, "--repo-id", "lab/foreign", "--overwrite")
    assert result.returncode == 0, result.stderr
    assert "deleting data/L1-00000-of-00009.parquet of lab/foreign" in result.stdout
    kept = {"data/deeper/train.parquet", "figures/plot.png", "train.csv"}
    assert remote_files("lab/foreign") == local_files(narrow_dataset) | kept
    for path in kept:
        assert hub.read("lab/foreign", path) == foreign[path]


def test_a_push_is_one_commit(hub, narrow_store, tmp_path):
    """Of files, deletions, card and manifest; before it comes, main is what it was."""
    many, few = tmp_path / "many", tmp_path / "few"
    build(narrow_store, many, max_shard_size="600kB")
    build(narrow_store, few, n_targets=2, max_shard_size="1GB")
    deleted = []
    for number, folder in enumerate((many, few, few), start=1):
        found = push(folder, "lab/one-commit", token=DEFAULT_TOKEN, announce=deleted.append)
        history = hub.repo("lab/one-commit").history("main")
        assert len(history) == 1 + min(number, 2), "the third changes nothing"
        assert hub.repo("lab/one-commit").tags == {found.tag: history[0].oid}
        assert set(history[0].files) - {".gitattributes"} == local_files(folder)
    gone = local_files(many) - local_files(few)
    assert len(deleted) == len(gone) > 0
    assert all(any(path in line for line in deleted) for path in gone)


def test_a_push_that_is_overtaken_overwrites_nothing(hub, narrow_dataset, narrow_store, tmp_path):
    """Somebody commits while the files are being sent: theirs stays, and it is said."""
    folder = tmp_path / "dataset"
    build(narrow_store, folder, configs=["all_layers"])
    push(narrow_dataset, "lab/overtaken", token=DEFAULT_TOKEN)
    overtaken = []

    def commit_of_another(call):
        if call.path.endswith("/commit/main") and not overtaken:
            theirs = [
                {"key": "header", "value": {"summary": "theirs"}},
                {"key": "file", "value": {"path": "manifest.json", "content": "theirs"}},
            ]
            overtaken.append(hub.store.push(hub.repo("lab/overtaken"), "main", theirs).oid)
        return False

    tag = dict(hub.repo("lab/overtaken").tags)
    hub.faults = Faults(every_503=1, only=commit_of_another)
    with pytest.raises(ActivationsError, match=r"somebody else has pushed to lab/overtaken"):
        push(folder, "lab/overtaken", token=DEFAULT_TOKEN)
    assert hub.read("lab/overtaken", "manifest.json") == b"theirs"
    assert hub.repo("lab/overtaken").branches["main"] == overtaken[0]
    assert hub.repo("lab/overtaken").tags == tag


def test_an_answer_lost_after_the_commit(hub, narrow_dataset):
    """The Hub took the commit and the connection broke: tried again, it is no conflict."""
    commits = "/api/datasets/lab/lost-answer/commit/"
    hub.faults = Faults(lose_answer=1, times=1, only=commits)
    found = push(narrow_dataset, "lab/lost-answer", token=DEFAULT_TOKEN)
    assert hub.faults.fired["lost"] == 1
    assert len(hub.repo("lab/lost-answer").history("main")) == 2
    assert hub.repo("lab/lost-answer").tags == {found.tag: found.commit}


def pushed_before(narrow_store, tmp_path, repo_id):
    """Push one dataset, and return the folder of another and the push of the first."""
    first, second = tmp_path / "first", tmp_path / "second"
    build(narrow_store, first, n_targets=2, configs=["default"])
    build(narrow_store, second, configs=["all_layers"])
    return second, push(first, repo_id, token=DEFAULT_TOKEN)


def test_a_tag_that_cannot_be_moved_is_put_back(hub, narrow_store, tmp_path):
    """Making it on the new commit fails for good: it is on the old one again, and that is said."""
    second, before = pushed_before(narrow_store, tmp_path, "lab/tag-back")

    def on_the_new_commit(call):
        _place, _, commit = call.path.partition("/tag/")
        return call.method == "POST" and commit not in ("", before.commit)

    hub.faults = Faults(every_503=1, only=on_the_new_commit, retry_after=0)
    with pytest.raises(ActivationsError, match=r"tag v\S+ could not be moved .* is still on the e"):
        push(second, "lab/tag-back", token=DEFAULT_TOKEN)
    assert hub.repo("lab/tag-back").tags == {before.tag: before.commit}
    hub.faults = Faults()
    after = push(second, "lab/tag-back", token=DEFAULT_TOKEN)
    assert hub.repo("lab/tag-back").tags == {after.tag: after.commit}
    assert len(hub.repo("lab/tag-back").history("main")) == 3


def test_a_reader_waits_for_a_tag_that_is_being_moved(hub, narrow_store, tmp_path):
    """Between its removal and its making, our reader asks again."""
    second, before = pushed_before(narrow_store, tmp_path, "lab/tag-moves")
    seen = []

    def while_it_is_absent(call):
        if call.method == "POST" and "/tag/" in call.path and not seen:
            seen.append(before.tag not in hub.repo("lab/tag-moves").tags)
            reader.start()
            reader.join(0.5)
        return False

    def read():
        layer = load_activations("lab/tag-moves", 5, streaming=True, revision=before.tag)
        seen.append(len(next(iter(layer))["targets"]))

    reader = threading.Thread(target=read)
    hub.faults = Faults(every_503=1, only=while_it_is_absent)
    push(second, "lab/tag-moves", token=DEFAULT_TOKEN)
    reader.join()
    assert seen == [True, 16], "it was absent, and then the new dataset was read"


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
    assert configs == {"samples", "default", "all_layers", *(f"L{layer}" for layer in range(31))}
    infos = {info["config_name"]: info for info in card.data.to_dict()["dataset_info"]}
    assert {split["num_examples"] for split in infos["default"]["splits"]} == {200}
    assert card.data.size_categories == ["n<1K"]
    assert "figures/rms.png" in card.text and "figures/energy.png" in card.text


def test_a_log_of_a_push_is_short(hub, cli, narrow_dataset):
    """No line a file: at most what each step says when it ends, on a slow machine."""
    assert len(local_files(narrow_dataset)) > 30
    result = cli("push", narrow_dataset, "--repo-id", "lab/logged", from_nothing=True)
    assert result.returncode == 0
    steps = ("checksums: ", "verify: ", "upload: ")
    assert all(line.startswith(steps) for line in result.stderr.splitlines())
    assert result.stderr.count("\n") <= len(steps)


def test_sent_some_at_a_time(hub, narrow_dataset, monkeypatch, capsys):
    """So that progress can be told; every file arrives, and it is one commit all the same."""
    monkeypatch.setattr("builder.push._BYTES_AT_ONCE", 1_000_000)
    monkeypatch.setattr("llava_amber_activations.console.progress._MOMENT", 0.0)
    push(narrow_dataset, "lab/some-at-a-time", token=DEFAULT_TOKEN)
    asked = [call for call in hub.requests("POST") if "/preupload/" in call.path]
    size = sum((narrow_dataset / path).stat().st_size for path in local_files(narrow_dataset))
    assert size // 1_000_000 <= len(asked) < len(local_files(narrow_dataset))
    assert remote_files("lab/some-at-a-time") == local_files(narrow_dataset)
    for path in local_files(narrow_dataset) - {"README.md", "manifest.json"}:
        assert hub.read("lab/some-at-a-time", path) == (narrow_dataset / path).read_bytes()
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"upload: (\S+B) of \1, ", last)


def test_who_is_not_logged_in(hub, cli, narrow_dataset, tmp_path):
    """Is told before the folder is verified, which may take an hour."""
    hub.reset_counts()
    result = cli(
        *("push", narrow_dataset, "--repo-id", "lab/anonymous"),
        HF_TOKEN="",
        HF_HOME=str(tmp_path / "nobody"),
    )
    assert result.returncode == 1 and hub.requests("POST") == []
    assert "needs an access token" in result.stderr and "hf auth login" in result.stderr
