"""Hand-over to other trainers: every layout read by what the trainer reads it with."""

import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from datasets import load_from_disk
from manifests import changed_manifest
from random_store import N_LAYERS, make_random_store, read_vectors
from safetensors.torch import load_file

from builder.asked.handover_asked import HANDOVERS, HandoverAsked
from builder.build import build
from builder.handover import hand_over as handing
from builder.handover.hand_over import hand_over
from llava_amber_activations import ActivationsError
from llava_amber_activations.store.norms_file import write_norms
from llava_amber_activations.vectors.norms import Norms

LAYERS = (3, 4, 9)
ROWS = 200


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_random_store(tmp_path_factory.mktemp("handover") / "store", ROWS, 64)


@pytest.fixture(scope="module")
def vectors(store):
    """Every tensor of the store; row n is sample n's only one."""
    return read_vectors(store)


@pytest.fixture(scope="module")
def dataset(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("handover") / "dataset"
    build(store, folder, configs=["all_layers"], max_shard_size="600kB")
    return folder


def asked(format_, **options):
    return HandoverAsked(format_, **{"layers": "3,4,9", "chunk_rows": 60, **options})


def rows_of(out):
    """Which sample each exported row is of, in order."""
    paths = sorted((out / "rows").iterdir())
    return np.concatenate([load_file(path)["sample"].numpy() for path in paths])


def read_llamascopium(out):
    """By safetensors alone: each hook's chunks, one after the other."""
    hooks, tokens = {}, {}
    for folder in sorted(path for path in out.glob("blocks.*")):
        files = [load_file(path) for path in sorted(folder.glob("chunk-*.safetensors"))]
        assert all(
            file.keys() == {"activation", "tokens", "mask", "attention_mask"} for file in files
        )
        assert all(file["mask"].all() and file["attention_mask"].all() for file in files)
        assert {file["tokens"].dtype for file in files} == {torch.int64}
        assert len({len(file["tokens"]) for file in files}) == 1
        hooks[folder.name] = torch.cat([file["activation"] for file in files]).numpy()
        tokens[folder.name] = torch.cat([file["tokens"] for file in files]).tolist()
    assert len({tuple(each) for each in tokens.values()}) == 1
    return hooks, next(iter(tokens.values()))


def read_saelens(out):
    """By `datasets`, as SAELens does."""
    rows = load_from_disk(str(out))
    table = rows.data.table
    assert table["sample"].to_pylist() == rows_of(out).tolist()
    hooks = {}
    for name, feature in rows.features.items():
        if name.startswith("blocks."):
            assert feature.shape == (1, 64)
            flat = table[name].combine_chunks().storage.flatten().flatten()
            hooks[name] = flat.to_numpy().reshape(len(rows), 64)
    first = rows.with_format("torch")[0]
    assert first[next(iter(hooks))].shape == (1, 64)
    return hooks, table["token_ids"].combine_chunks().flatten().to_pylist()


def read_crosslayer_coding(out):
    """By h5py and the index, which names each chunk's rows."""
    index = np.fromfile(out / "index.bin", [("chunk", "<i4"), ("rows", "<i4"), ("first", "<i8")])
    about = json.loads((out / "metadata.json").read_text())
    assert about["num_layers"] == 3 and about["d_model"] == 64
    assert about["layers"] == list(LAYERS)
    assert about["total_tokens"] == index["rows"].sum()
    assert len(set(index["rows"])) == 1
    names = {"inputs": "hook_resid_mid", "targets": "hook_mlp_out"}
    found = {}
    for number, layer in enumerate(LAYERS):
        for kind, name in names.items():
            parts = []
            for chunk in index["chunk"]:
                with h5py.File(out / f"chunk_{chunk}.h5") as file:
                    parts.append(file[f"layer_{number}/{kind}"][:])
            found[f"blocks.{layer}.{name}"] = np.concatenate(parts)
    return found, None


READ = {
    "llamascopium": read_llamascopium,
    "saelens": read_saelens,
    "crosslayer-coding": read_crosslayer_coding,
}


def check(out, format_, vectors, dtype=np.float16):
    hooks, tokens = READ[format_](out)
    rows = rows_of(out)
    assert sorted(hooks) == sorted(
        f"blocks.{layer}.{name}" for layer in LAYERS for name in ("hook_resid_mid", "hook_mlp_out")
    )
    for layer in LAYERS:
        for hook, name in (("hook_resid_mid", "x"), ("hook_mlp_out", "mlp_out")):
            found = hooks[f"blocks.{layer}.{hook}"]
            assert found.dtype == dtype
            assert np.array_equal(found, vectors[f"{name}_{layer:02d}"][rows].astype(dtype))
    if tokens is not None:
        assert tokens == vectors["token_id"][rows].tolist()
    return rows


@pytest.mark.parametrize("format_", HANDOVERS)
def test_values_order_and_layers(dataset, vectors, tmp_path, format_):
    """Every bit, each row once (but for what equal chunks leave out), mixed over the chunks."""
    result = hand_over(dataset, tmp_path / "out", asked(format_))
    rows = check(tmp_path / "out", format_, vectors)
    left_out = {"saelens": 0}.get(format_, ROWS % 3)
    assert result.n_rows == len(rows) == len(set(rows.tolist())) == ROWS - left_out
    assert (result.n_left_out, result.n_chunks, result.n_written) == (left_out, 3, 3)
    first = rows[: ROWS // 3]
    assert first.max() - first.min() > 100 and list(first) != sorted(first)
    again = hand_over(dataset, tmp_path / "out", asked(format_))
    assert again.n_written == 0


@pytest.mark.parametrize("format_", HANDOVERS)
def test_sha256sum_agrees(dataset, tmp_path, format_):
    """SHA256SUMS names every file but itself."""
    hand_over(dataset, tmp_path / "out", asked(format_))
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(done.stdout.splitlines()) == len(files) - 1


@pytest.mark.parametrize("format_", HANDOVERS)
@pytest.mark.parametrize("after", [0, 1, 2])
def test_left_off_and_gone_on(dataset, tmp_path, monkeypatch, format_, after):
    """In the middle of a chunk: nothing lies where the trainer looks; then the same bytes."""
    hand_over(dataset, tmp_path / "whole", asked(format_))
    written = []
    plain = handing._write_chunk

    def failing(out, layout, plan, chunk, supply, progress):
        if len(written) == after:
            supply.take = lambda n_rows: (_ for _ in ()).throw(KeyboardInterrupt)
        written.append(chunk)
        plain(out, layout, plan, chunk, supply, progress)

    monkeypatch.setattr(handing, "_write_chunk", failing)
    with pytest.raises(KeyboardInterrupt):
        hand_over(dataset, tmp_path / "out", asked(format_))
    monkeypatch.undo()
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"export.json", "unfinished"}
    result = hand_over(dataset, tmp_path / "out", asked(format_))
    assert result.n_written == 3 - after
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            mine = tmp_path / "out" / path.relative_to(tmp_path / "whole")
            assert mine.read_bytes() == path.read_bytes(), mine
    assert {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*")} == {
        p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")
    }


@pytest.mark.parametrize("format_", HANDOVERS)
def test_a_disk_that_is_full_in_mid_chunk(dataset, vectors, tmp_path, format_):
    """One sentence, and no crash of HDF5's when the process ends; with room, it goes on."""
    out = tmp_path / "out"
    options = ["--layers", "3,4,9", "--chunk-rows", "200", "--dtype", "float32"]
    command = ["export", str(dataset), str(out), "--format", format_, *options]
    # A limit on files: more than what comes before the first chunk takes, less than a chunk.
    done = subprocess.run(
        [sys.executable, "-m", "llava_amber_activations", *command],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, (done.returncode, done.stderr)
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.match(rf"error: {out}/unfinished/\S*(chunk|data)\S* cannot be written \(", error)
    assert "Traceback" not in done.stderr
    assert {path.name for path in out.iterdir()} == {"export.json", "unfinished"}
    assert not [path for path in (out / "unfinished").rglob("*") if path.is_file()]
    hand_over(dataset, out, asked(format_, chunk_rows=200, dtype="float32"))
    check(out, format_, vectors, np.float32)


@pytest.mark.parametrize("format_", HANDOVERS)
def test_a_lost_chunk_is_written_again(dataset, vectors, tmp_path, format_):
    out = tmp_path / "out"
    hand_over(dataset, out, asked(format_))
    lost = sorted([*out.rglob("chunk*"), *out.rglob("data-*")])[1]
    lost.unlink()
    assert hand_over(dataset, out, asked(format_)).n_written == 1
    check(out, format_, vectors)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 1}, "another seed"),
        ({"layers": "3,4"}, "another layers"),
        ({"dtype": "float32"}, "another dtype"),
        ({"chunk_rows": 50}, "another chunk_rows"),
        ({"skip_first": True}, "another skip_first"),
    ],
)
def test_other_options_are_refused(dataset, tmp_path, options, says):
    hand_over(dataset, tmp_path / "out", asked("saelens"))
    with pytest.raises(ActivationsError, match=f"holds an export with {says}"):
        hand_over(dataset, tmp_path / "out", asked("saelens", **options))
    with pytest.raises(ActivationsError, match="holds an export with another format"):
        hand_over(dataset, tmp_path / "out", asked("llamascopium"))


