"""The README's sections on reading, the Hub and `.pt` files, run as printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def blocks_of(section):
    """The bash and Python blocks of a section, in order, each with what it is said to print."""
    text = README.read_text(encoding="utf-8")
    body = re.search(rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert body, f"the README has no section {section}"
    block = r"^```(bash|python)\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?"
    return re.findall(block, body[1], re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("section", ["Read", "The Hub", "To `.pt` and back"])
def test_section(hub, narrow_dataset, tmp_path, section):
    """Every block ends without an error, in a folder that holds `dataset` and nothing else.

    What the README says that a block prints, it prints.
    """
    shutil.copytree(narrow_dataset, tmp_path / "dataset")
    check_blocks(section, tmp_path)


def test_without_a_disk(tiny_llava, query_file, image_dir, tmp_path):
    """Where a tiny model, its queries and pictures lie by the names that the README gives."""
    shutil.copytree(tiny_llava, tmp_path / "llava-hf" / "llava-1.5-7b-hf")
    shutil.copytree(image_dir, tmp_path / "AMBER" / "image")
    shutil.copy(query_file, tmp_path / "query_generative.json")
    check_blocks("Without a disk", tmp_path)


def check_blocks(section, folder):
    """Run a section's blocks in a folder."""
    blocks = blocks_of(section)
    assert blocks
    bin_folder = Path(sys.executable).parent
    for language, block, printed in blocks:
        runner = {"bash": ["bash", "-e"], "python": [sys.executable]}[language]
        result = subprocess.run(
            runner,
            input=block,
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env={**os.environ, "PATH": f"{bin_folder}:/usr/bin:/bin"},
            timeout=300,
        )
        assert result.returncode == 0, f"{block}\n{result.stderr}"
        if printed:
            assert result.stdout.strip() == printed.strip(), block


def test_links_lead_somewhere():
    """Every file that the README links to, or shows, is in the repository."""
    links = re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (README.parent / link).exists()] == []
