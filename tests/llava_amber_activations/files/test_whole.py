"""Files appear whole or not at all, readable to those whom the umask lets read them."""

import hashlib
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_amber_activations import ActivationsError
from llava_amber_activations.files.checksums import sha256_of
from llava_amber_activations.files.whole import write_json, write_text, written_whole


def test_a_file_appears_when_it_is_whole(tmp_path):
    """Until the block ends there is only the hidden partial file; then only the file."""
    path = tmp_path / "new" / "folder" / "file"
    with written_whole(path) as partial:
        partial.write_text("whole")
        assert not path.exists() and partial.parent == path.parent
        assert partial.name.startswith(".") and partial.name.endswith(".partial")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_earlier_file(tmp_path, error):
    """Whatever ended the writing, an interruption among them; nothing else is left behind."""
    path = tmp_path / "file"
    path.write_text("earlier")
    with pytest.raises(error), written_whole(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "file") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_wrote_nothing(tmp_path):
    """A block that ends without a file is an error, and the earlier file stays."""
    path = tmp_path / "file"
    path.write_text("earlier")
    refused = pytest.raises(ActivationsError, match=r"file cannot be written .*taken away")
    with refused, written_whole(path):
        pass
    assert path.read_text() == "earlier"


def test_what_a_killed_writer_left_is_replaced(tmp_path):
    path = tmp_path / "file"
    (tmp_path / ".file.partial").write_text("much longer than what comes now")
    with written_whole(path) as partial:
        partial.write_text("now")
    assert path.read_text() == "now"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_meet(tmp_path):
    """Two that write the same file at once have a partial each; the last one to finish stays."""
    path = tmp_path / "file"
    with written_whole(path) as first:
        first.write_text("of the first")
        with written_whole(path) as second:
            second.write_text("of the second")
        assert path.read_text() == "of the second" and first.read_text() == "of the first"
    assert path.read_text() == "of the first"
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_name_that_a_file_may_have(tmp_path):
    """The partial is named by the beginning of it, across characters of several bytes."""
    for name in ("n" * 255, "é" * 127):
        write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"
    with pytest.raises(ActivationsError, match=r"n{256} cannot be written \(.*name too long"):
        write_text(tmp_path / ("n" * 256), "whole")
    assert len(list(tmp_path.iterdir())) == 2


def test_an_open_file_keeps_what_it_was(tmp_path):
    """A reader of the earlier file reads it to its end, and the next reader the new one."""
    path = tmp_path / "file"
    write_text(path, "earlier")
    with path.open() as reader:
        write_text(path, "later")
        assert reader.read() == "earlier"
    assert path.read_text() == "later"


@pytest.mark.parametrize("mask", ["022", "027", "077"])
def test_permissions_are_the_umasks(tmp_path, mask):
    """A private partial file becomes as readable as any file that the user makes."""
    program = """if True:
        import os, sys
        from pathlib import Path
        os.umask(int(sys.argv[2], 8))
        from llava_amber_activations.files.whole import written_whole
        with written_whole(Path(sys.argv[1])) as partial:
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
        """
    path = tmp_path / "file"
    subprocess.run([sys.executable, "-c", program, path, mask], check=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~int(mask, 8)


def test_reading_the_umask_leaves_it():
    """Importing the package does not change what the process's other files may be read by."""
    program = (
        "import os; os.umask(0o026); import llava_amber_activations.files.whole; "
        "print(oct(os.umask(0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0o26\n"


def test_json_and_text_are_utf_8(tmp_path):
    write_json(tmp_path / "a.json", {"query": "Où est l’image ?", "n": [1, None]})
    expected = '{\n  "query": "Où est l’image ?",\n  "n": [\n    1,\n    null\n  ]\n}\n'
    assert (tmp_path / "a.json").read_bytes() == expected.encode("utf-8")
    write_json(tmp_path / "b", {"n": [1, -20, 3], "m": [[4], []], "text": "[\n 1,\n 2\n]"})
    expected = '{\n  "n": [1, -20, 3],\n  "m": [\n    [4],\n    []\n  ],\n'
    expected += '  "text": "[\\n 1,\\n 2\\n]"\n}\n'
    assert (tmp_path / "b").read_text() == expected
    write_text(tmp_path / "b", "a\nb…")
    assert (tmp_path / "b").read_bytes() == "a\nb…".encode()


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_checksums(tmp_path, size):
    """Across the size of the blocks that are read."""
    content = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()


@given(st.binary(max_size=99))
def test_checksums_of_anything(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / f"any-{os.getpid()}"
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()
