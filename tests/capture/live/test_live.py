"""Batches straight from the model are those that capture, build and reading give, bit for bit."""

import json
import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from capture import LiveActivations, live_activations, prepare_model
from capture.model.load import CaptureModel
from capture.run import capture
from capture.settings import CaptureSettings
from llava_amber_activations import KINDS, ActivationsError
from llava_amber_activations.batches.hook_batches import LayerPairs
from llava_amber_activations.vectors.finite import finite_rows


def rows_of(batches):
    """Return the rows of batches one after the other, by the names of their columns."""
    batches = list(batches)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def in_order(rows):
    """Return rows sorted by sample and position, whatever order they are in."""
    key = rows["sample"].long() * 10_000 + rows["position"]
    assert len(key.unique()) == len(key)
    order = key.argsort()
    return {name: tensor[order] for name, tensor in rows.items()}


def check_same(found, expected):
    """Check that two dictionaries of tensors are the same, bit for bit, in the same order."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def check_same_batches(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        check_same(mine, theirs)


@pytest.mark.parametrize(
    "asked",
    [
        {"layer": 1, "n_targets": 2},
        {"layer": 0},
        {"layer": 3, "n_targets": 4, "first_target": 0},
        {"layer": 2, "n_targets": 1, "x_site": "mlp_in"},
        {"layer": 1, "n_targets": 1, "drop_last": True, "epochs": 2},
        {"layer": 1, "n_targets": 1, "skip_first": True},
        {"layer": 1, "n_targets": 1, "where": {"kind": "image"}, "samples": range(2, 7)},
        {"layer": 1, "n_targets": 1, "where": {"id": [103, 106], "token_id": [4, 300]}},
        {"layer": 1, "n_targets": 1, "where": {"image": "AMBER_4.jpg"}, "positions": range(9)},
    ],
    ids=lambda asked: " ".join(f"{k}={v}" for k, v in asked.items()),
)
def test_unmixed_they_are_those_on_the_disk_in_order(live, disk, asked):
    options = {**asked, "batch_size": 40}
    check_same_batches(live.batches(**options), disk.batches(**options))


@pytest.mark.parametrize(
    "asked",
    [
        {"rows": True},
        {"layers": [3, 0], "x_site": ["resid_mid", "mlp_in"], "rows": True},
        {"layers": [1, 0], "x_site": ["resid_mid", "mlp_in"]},
        {"layers": [2], "mlp_out": False},
        {"layers": [2, 3], "x_site": [], "skip_first": True},
    ],
    ids=str,
)
def test_several_layers(live, disk, asked):
    options = {**asked, "batch_size": 40}
    check_same_batches(live.hook_batches(**options), disk.hook_batches(**options))


def test_pairs_of_layers(live, disk):
    options = {"layers": [1, 2], "names": "layers", "batch_size": 64}
    pairs = zip(live.hook_batches(**options), disk.hook_batches(**options), strict=True)
    for mine, theirs in pairs:
        assert isinstance(mine, LayerPairs)
        check_same(mine.x, theirs.x)
        check_same(mine.mlp_out, theirs.mlp_out)


@pytest.mark.parametrize("hooks", [False, True])
def test_mixed_every_row_comes_once(live, disk, hooks):
    """In another order each epoch, and the same for the same seed."""

    def batches(of, **options):
        if hooks:
            return of.hook_batches([1, 2], rows=True, batch_size=40, **options)
        return of.batches(1, 2, batch_size=40, **options)

    mixed = batches(live, shuffle=True, seed=3)
    epochs = [rows_of(mixed) for _ in range(2)]
    expected = rows_of(batches(disk))
    orders = [list(zip(e["sample"].tolist(), e["position"].tolist(), strict=True)) for e in epochs]
    assert orders[0] != orders[1] != sorted(orders[1])
    for epoch in epochs:
        check_same(in_order(epoch), expected)
    again = batches(live, shuffle=True, seed=3)
    again.set_epoch(1)
    check_same(rows_of(again), epochs[1])
    other = rows_of(batches(live, shuffle=True, seed=4))
    assert not torch.equal(other["position"], epochs[0]["position"])


def test_rows_of_chunks_are_mixed_with_one_another(make_live):
    """With a buffer for all of them: beyond the small windows of the beginning."""
    live = make_live(mix_rows=10_000, chunk_samples=1)
    rows = rows_of(live.batches(1, 1, batch_size=64, shuffle=True))
    samples = rows["sample"][-200:].split(50)
    assert all(len(some.unique()) >= 3 for some in samples)


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "last"},
        {"positions": "text", "sample_positions": 5, "seed": 7, "always": "last"},
        {"positions": "image", "x_site": "resid_pre", "store_dtype": "float16"},
        {"positions": "generated", "max_new_tokens": 2, "max_samples": 4, "logprobs": True},
    ],
    ids=str,
)
def test_options_of_a_capture(make_live, make_disk, options):
    batches = {"layer": 1, "n_targets": 2, "batch_size": 16}
    live, disk = make_live(**options), make_disk(**options)
    check_same_batches(live.batches(**batches), disk.batches(**batches))
    mixed = rows_of(live.batches(**batches, shuffle=True))
    check_same(in_order(mixed), rows_of(disk.batches(**batches)))
    live, disk = live.recipe.to_json(), disk.recipe.to_json()
    live["weights_sha256"] = disk["weights_sha256"]
    assert live == disk


def test_a_mixture_with_texts_and_answers(make_live, make_disk, image_dir, tmp_path):
    """Samples without a picture, systems' turns, given answers: which is which is said of a row."""
    pictures, texts = tmp_path / "pictures.json", tmp_path / "texts.json"
    asked = [
        {"id": n, "image": f"AMBER_{n}.jpg", "query": "Why?", "says": "No reason."}
        for n in (1, 2, 3)
    ]
    pictures.write_text(json.dumps(asked))
    texts.write_text(json.dumps([{"id": n, "query": f"Text {n}."} for n in range(4)]))
    options = {
        "dataset": (pictures, texts),
        "image_dir": (image_dir, None),
        "answer_column": ("says", None),
        "system": "Be brief.",
    }
    live, disk = make_live(**options), make_disk(**options)
    text = live.recipe.sources[1].name
    wanted = ({}, {"where": {"source": text}}, {"where": {"kind": ["answer", "system"]}})
    for some in wanted:
        batches = {"layer": 1, "n_targets": 1, "batch_size": 30, **some}
        check_same_batches(live.batches(**batches), disk.batches(**batches))
    kinds = {KINDS[code] for code in rows_of(live.batches(1, 1))["kind"].tolist()}
    assert kinds == {"text", "image", "answer", "system"}


