"""Row groups from the manifest: the same rows in the same order, and footers read late and once."""

import shutil
from collections import Counter
from itertools import islice

import pytest
import torch
from manifests import changed_manifest

from builder.build import build
from llava_amber_activations import Activations, ActivationsError, activation_batches
from llava_amber_activations.reading import read_ahead

LAYER = 4


@pytest.fixture(scope="module")
def said(all_store, tmp_path_factory):
    """Several shards, of several row groups each, which the manifest names."""
    folder = tmp_path_factory.mktemp("said") / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builder.shards.plan._USUAL_GROUP_ROWS", 8)
        manifest = build(all_store, folder, configs=["all_layers"], max_shard_size="300kB")
    shards = manifest.shards("all_layers", "train")
    assert len(shards) > 6 and len(manifest.files[shards[0]].row_groups or ()) > 1
    return folder


@pytest.fixture(scope="module")
def unsaid(said, tmp_path_factory):
    """The same, as an earlier release wrote it."""
    folder = shutil.copytree(said, tmp_path_factory.mktemp("unsaid") / "dataset")
    with changed_manifest(folder) as manifest:
        for entry in manifest["files"].values():
            del entry["row_groups"]
    return folder


@pytest.fixture
def footers(monkeypatch):
    """How many times each footer was read."""
    read, counts = read_ahead._footer, Counter()

    def counted(url):
        counts[url] += 1
        return read(url)

    monkeypatch.setattr(read_ahead, "_footer", counted)
    return counts


def batches_of(folder, **options):
    return Activations(folder).batches(layer=LAYER, n_targets=1, batch_size=50, **options)


def rows_of(batches):
    return [(batch["x"], batch["sample"], batch["position"]) for batch in batches]


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"shuffle": True, "seed": 3}, {"skip_first": True, "shuffle": True}),
        *({"shuffle": True, "rank": 1, "world_size": 3}, {"rank": 2, "world_size": 3}),
    ],
    ids=["in order", "shuffled", "chosen", "shuffled rank", "rank"],
)
def test_the_same_order(said, unsaid, monkeypatch, options):
    """With or without them; and a state of the one is taken up in the other."""
    monkeypatch.setattr("llava_amber_activations.streams.shard_stream._FIRST_WINDOW_ROWS", 8)
    found, expected = (rows_of(batches_of(folder, **options)) for folder in (said, unsaid))
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, one, other))
    begun, following = batches_of(unsaid, **options), batches_of(said, **options)
    head = rows_of(islice(begun, 2))
    following.load_state_dict(begun.state_dict())
    for one, other in zip([*head, *rows_of(following)], expected, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    "options",
    [{}, {"shuffle": True}, {"rank": 2, "world_size": 3}],
    ids=["in order", "shuffled", "rank"],
)
def test_footers_are_read_when_rows_are(said, unsaid, footers, monkeypatch, options):
    """Before the first batch, those of what it needs and of what is read ahead: not of all."""
    monkeypatch.setattr(read_ahead, "_AT_ONCE_HERE", (2, 2))
    n_shards = len(list((said / "all_layers").iterdir()))
    rest = iter(batches_of(said, **options))
    next(rest)
    # A batch is of seven row groups, and two more are read ahead.
    assert 1 <= len(footers) <= 9 < n_shards
    list(rest)
    assert set(footers.values()) == {1}, "several threads want a footer, and one reads it"
    footers.clear()
    if options:
        next(iter(batches_of(unsaid, **options)))
        assert len(footers) == n_shards


def test_length_of_a_stream_of_row_groups(said, unsaid):
    """What `datasets` has cut into row groups is counted before it is read."""
    cut, uncounted = (
        activation_batches(Activations(folder).dataset(LAYER, streaming=True).reshard(), 50)
        for folder in (said, unsaid)
    )
    assert cut.n_rows == Activations(said).n_rows and len(cut) == len(rows_of(cut))
    with pytest.raises(TypeError, match="not known before they are read"):
        len(uncounted)


@pytest.mark.parametrize("shuffle", [False, True])
def test_row_groups_that_are_others(said, tmp_path, shuffle):
    """As many rows and as many row groups, cut elsewhere: no row of the shard is returned."""
    folder = shutil.copytree(said, tmp_path / "dataset")
    path = sorted((folder / "all_layers").iterdir())[2]
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][path.relative_to(folder).as_posix()]
        first, second, *others = entry["row_groups"]
        entry["row_groups"] = [first - 1, second + 1, *others]
    says = rf"{path.name} has other row groups .*row group 0 has {first} rows, not {first - 1}\): b"
    with pytest.raises(ActivationsError, match=says):
        list(batches_of(folder, shuffle=shuffle))
