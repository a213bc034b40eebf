"""A Hub that fails now and then, and one that stays down."""

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from loopback_hub import DEFAULT_TOKEN, Faults

from builder.build import build
from builder.export import export
from builder.info import info
from builder.push import push
from llava_amber_activations import ActivationsError, activation_batches, load_activations

# Answers to every fifth request are 503, every seventh body breaks off in the middle, and every
# eleventh connection is reset. `retry_after` only shortens the waits of the Hub's client.
TROUBLE = {"every_503": 5, "cut_every": 7, "reset_every": 11, "retry_after": 0}

# No request of these few dozen is tried so often that the sum exceeds this.
MOST_REQUESTS = 400


def test_reading_a_stream(hub, pushed, narrow_vectors):
    hub.faults = Faults(**TROUBLE)
    stream = load_activations(pushed, layer=11, n_targets=3, streaming=True)
    batches = list(activation_batches(stream, batch_size=32))
    x = torch.cat([batch["x"] for batch in batches]).numpy()
    targets = torch.cat([batch["targets"] for batch in batches]).numpy()
    assert np.array_equal(x, narrow_vectors["x_11"])
    for k in range(3):
        assert np.array_equal(targets[:, k], narrow_vectors[f"mlp_out_{12 + k}"])
    assert set(hub.faults.fired) == {"503", "cut", "reset"}, "every kind must have struck"
    assert len(hub.requests()) < MOST_REQUESTS


def test_preparing(hub, pushed, narrow_vectors, tmp_path):
    hub.faults = Faults(**TROUBLE)
    layer = load_activations(pushed, layer=12, n_targets=1, cache_dir=tmp_path)
    batches = list(activation_batches(layer, batch_size=64))
    x = torch.cat([batch["x"] for batch in batches]).numpy()
    assert np.array_equal(x, narrow_vectors["x_12"])
    assert hub.faults.fired.total() > 0
    assert len(hub.requests()) < MOST_REQUESTS


def test_export(hub, pushed, narrow_vectors, tmp_path):
    hub.faults = Faults(**TROUBLE)
    export(pushed, tmp_path / "pt", layout="layers", layers="3,4", n_targets=2, batch_size=50)
    for layer in (3, 4):
        folder = tmp_path / "pt" / f"L{layer}"
        x = torch.cat(
            [torch.load(folder / f"batch_{n}_x.pt", weights_only=True)["x"] for n in range(4)]
        )
        assert np.array_equal(x[:, 0].numpy(), narrow_vectors[f"x_{layer:02d}"])
    assert hub.faults.fired.total() > 0
    assert len(hub.requests()) < MOST_REQUESTS


def test_push(hub, narrow_dataset, tmp_path):
    """Complete, every file as it is here, in spite of everything."""
    hub.faults = Faults(**TROUBLE)
    push(narrow_dataset, "lab/troubled", token=DEFAULT_TOKEN)
    fired = hub.faults.fired
    hub.faults = Faults()
    files = {p.relative_to(narrow_dataset).as_posix() for p in narrow_dataset.rglob("*.*")}
    remote = set(HfApi().list_repo_files("lab/troubled", repo_type="dataset"))
    assert remote - {".gitattributes"} == files
    for path in files - {"README.md", "manifest.json"}:
        assert hub.read("lab/troubled", path) == (narrow_dataset / path).read_bytes()
    assert fired["503"] and fired["reset"]
    assert len(hub.requests()) < 2 * MOST_REQUESTS


def test_down_at_the_start(hub, cli, pushed, tmp_path):
    """One line, exit 1, nothing written."""
    hub.faults = Faults(down=True, retry_after=0)
    result = cli("export", pushed, tmp_path / "pt", "--format", "layers")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "503" in errors[0] and "again later" in errors[0]
    assert not (tmp_path / "pt").exists()


