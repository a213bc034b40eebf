"""A Hub that fails in every way: the right values, or one sentence that names the repo."""

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, constants
from loopback_hub import DEFAULT_TOKEN, Faults
from manifests import seal
from random_store import make_random_store, read_vectors

from builder.build import build
from builder.export import export
from builder.info import info
from builder.push import push
from llava_amber_activations import (
    ActivationsError,
    activation_batches,
    load_activations,
    load_statistics,
    open_layer,
)

ROWS, WIDTH, LAYER = 120, 16, 11
# What the Hub's client waits for an answer; ours is stalled longer.
TIMEOUT, STALLED = 1, 2.5

KINDS = {
    "503": {"every_503": 3, "retry_after": 0},
    "503, for ever": {"every_503": 1, "retry_after": 0},
    "429 with Retry-After": {"every_429": 3, "retry_after": 1},
    "connections reset": {"reset_every": 3},
    "bodies cut": {"cut_every": 2},
    "bodies stalled": {"stall_every": 4, "stalled": STALLED},
    "bodies of another length": {"short_every": 3},
    "bodies of another length, always": {"short_every": 1},
    "a circle of redirects": {"loop_every": 4},
    "all of them": {
        "every_503": 7,
        "every_429": 11,
        "retry_after": 0,
        "reset_every": 13,
        "cut_every": 5,
        "stall_every": 17,
        "stalled": STALLED,
        "short_every": 9,
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_random_store(tmp_path_factory.mktemp("hub") / "store", ROWS, WIDTH)


@pytest.fixture(scope="module")
def dataset(store):
    """Dataset folder of several shards."""
    build(store, store.with_name("dataset"), configs=["all_layers"], max_shard_size="100kB")
    return store.with_name("dataset")


@pytest.fixture(scope="module")
def negative(store):
    """The same, every value with the other sign, in one shard."""
    other = make_random_store(store.with_name("other"), ROWS, WIDTH, scale=-1)
    build(other, store.with_name("negative"), configs=["all_layers"])
    return store.with_name("negative")


@pytest.fixture(scope="module")
def vectors(store):
    return read_vectors(store)


@pytest.fixture
def fresh(hub, monkeypatch, tmp_path):
    """Function that makes a repo's files be asked for anew: another commit, an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", TIMEOUT)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", TIMEOUT)
    number = 0

    def fresh(repo_id):
        nonlocal number
        number += 1
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache-{number}"))
        lines = [
            {"key": "header", "value": {"summary": "again"}},
            {"key": "file", "value": {"path": "AGAIN", "content": str(number)}},
        ]
        hub.store.push(hub.repo(repo_id), "main", lines)
        return tmp_path / f"scratch-{number}"

    return fresh


def x_of(layer):
    return torch.cat([batch["x"] for batch in activation_batches(layer, batch_size=32)]).numpy()


def ways_of_reading(repo_id, vectors, scratch):
    """Functions that read a repo and say whether what came is right."""
    x = vectors[f"x_{LAYER:02d}"]
    prepared = {"cache_dir": scratch / "prepared"}
    opened = {
        "open_layer": lambda: open_layer(repo_id, LAYER, 2),
        "streaming": lambda: load_activations(repo_id, LAYER, 2, streaming=True),
        "prepared": lambda: load_activations(repo_id, LAYER, 2, **prepared),
    }

    def exported():
        export(repo_id, scratch / "pt", layout="samples", layers=str(LAYER))
        files = sorted((scratch / "pt").glob("*.pt"))
        values = [torch.load(file, weights_only=True)["activations"][LAYER] for file in files]
        return np.array_equal(torch.stack(values).numpy(), x)

    def statistics():
        mean = load_statistics(repo_id).x_mean[LAYER].numpy()
        return np.allclose(mean, x.astype(np.float64).mean(axis=0), atol=1e-6)

    return {
        **{way: lambda way=way: np.array_equal(x_of(opened[way]()), x) for way in opened},
        "export": exported,
        "statistics": statistics,
        "info": lambda: dict(info(repo_id))["rows"] == str(ROWS),
    }


def judged(attempt, repo_id):
    """Return "right", "refused" (a sentence that names the repo), or what else it ended in."""
    try:
        return "right" if attempt() else "wrong values"
    except ActivationsError as error:
        sentence = str(error)
        named = repo_id in sentence and "\n" not in sentence
        return "refused" if named else f"a sentence without the repo's name: {sentence}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def count(tally, line, ends):
    """Put how attempts ended into the table, and fail where one ended in another way."""
    right, refused = ends.count("right"), ends.count("refused")
    wrong = len(ends) - right - refused
    tally(line, tried=len(ends), right=right, refused=refused, wrong=wrong)
    assert not wrong, sorted(set(ends) - {"right", "refused"})


@pytest.mark.parametrize("kind", KINDS)
def test_reading(hub, dataset, vectors, fresh, campaign, tally, kind):
    """Every way of reading, under every kind of fault, from a request drawn at random on."""
    repo_id = "lab/hardened"
    if ("dataset", repo_id) not in hub.store.repos:
        push(dataset, repo_id, token=DEFAULT_TOKEN)
    draw = random.Random(f"{campaign.seed} {kind}")
    ends = []
    names = list(ways_of_reading(repo_id, vectors, Path()))
    drawn = [draw.choice(names) for _ in range(campaign.of(small=0, full=24))]
    for way in [*draw.sample(names, campaign.of(small=3, full=len(names))), *drawn]:
        scratch = fresh(repo_id)
        times = None if "for ever" in kind or "always" in kind else draw.randint(1, 6)
        after = draw.randint(0, 6)
        hub.faults = Faults(**KINDS[kind], after=after, times=times, only=is_asked_to_read)
        ends.append(judged(ways_of_reading(repo_id, vectors, scratch)[way], repo_id))
    hub.faults = Faults()
    count(tally, f"Hub: {kind}", ends)


def is_asked_to_read(call):
    # The client asks for listings without a limit of time: a stall there is its own matter.
    return call.kind == "resolve" or call.path.startswith("/api/datasets/")


@pytest.mark.parametrize("kind", ["503", "429 with Retry-After", "connections reset"])
def test_pushing(hub, dataset, negative, campaign, tally, kind):
    """A push that is disturbed is whole, or not there; the same command finishes it."""
    repo_id = f"lab/pushed-{len(kind)}"
    draw = random.Random(f"{campaign.seed} pushing {kind}")
    push(dataset, repo_id, token=DEFAULT_TOKEN)
    ends = []
    for number in range(campaign.of(small=2, full=12)):
        folder = (negative, dataset)[number % 2]
        before = hub.repo(repo_id).commit().oid
        hub.faults = Faults(**KINDS[kind], lose_answer=draw.randint(3, 9), times=draw.randint(1, 8))

        def attempt(folder=folder, before=before):
            try:
                push(folder, repo_id, token=DEFAULT_TOKEN)
            except ActivationsError:
                assert hub.repo(repo_id).commit().oid == before or holds(hub, repo_id, folder)
                raise
            return holds(hub, repo_id, folder)

        ends.append(judged(attempt, repo_id))
        hub.faults = Faults()
        found = push(folder, repo_id, token=DEFAULT_TOKEN)
        assert holds(hub, repo_id, folder)
        assert hub.repo(repo_id).tags == {found.tag: found.commit}
    count(tally, f"Hub, pushing: {kind}", ends)


def holds(hub, repo_id, folder):
    """Whether a repo's main branch holds a folder, byte for byte but for card and manifest."""
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return set(hub.repo(repo_id).commit().files) - {".gitattributes"} == files and all(
        hub.read(repo_id, path) == (folder / path).read_bytes()
        for path in files - {"README.md", "manifest.json"}
    )


def test_gone_for_ten_seconds(hub, dataset, vectors, fresh, tally):
    """In the middle of a stream: it goes on where it was."""
    repo_id = "lab/gone-for-a-while"
    push(dataset, repo_id, token=DEFAULT_TOKEN)
    fresh(repo_id)
    batches = iter(activation_batches(open_layer(repo_id, LAYER, 2), batch_size=16))
    first = [next(batches)["x"]]
    hub.stop()
    back = threading.Timer(10, hub.start)
    back.start()

    def rest():
        x = torch.cat([*first, *(batch["x"] for batch in batches)]).numpy()
        return np.array_equal(x, vectors[f"x_{LAYER:02d}"])

    try:
        end = judged(rest, repo_id)
    finally:
        back.join()
    count(tally, "Hub: gone for ten seconds in mid-stream", [end])


@pytest.mark.parametrize("what", ["moved", "deleted"])
def test_a_repo_that_changes_in_mid_stream(hub, dataset, negative, vectors, fresh, tally, what):
    """A stream is of one commit: its rest, or a sentence, and never rows of another one."""
    repo_id = f"lab/{what}"
    push(dataset, repo_id, token=DEFAULT_TOKEN)
    ends = []
    for way in ("open_layer", "streaming"):
        fresh(repo_id)
        opened = {
            "open_layer": lambda: open_layer(repo_id, LAYER, 2),
            "streaming": lambda: load_activations(repo_id, LAYER, 2, streaming=True),
        }[way]()
        batches = iter(activation_batches(opened, batch_size=16))
        first = [next(batches)["x"]]
        kept = hub.store.repos["dataset", repo_id]
        if what == "moved":
            push(negative, repo_id, token=DEFAULT_TOKEN)
        else:
            del hub.store.repos["dataset", repo_id]

        def rest(batches=batches, first=first):
            x = torch.cat([*first, *(batch["x"] for batch in batches)]).numpy()
            return np.array_equal(x, vectors[f"x_{LAYER:02d}"])

        ends.append(judged(rest, repo_id))
        hub.store.repos["dataset", repo_id] = kept
        if what == "moved":
            push(dataset, repo_id, token=DEFAULT_TOKEN)
    count(tally, f"Hub: repo {what} in mid-stream", ends)
    assert what == "deleted" or ends == ["right"] * 2


@pytest.mark.parametrize(
    "path", ["../outside.parquet", "/etc/passwd", "all_layers/../../x", "C:\\x", "a//b", "a\0b"]
)
def test_a_manifest_that_names_what_is_outside(hub, dataset, vectors, fresh, tally, path):
    """Refused before anything of it is asked for."""
    repo_id = "lab/outside"
    if ("dataset", repo_id) not in hub.store.repos:
        push(dataset, repo_id, token=DEFAULT_TOKEN)
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["files"][path] = next(iter(manifest["files"].values()))
    manifest["self_sha256"] = seal(manifest)
    scratch = fresh(repo_id)
    content = {"path": "manifest.json", "content": json.dumps(manifest)}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": content}]
    hub.store.push(hub.repo(repo_id), "main", lines)
    hub.reset_counts()
    ends = [judged(read, repo_id) for read in ways_of_reading(repo_id, vectors, scratch).values()]
    assert ends == ["refused"] * len(ends)
    assert set(hub.file_counts()) == {"manifest.json"}
    count(tally, "Hub: a manifest that names paths outside the repo", ends)


READER = """
import json, sys
import torch
from torch.utils.data import DataLoader
from llava_amber_activations import *

if __name__ == "__main__":
    repo_id, layer, tag, times = sys.argv[1:]
    for _ in range(int(times)):
        try:
            stream = open_layer(repo_id, int(layer), 2, revision=tag or None)
            batches = activation_batches(stream, batch_size=16)
            loader = DataLoader(
                batches, batch_size=None, num_workers=2, multiprocessing_context="spawn"
            )
            rows = {}
            for batch in loader:
                for sample, x in zip(batch["sample"].tolist(), batch["x"]):
                    rows[sample] = x.tolist()
            print(json.dumps([rows[sample] for sample in sorted(rows)]), flush=True)
        except ActivationsError as error:
            print(json.dumps(str(error)), flush=True)
"""


def test_two_readers_during_a_push(hub, dataset, negative, vectors, campaign, tally, tmp_path):
    """Two processes with two workers each, one by the tag: the old or the new, never a mixture."""
    repo_id = "lab/read-while-pushed"
    tag = push(dataset, repo_id, token=DEFAULT_TOKEN).tag
    (tmp_path / "reader.py").write_text(READER)
    times = campaign.of(small=1, full=8)
    # Files, for a pipe that nobody reads meanwhile would stop the readers when it is full.
    outputs = [tmp_path / f"rows-{number}.jsonl" for number in range(2)]
    readers = [
        subprocess.Popen(
            [sys.executable, tmp_path / "reader.py", repo_id, str(LAYER), revision, str(times)],
            env={**hub.client_env(tmp_path / f"home-{number}"), "PYTHONPATH": ":".join(sys.path)},
            stdout=outputs[number].open("wb"),
        )
        for number, revision in enumerate(("", tag))
    ]
    pushes = 0
    while any(reader.poll() is None for reader in readers):
        push((negative, dataset)[pushes % 2], repo_id, token=DEFAULT_TOKEN)
        pushes += 1
        if pushes > 500:
            raise AssertionError("the readers do not end")
        # Both are read by everybody now and then.
        time.sleep(0.3)
    x = vectors[f"x_{LAYER:02d}"]
    ends, seen = [], set()
    for output in outputs:
        lines = output.read_text().splitlines()
        assert len(lines) == times
        for line in lines:
            found = json.loads(line)
            if isinstance(found, str):
                ends.append("refused" if repo_id in found else found)
                continue
            rows = np.array(found, dtype=np.float16)
            which = [sign for sign in (1, -1) if np.array_equal(rows, sign * x)]
            seen.update(which)
            ends.append("right" if which else "a mixture")
    assert pushes > 1
    count(tally, "Hub: two readers with two workers each, during pushes", ends)
    assert "refused" not in ends, ends


def test_the_token_is_nowhere(hub, dataset, fresh, tally, tmp_path):
    """Not in a file, a sentence, the output or the repo, whatever the push runs into."""
    token = "hf_theTokenOfThisCampaign"
    tokens, hub.tokens = hub.tokens, hub.tokens | {token}
    environment = {
        **hub.client_env(tmp_path / "home", token=None),
        "HF_DEBUG": "1",
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
    }
    ends = []
    try:
        for number, options in enumerate(({}, {"down": True, "retry_after": 0}, {"loop_every": 3})):
            hub.faults = Faults(**options)
            by_option = ["--token", token] if number % 2 else []
            result = subprocess.run(
                [
                    *(sys.executable, "-m", "llava_amber_activations", "push", str(dataset)),
                    *("--repo-id", f"lab/token-{number}", *by_option),
                ],
                env=environment if by_option else {**environment, "HF_TOKEN": token},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            said = result.stdout + result.stderr
            files = [path for path in tmp_path.rglob("*") if path.is_file()]
            found = [path for path in files if token.encode() in path.read_bytes()]
            assert "Traceback" not in said, said[-2000:]
            if token in said or found:
                ends.append(f"the token is in {found or 'the output'}")
            else:
                ends.append("refused" if result.returncode else "right")
    finally:
        hub.tokens = tokens
        hub.faults = Faults()
    for path in HfApi(token=DEFAULT_TOKEN).list_repo_files("lab/token-0", repo_type="dataset"):
        assert token.encode() not in hub.read("lab/token-0", path)
    count(tally, "Hub: the token looked for everywhere", ends)
    assert ends[0] == "right"