def test_prefixes_are_shared_as_a_capture_shares_them(make_live, make_disk, two_of_each):
    options = {"dataset": two_of_each, "chunk_samples": 4, "samples_per_pass": 4}
    live, disk = make_live(**options), make_disk(**options)
    assert live.recipe.reuse_prefix and disk.recipe.reuse_prefix
    check_same_batches(live.batches(1, 2, batch_size=50), disk.batches(1, 2, batch_size=50))


def test_the_last_positions_are_counted_beforehand(make_live):
    live = make_live(positions="last")
    batches = live.batches(1, 1, batch_size=3)
    assert (batches.n_rows, batches.n_left_out, len(batches)) == (8, 0, 3)
    assert len(live.batches(1, 1, batch_size=3, drop_last=True, epochs=2)) == 4
    assert len(live.batches(1, 1, batch_size=3, where={"id": [101, 105]})) == 1
    two = live.batches(1, 1, batch_size=3, rank=1, world_size=2)
    assert len(two) == len(list(two)) == 1
    unknown = make_live().batches(1, 1, batch_size=3)
    assert unknown.n_rows is None
    with pytest.raises(TypeError, match="not known before"):
        len(unknown)


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_share_the_rows(live, disk, shuffle):
    options = {"layer": 1, "n_targets": 2, "batch_size": 32}
    ranks = [
        rows_of(live.batches(**options, shuffle=shuffle, rank=rank, world_size=2))
        for rank in range(2)
    ]
    together = {name: torch.cat([rank[name] for rank in ranks]) for name in ranks[0]}
    check_same(in_order(together), rows_of(disk.batches(**options)))