def test_down_in_the_middle_of_an_export(hub, pushed, narrow_vectors, tmp_path):
    """What is written is whole; run again, the rest follows and nothing is written twice."""
    out = tmp_path / "pt"
    options = {"layout": "layers", "layers": "0-3", "n_targets": 2, "batch_size": 25}
    hub.faults = Faults(down=True, after=16, retry_after=0)
    with pytest.raises(ActivationsError, match="503"):
        export(pushed, out, **options)
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    assert 0 < len(done) < 64
    for path in done:
        torch.load(path, weights_only=True)
    hub.faults = Faults()
    result = export(pushed, out, **options)
    assert result.n_files == 64 and result.n_written >= 64 - len(done)
    for layer in range(4):
        x = torch.cat(
            [
                torch.load(out / f"L{layer}" / f"batch_{n}_x.pt", weights_only=True)["x"]
                for n in range(8)
            ]
        )
        assert np.array_equal(x[:, 0].numpy(), narrow_vectors[f"x_{layer:02d}"])
    pairs = [path for path in done if path.with_name(path.name.replace("_x", "_y")) in done]
    assert pairs and all(path.stat().st_mtime_ns == done[path] for path in pairs)


@pytest.mark.parametrize("at", ["first", "commit", "upload"])
def test_a_circle_of_redirects(hub, cli, narrow_dataset, pushed, at):
    """One line that names the repo; no traceback, and nothing tried for long."""
    repo_id = f"lab/circle-{at}"
    only = {"first": None, "commit": f"/api/datasets/{repo_id}/commit/", "upload": "lfs"}[at]
    hub.faults = Faults(loop_every=1, only=only)
    result = cli("push", narrow_dataset, "--repo-id", repo_id)
    assert result.returncode == 1
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith(
        f"error: cannot push to {repo_id} on the Hub: its answer makes no sense"
    )
    assert "Traceback" not in result.stderr
    if at == "first":
        with pytest.raises(ActivationsError, match=rf"cannot read {pushed} on the Hub: its answer"):
            load_activations(pushed, layer=0, streaming=True)


def test_an_answer_that_is_no_json(hub, pushed):
    """Such as a captive portal's page, with status 200."""
    hub.faults = Faults(short_every=1, only=f"/api/datasets/{pushed}")
    with pytest.raises(ActivationsError, match=rf"cannot read {pushed} on the Hub: its answer"):
        info(pushed)


@pytest.mark.parametrize("status", ["503", "429"])
def test_the_hub_says_when_to_come_back(hub, pushed, monkeypatch, status):
    """Retry-After is what is waited; a far one is said at once."""
    waited = []
    monkeypatch.setattr("llava_amber_activations.sources.hub_errors.time.sleep", waited.append)
    only = f"/api/datasets/{pushed}"
    hub.faults = Faults(**{f"every_{status}": 1}, retry_after=7, times=2, only=only)
    assert dict(info(pushed))["rows"] == "200"
    assert waited == [7, 7]
    hub.faults = Faults(**{f"every_{status}": 1}, retry_after=3000, only=only)
    with pytest.raises(ActivationsError, match=status):
        info(pushed)
    assert waited == [7, 7]


def test_bodies_of_another_length(hub, pushed, narrow_vectors):
    """Asked for again; and where every one is too short, a sentence and no other values."""
    shards = "/datasets/lab/amber-activations/resolve"
    stream = load_activations(pushed, layer=21, n_targets=1, streaming=True)
    hub.faults = Faults(short_every=3, only=lambda call: call.path.startswith(shards))
    x = torch.cat([batch["x"] for batch in activation_batches(stream, batch_size=64)])
    assert np.array_equal(x.numpy(), narrow_vectors["x_21"]) and hub.faults.fired["short"] > 0
    hub.faults = Faults(short_every=1, only=lambda call: call.path.startswith(shards))
    stream = load_activations(pushed, layer=22, n_targets=1, streaming=True)
    with pytest.raises(ActivationsError, match=r"lab/amber-activations.* bytes came where"):
        list(activation_batches(stream, batch_size=64))


def test_no_server_at_all(hub, cli, narrow_store, pushed, tmp_path):
    """Connections refused: one line for reading and for pushing."""
    folder = tmp_path / "dataset"
    build(narrow_store, folder, configs=["all_layers"])
    hub.stop()
    try:
        results = [
            cli("info", pushed),
            cli("push", folder, "--repo-id", "lab/nowhere"),
        ]
    finally:
        hub.start()
    for result in results:
        assert result.returncode == 1 and "Traceback" not in result.stderr
        last = result.stderr.splitlines()[-1]
        assert last.startswith("error: cannot") and "Check the connection" in last
