"""The site that `make docs` builds: strict, whole, and nothing of it from another place."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import command_line
import docstrings
import griffe
import pytest
import typer.main

from llava_amber_activations.cli.app import assemble

ROOT = Path(__file__).parents[2]


def build_site(site, config="mkdocs.yml"):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", config, "--site-dir", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "default"},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    result = build_site(folder)
    assert result.returncode == 0, result.stderr
    return folder


class _Fetched(HTMLParser):
    """Collects what a browser fetches by itself when it shows a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        address = attributes.get("href" if tag == "link" else "src")
        if address and attributes.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(address)


def test_nothing_is_fetched_from_another_place(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 5
    for page in pages:
        parser = _Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.found, page
        for address in parser.found:
            if address.startswith("data:"):
                continue
            target = address.partition("?")[0].partition("#")[0]
            assert "//" not in address, f"{page.name} fetches {address}"
            assert page.name == "404.html" or (page.parent / target).exists(), (
                f"{page.name}: {target}"
            )


def test_every_command_and_option_is_in_the_reference(site):
    page = (site / "command-line.html").read_text(encoding="utf-8")
    root = typer.main.get_command(assemble())
    shown = {name: command for name, command in root.commands.items() if not command.hidden}
    assert {"capture", "build", "verify", "info", "push", "export", "import", "demo"} <= set(shown)
    text = command_line.reference()
    sections = {
        section.partition("\n")[0]: section for section in text.split("\n## llava-amber ")[1:]
    }
    assert set(sections) == set(shown)
    context = root.make_context("llava-amber", [], resilient_parsing=True)
    for name, command in shown.items():
        assert f'id="llava-amber-{name}"' in page
        for parameter in command.get_params(context):
            if "--help" in parameter.opts:
                continue
            # Older releases of typer name an argument in capitals.
            names = [*parameter.opts, *parameter.secondary_opts]
            assert all(each.lower() in sections[name].lower() for each in names), (name, names)


def test_an_option_says_its_help_and_its_default():
    """Of one command that is made here, so that the whole line is known."""

    def command(
        number: int = typer.Option(3, min=1, help="How many_things, in `a_b` <here>; a|b."),
    ) -> None:
        """Do it."""

    app = typer.Typer(add_completion=False)
    app.command("do")(command)
    app.command("other", hidden=True)(lambda: None)
    text = command_line.reference_of(app)
    assert "## llava-amber do\n" in text and "Do it." in text and "other" not in text
    line = next(line for line in text.splitlines() if line.startswith("| `--number"))
    assert r"How many\_things, in `a_b` &lt;here&gt;; a\|b." in line
    assert "default: 3" in line and "x&gt;=1" in line


def test_names_without_a_docstring_are_found(tmp_path):
    (tmp_path / "bare.py").write_text(
        '"""A module."""\n'
        '__all__ = ["Whole", "bare", "told"]\n'
        "def bare(): ...\n"
        'def told():\n    """Told."""\n'
        "def _private(): ...\n"
        'class Whole:\n    """Whole."""\n'
        "    field: int = 0\n"
        "    def method(self): ...\n"
        "    @property\n    def value(self): ...\n"
        "    def _private(self): ...\n"
    )
    package = griffe.load("bare", search_paths=[str(tmp_path)])
    assert sorted(docstrings.undocumented(package)) == [
        "bare.Whole.method",
        "bare.Whole.value",
        "bare.bare",
    ]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("[there](nowhere.md)", "nowhere.md"),
        ("[there](index.md#nowhere)", "nowhere"),
        ("::: llava_amber_activations.nowhere", "nowhere"),
        ('--8<-- "nowhere.py"', "nowhere.py"),
    ],
)
def test_what_is_broken_fails(tmp_path, page, says):
    """A site of one page with the settings of ours."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{page}\n", encoding="utf-8")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nnav: []\nhooks: []\nexclude_docs: ''\n",
        encoding="utf-8",
    )
    result = build_site(tmp_path / "site", str(config))
    assert result.returncode != 0
    assert says in result.stderr