def test_more_ranks_than_chunks(live):
    with pytest.raises(ActivationsError, match=r"3 chunks .* by 4 ranks.*chunk_samples"):
        next(iter(live.batches(1, 1, rank=0, world_size=4)))


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "seed": 5}, {"drop_last": True}])
def test_a_state_goes_on_with_the_next_row(make_live, live, options):
    """After any batch, over the end of an epoch, in another process: the rest, bit for bit."""
    options = {"layer": 1, "n_targets": 1, "batch_size": 36, "epochs": 2, **options}
    whole = list(live.batches(**options))
    running = live.batches(**options)
    for number, _ in enumerate(running, start=1):
        # In the first window, in a later one, at the end of an epoch, and behind it.
        if number not in (1, 4, len(whole) // 2, len(whole) // 2 + 2):
            continue
        state = json.loads(json.dumps(running.state_dict()))
        resumed = (make_live() if number == 4 else live).batches(**options)
        resumed.load_state_dict(state)
        rest = list(resumed)
        assert len(rest) == len(whole) - number
        for mine, theirs in zip(rest, whole[number:], strict=True):
            check_same(mine, theirs)


def test_a_state_runs_its_own_window_again_and_nothing_before(make_live, monkeypatch):
    """Unmixed, that is one chunk."""
    live = make_live()
    batches = live.batches(1, 1, batch_size=30)
    expected = list(batches)
    running = iter(batches)
    skipped = [next(running) for _ in range(len(expected) - 2)]
    state = batches.state_dict()
    passes = []
    original = CaptureModel.on_device
    monkeypatch.setattr(
        CaptureModel, "on_device", lambda self, inputs: passes.append(1) or original(self, inputs)
    )
    resumed = live.batches(1, 1, batch_size=30)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(skipped) + len(rest) == len(expected)
    # The last chunk has two samples, in one pass.
    assert len(passes) == 1


def test_a_state_of_something_else_is_refused(make_live, live, disk, two_of_each):
    state = live.batches(1, 1, batch_size=30, shuffle=True).state_dict()
    for other, what in (
        (live.batches(2, 1, batch_size=30, shuffle=True), "another layer"),
        (live.batches(1, 1, batch_size=30, shuffle=True, skip_first=True), "another where"),
        (make_live(mix_rows=200).batches(1, 1, batch_size=30, shuffle=True), "another mix_rows"),
        (make_live(dataset=two_of_each).batches(1, 1, batch_size=30, shuffle=True), "dataset"),
        (disk.batches(1, 1, batch_size=30, shuffle=True), "dataset"),
    ):
        with pytest.raises(ActivationsError, match=what):
            other.load_state_dict(state)
    damaged = live.batches(1, 1, batch_size=30)
    damaged.load_state_dict({**damaged.state_dict(), "rows_done": 3, "place": [1, 2]})
    with pytest.raises(ActivationsError, match="place is 2 numbers"):
        next(iter(damaged))


def test_other_weights_are_other_rows(small_llava, make_live, live):
    """Also where a loaded model's name says nothing."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(small_llava)
    with torch.no_grad():
        next(iter(model.parameters()))[...] += 1
    processor = AutoProcessor.from_pretrained(small_llava)
    other = make_live(prepare_model(model, processor, torch.device("cpu")))
    state = live.batches(1, 1).state_dict()
    with pytest.raises(ActivationsError, match="another dataset"):
        other.batches(1, 1).load_state_dict(state)


def hooked_layers(model):
    return {
        number
        for number, layer in enumerate(model.decoder.layers)
        for module in layer.modules()
        if module._forward_hooks or module._forward_pre_hooks
    }


def test_only_what_is_asked_for_is_tapped_and_run(make_live, small_model, monkeypatch):
    """Layers by their hooks, samples by the passes."""
    live = make_live(samples_per_pass=1, chunk_samples=2)
    passes = []
    original = CaptureModel.on_device
    monkeypatch.setattr(
        CaptureModel, "on_device", lambda self, inputs: passes.append(1) or original(self, inputs)
    )
    batches = iter(live.batches(2, 1, batch_size=8, samples=[1, 6]))
    next(batches)
    assert hooked_layers(small_model) == {2, 3}
    assert len(passes) == 1
    list(batches)
    assert len(passes) == 2
    assert hooked_layers(small_model) == set()


@pytest.mark.parametrize(
    ("asked", "ran"),
    [
        ({"layers": [1]}, [0, 1]),
        ({"layers": [0], "x_site": ["resid_pre", "resid_mid", "mlp_in"]}, [0]),
        ({"layers": [0, 3]}, [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_a_pass_ends_behind_the_last_wanted_layer(live, small_model, asked, ran):
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, n=n: seen.append(n))
        for n, layer in enumerate(small_model.decoder.layers)
    ]
    try:
        next(iter(live.hook_batches(**asked, batch_size=10)))
    finally:
        for handle in handles:
            handle.remove()
    assert seen[: len(ran)] == ran and set(seen) == set(ran)


def test_two_iterations_at_once(live):
    """Of one model, and of one object: each has its own rows."""
    batches = live.batches(1, 1, batch_size=50, shuffle=True)
    alone = list(batches)
    batches.set_epoch(0)
    one = iter(batches)
    batches.set_epoch(0)
    for expected, first, second in zip(alone, one, iter(batches), strict=True):
        check_same(first, expected)
        check_same(second, expected)


@pytest.fixture
def broken(image_dir, tmp_path):
    """Pictures of which one is cut off in the middle: its header is right."""
    images = tmp_path / "images"
    shutil.copytree(image_dir, images)
    whole = (images / "AMBER_2.jpg").read_bytes()
    (images / "AMBER_2.jpg").write_bytes(whole[: len(whole) // 2])
    return images


def test_a_picture_that_cannot_be_read(make_live, broken, disk, capsys):
    with pytest.raises(ActivationsError, match=r"AMBER_2.jpg of sample 1 cannot be read"):
        list(make_live(image_dir=broken).batches(1, 1))
    live = make_live(image_dir=broken, on_error="skip", samples_per_pass=1)
    rows = rows_of(live.batches(1, 1))
    assert sorted(set(rows["sample"].tolist())) == [0, 2, 3, 4, 5, 6, 7]
    assert list(live.skipped) == [1] and "AMBER_2.jpg" in live.skipped[1]
    assert "1 samples were skipped, the first of them: the image" in capsys.readouterr().err
    with pytest.raises(ActivationsError, match="every sample was skipped: the image"):
        list(live.batches(1, 1, samples=[1]))


def test_a_value_that_is_not_finite(
    make_live, small_llava, small_model, query_file, image_dir, tmp_path
):
    """As a capture refuses it, in the same sentence."""
    options = {"positions": "all", "image_dir": image_dir, "store_dtype": "float16"}
    mlp = small_model.decoder.layers[2].mlp.down_proj
    whole = mlp.weight.detach().clone()
    try:
        with torch.no_grad():
            mlp.weight *= 1e6
        with pytest.raises(ActivationsError, match=r"mlp_out_02 of sample 0 has a value") as found:
            list(make_live(store_dtype="float16").batches(1, 2))
        list(make_live(store_dtype="float16").batches(0, 1))
        with pytest.raises(ActivationsError, match="hold numbers beyond float16"):
            list(make_live().batches(1, 2, dtype="float16"))
        small_model.whole.save_pretrained(tmp_path / "model")
        small_model.processor.save_pretrained(tmp_path / "model")
    finally:
        with torch.no_grad():
            mlp.weight.copy_(whole)
    settings = CaptureSettings(
        model=str(tmp_path / "model"), dataset=query_file, output_dir=tmp_path / "store", **options
    )
    with pytest.raises(ActivationsError) as expected:
        capture(settings, device=torch.device("cpu"))
    assert str(found.value) == str(expected.value)


def test_dtype_and_ownership(live, disk):
    """The caller's own tensors, in which gradients may flow, of the dtype that was asked for."""
    options = {"layer": 1, "n_targets": 2, "batch_size": 33, "dtype": torch.bfloat16}
    for mine, theirs in zip(live.batches(**options), disk.batches(**options), strict=True):
        check_same(mine, theirs)
    for shuffle in (False, True):
        batches = iter(live.batches(1, 2, batch_size=33, shuffle=shuffle))
        batch = next(batches)
        weight = torch.ones(64, requires_grad=True)
        (batch["x"] * weight).sum().backward()
        assert torch.equal(weight.grad, batch["x"].sum(0))
        kept = batch["x"].clone()
        for other in batches:
            other["x"].zero_()
        assert torch.equal(batch["x"], kept) and bool(finite_rows(kept).all())


def test_memory_that_runs_out_halves_the_passes(make_live, monkeypatch):
    original, tried = CaptureModel.on_device, []

    def on_device(self, inputs):
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 1:
            raise torch.OutOfMemoryError("no memory")
        return original(self, inputs)

    monkeypatch.setattr(CaptureModel, "on_device", on_device)
    halved = list(make_live(samples_per_pass=None).batches(1, 1, batch_size=40))
    assert tried == [3, *[1] * 8]
    check_same_batches(halved, make_live(samples_per_pass=1).batches(1, 1, batch_size=40))


def test_a_model_by_its_folder_and_the_thin_form(small_llava, query_file, image_dir, live):
    options = {"image_dir": image_dir, "positions": "all", "chunk_samples": 3}
    thin = live_activations(
        small_llava, query_file, 1, 2, batch_size=40, samples_per_pass=2, **options
    )
    check_same_batches(thin, live.batches(1, 2, batch_size=40))
    opened = LiveActivations(small_llava, query_file, device="cpu", **options)
    assert opened.recipe.weights_sha256 and opened.recipe.model == str(small_llava)
    assert (opened.layers, opened.n_samples) == ((0, 1, 2), 8)
    assert opened.device == torch.device("cpu")


def test_the_bytes_of_the_buffer_are_said(live):
    """Of x and two targets of 64 float32 numbers, and seven numbers of which row it is."""
    assert live.mix_bytes(3) == 100 * (3 * 64 * 4 + 7 * 4)
    assert "100 rows mixed" in repr(live)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"output_dir": "store"}, "nothing is written"),
        ({"force": True}, "nothing is written"),
        ({"layers": (1,)}, "say which layers"),
        ({"transcoders": "folder"}, "no features"),
        ({"batch_size": 4}, "samples_per_pass"),
        ({"postions": "all"}, "no option 'postions'"),
        ({"dtype": "float32"}, "loaded already, and dtype"),
        ({"device": "cpu"}, "loaded already, and device"),
        ({"mix_rows": 0}, "mix_rows must be from 1"),
        ({"samples_per_pass": 0}, "samples_per_pass must be from 1"),
        ({"chunk_samples": 0}, "chunk_samples must be from 1"),
        ({"positions": "first"}, "positions must be one of last, all"),
        ({"on_error": "go on"}, "on_error must be one of stop, skip"),
        ({"max_new_tokens": 4}, "goes with positions='generated'"),
        ({"logprobs": True}, "logprobs is of the tokens of answers"),
        ({"split": "train"}, "--split goes with"),
    ],
)
def test_options_that_do_not_go_with_batches(make_live, options, why):
    with pytest.raises(ActivationsError, match=why):
        make_live(**options)


