"""`make interop` is run by hand: that it could be, without any of the other projects."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch
from random_store import make_random_store

from builder.asked.handover_asked import HANDOVERS, HandoverAsked
from builder.build import build
from builder.handover.hand_over import hand_over

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
EXAMPLES = REPOSITORY / "docs" / "examples"
PIN = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.]+")
# The project that the code of a format is about, as Python imports it.
MODULES = {"saelens": "sae_lens", "llamascopium": "llamascopium", "crosslayer-coding": "clt"}


@pytest.fixture(scope="module")
def interop():
    """The modules of this folder, as `run.py` finds them."""
    sys.path.insert(0, str(HERE))
    try:
        import checks
        import environments

        yield {"checks": checks, "environments": environments}
    finally:
        sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Function that exports 200 random rows of two layers in a format: the folder, the code."""
    root = tmp_path_factory.mktemp("in_step")
    build(make_random_store(root / "store", 200, 64), root / "dataset", configs=["all_layers"])

    def export(format_):
        out = root / format_
        result = hand_over(root / "dataset", out, HandoverAsked(format_, "3,4", chunk_rows=60))
        return out, result.code

    return export


def test_every_format_has_a_peer(interop):
    peers = {peer.name: peer for peer in interop["environments"].PEERS}
    assert {name for name, peer in peers.items() if peer.exports} == set(HANDOVERS) == set(MODULES)
    for peer in peers.values():
        compile(peer.script.read_text(encoding="utf-8"), peer.script.name, "exec")
    scripts = {peer.script.name for peer in peers.values()}
    assert {path.name for path in HERE.glob("try_*.py")} == scripts


def test_every_version_is_pinned(interop):
    """That of torch is the Makefile's, those of the peers are the docs'."""
    [torch_version] = re.findall(r"^TORCH := (\S+)$", (REPOSITORY / "Makefile").read_text(), re.M)
    page = (REPOSITORY / "docs" / "trainers.md").read_text(encoding="utf-8")
    for peer in interop["environments"].PEERS:
        lines = peer.constraints.read_text(encoding="utf-8").splitlines()
        pins = dict(line.split("==") for line in lines if not line.startswith("#"))
        assert all(PIN.fullmatch(line) for line in lines if not line.startswith("#"))
        assert pins["torch"] == torch_version
        asked = [re.match(r"[\w-]+", each)[0] for each in peer.requires]
        assert set(asked) <= pins.keys()
        if peer.variable is None:
            assert pins[asked[0]] in page


@pytest.mark.parametrize("format_", HANDOVERS)
def test_the_printed_code(exported, format_):
    """Is Python, imports that trainer, names the export, and the hooks that lie there."""
    out, code = exported(format_)
    tree = ast.parse(code)
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    tops = {name.partition(".")[0] for name in imported}
    assert MODULES[format_] in tops
    assert tops <= {"torch", "datasets", MODULES[format_]}
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    paths = {text for text in texts if text.startswith("/")}
    assert paths == {str(out)}
    if format_ == "llamascopium":
        names = {}
        lists = [node for node in tree.body if isinstance(node, ast.Assign)][:2]
        exec(compile(ast.Module(lists, []), format_, "exec"), names)
        hooks = names["hooks_in"] + names["hooks_out"]
        assert {path.name for path in out.glob("blocks.*")} == set(hooks) and len(hooks) == 4
    if format_ == "saelens":
        assert "blocks.3.hook_resid_mid" in texts


def test_what_try_saelens_replaces(exported):
    """It trains from SAELens' own store by what is printed, with another provider."""
    _, code = exported("saelens")
    script = (HERE / "try_saelens.py").read_text(encoding="utf-8")
    [replaced] = re.findall(r'partition\("(.*)"\)', script)
    assert code.count(replaced) == 1
    assert re.search(r"^hook, batch_size = ", code, re.M)


def test_the_examples_are_run(interop):
    """By the peers' scripts, under the names that they have."""
    run = {
        name
        for peer in interop["environments"].PEERS
        for name in re.findall(
            r"run_example\(\s*repository, \"(\w+\.py)\"", peer.script.read_text()
        )
    }
    assert run == {"saelens_sae.py", "llamascopium_clt.py"}
    for name in run:
        compile((EXAMPLES / name).read_text(encoding="utf-8"), name, "exec")


def test_checks_fail_where_something_is_wrong(interop, capsys):
    checks = interop["checks"]
    zeros = torch.zeros(2, 3, dtype=torch.float16)
    checks.check_same_bits(zeros, zeros.clone(), "x")
    other = zeros.clone()
    other[1, 2] = -0.0
    for found in (other, zeros.float(), zeros[:1]):
        with pytest.raises(SystemExit, match="x is not what the data set holds"):
            checks.check_same_bits(found, zeros, "x")
    expected = checks.Expected({}, torch.zeros(4), torch.tensor([0, 1, 2, 3]), {})
    checks.check_each_row_once([3, 1, 2], expected, "it", most_left_out=0)
    for rows, says in (
        ([1, 1, 2], "twice"),
        ([0, 1, 2], "a first position"),
        ([1, 2], "1 rows are missing"),
    ):
        with pytest.raises(SystemExit, match=says):
            checks.check_each_row_once(rows, expected, "it", most_left_out=0)
    losses = checks.numbers_after("loss: 4.0\rloss: 4.0\rloss: 2.5 x, gloss: 1", "loss: ")
    assert losses == [4.0, 2.5]
    checks.check_falls(losses, "it", to=0.9)
    for losses, says in (([2.0], "no loss"), ([2.0, 1.9], "to 1.9"), ([1.0, 2.0], "to 2")):
        with pytest.raises(SystemExit, match=says):
            checks.check_falls(losses, "it", to=0.9)
    with pytest.raises(SystemExit, match="from 4 to nan"):
        checks.check_falls(checks.numbers_after("loss: 4.0\rloss: nan", "loss: "), "it", to=0.9)
    said = "explained by layer_1 of 5 samples held out: 0.250 of x\n"
    checks.check_explains(said, 0.2)
    for text, says in (("", "no held-out sample"), (said, "only 0.25")):
        with pytest.raises(SystemExit, match=says):
            checks.check_explains(text, 0.3)
    assert "the loss fell from 4 to 2.5" in capsys.readouterr().out