@pytest.fixture
def with_norms(dataset, tmp_path):
    """A copy of the data set beside norms, drawn; and a function that draws others."""
    folder = shutil.copytree(dataset, tmp_path / "with-norms")

    def draw(seed):
        weight = torch.rand(N_LAYERS, 64, generator=torch.Generator().manual_seed(seed)).half()
        write_norms(folder, Norms("rms", (1e-5,) * N_LAYERS, "float16", weight))
        content = (folder / "norms.safetensors").read_bytes()
        with changed_manifest(folder) as manifest:
            manifest["recipe"]["dtype"] = "float16"
            entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            manifest["files"]["norms.safetensors"] = entry
        return weight

    return folder, draw


@pytest.mark.parametrize("format_", HANDOVERS)
def test_the_mlps_input(with_norms, vectors, tmp_path, format_):
    """Computed by the norms; under its own hook's name where the layout has one."""
    folder, draw = with_norms
    weight = draw(0)
    hand_over(folder, tmp_path / "out", asked(format_, x_site="mlp_in"))
    hooks, _ = READ[format_](tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    name = "hook_resid_mid" if format_ == "crosslayer-coding" else "mlp.hook_in"
    for layer in LAYERS:
        x = torch.from_numpy(vectors[f"x_{layer:02d}"]).float()
        r = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        expected = (weight[layer] * r.half()).numpy()
        assert np.array_equal(hooks[f"blocks.{layer}.{name}"], expected[rows])


def test_other_norms_are_another_state_of_the_data(with_norms, tmp_path):
    """Where they decide what is written."""
    folder, draw = with_norms
    for site in ("mlp_in", "resid_mid"):
        draw(0)
        hand_over(folder, tmp_path / site, asked("saelens", x_site=site))
        draw(1)
        if site == "resid_mid":
            assert hand_over(folder, tmp_path / site, asked("saelens", x_site=site)).n_written == 0
            continue
        with pytest.raises(ActivationsError, match="another state of this dataset"):
            hand_over(folder, tmp_path / site, asked("saelens", x_site=site))


def test_another_state_of_the_data_is_refused(dataset, tmp_path):
    hand_over(dataset, tmp_path / "out", asked("saelens"))
    other = make_random_store(tmp_path / "store", ROWS, 64, scale=2)
    build(other, tmp_path / "other", configs=["all_layers"])
    with pytest.raises(ActivationsError, match=r"another state of this dataset|another recipe"):
        hand_over(tmp_path / "other", tmp_path / "out", asked("saelens"))


@pytest.mark.parametrize("format_", HANDOVERS)
def test_float32(dataset, vectors, tmp_path, format_):
    hand_over(dataset, tmp_path / "out", asked(format_, dtype="float32"))
    check(tmp_path / "out", format_, vectors, np.float32)


def test_a_dtype_that_a_layout_does_not_know(dataset, tmp_path):
    with pytest.raises(ActivationsError, match="float16 or float32, and no bfloat16"):
        hand_over(dataset, tmp_path / "out", asked("saelens", dtype="bfloat16"))


def test_first_positions_left_out(all_dataset, all_store, tmp_path):
    """Counted, and none of them among the rows."""
    result = hand_over(all_dataset, tmp_path / "out", asked("saelens", skip_first=True))
    positions = [
        load_file(path)["position"] for path in sorted((tmp_path / "out" / "rows").iterdir())
    ]
    assert result.n_skipped == 8
    assert (torch.cat(positions) > 0).all()
    chunks = [load_file(path) for path in sorted((all_store / "chunks").iterdir())]
    assert result.n_rows == sum(len(chunk["sample"]) for chunk in chunks) - 8


def test_statistics_of_crosslayer_coding(dataset, vectors, tmp_path):
    """Mean and the sample's deviation, in float64 over the exported rows."""
    out = tmp_path / "out"
    hand_over(dataset, out, asked("crosslayer-coding"))
    rows = rows_of(out)
    stats = json.loads((out / "norm_stats.json").read_text())
    for number, layer in enumerate(LAYERS):
        for kind, name in (("inputs", "x"), ("targets", "mlp_out")):
            exported = vectors[f"{name}_{layer:02d}"][rows].astype(np.float64)
            found = stats[str(number)][kind]
            assert np.allclose(found["mean"], exported.mean(axis=0), rtol=1e-6, atol=1e-7)
            assert np.allclose(found["std"], exported.std(axis=0, ddof=1), rtol=1e-6)


def test_the_command_prints_the_trainers_code(cli, dataset, tmp_path):
    """Which is Python, and names the folder."""
    for format_ in HANDOVERS:
        out = tmp_path / format_
        done = cli("export", dataset, out, "--format", format_, "--layers", "3,4", "--seed", 7)
        assert done.returncode == 0, done.stderr
        said, code = done.stdout.split("To train on it:\n")
        assert f"{ROWS} rows of 2 layers in 1 chunks, 1 new" in said
        compile(code, format_, "exec")
        assert str(out) in code


@pytest.mark.parametrize(
    ("format_", "option"),
    [
        ("saelens", ["--n-targets", 4]),
        ("saelens", ["--first-target", 0]),
        ("llamascopium", ["--batch-size", 8]),
        ("crosslayer-coding", ["--pad-targets"]),
        ("layers", ["--seed", 0]),
        ("layers", ["--skip-first"]),
        ("samples", ["--seed", 1]),
        ("samples", ["--chunk-rows", 8]),
    ],
)
def test_options_of_the_other_formats(cli, dataset, tmp_path, format_, option):
    """A usage error, before anything is written."""
    done = cli("export", dataset, tmp_path / "out", "--format", format_, *option)
    assert done.returncode == 2
    assert f"{option[0]} cannot go with" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