def test_what_cannot_be_had_of_batches(live):
    for asked, why in (
        ({"layer": 3}, "layer 3 has no targets"),
        ({"layer": 1, "x_site": "elsewhere"}, "x_site must be one of"),
        ({"layer": 1, "shuffle": True, "batch_size": 51}, "less than two batches of 51 rows"),
        ({"layer": 1, "samples": [99]}, "none of the 8 samples has a row with sample"),
        ({"layer": 1, "dtype": "int8"}, "vectors cannot be int8"),
    ):
        with pytest.raises(ActivationsError, match=why):
            live.batches(**asked)
    for asked, why in (
        ({"layers": []}, "layers is empty"),
        ({"layers": [4]}, "has no layer 4"),
        ({"x_site": [], "mlp_out": False}, "nothing to tap"),
        ({"prepared": True}, "come from the running model"),
        ({"names": "layers", "x_site": ["resid_mid", "mlp_in"]}, "one x a layer"),
    ):
        with pytest.raises(ActivationsError, match=why):
            live.hook_batches(**asked)
    with pytest.raises(ActivationsError, match="none of the rows that the model gave"):
        list(live.batches(1, 1, where={"token_id": 99_999}))


def test_worker_processes_have_no_model(live):
    batches = live.batches(1, 1, batch_size=50)
    assert len(list(DataLoader(batches, batch_size=None))) == len(list(batches))
    for context in ("fork", "spawn"):
        loader = DataLoader(
            batches, batch_size=None, num_workers=1, multiprocessing_context=context
        )
        with pytest.raises(ActivationsError, match="a model that runs in this process"):
            next(iter(loader))
