"""The other projects, and an environment of exactly pinned versions for each.

torch is installed first, as its own build for this machine asks for; then every other package by
itself, so that nothing can choose another torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CONSTRAINTS = Path(__file__).parent / "constraints"
_HEAD = """\
# What `make interop PEER={name}` installs, with Python 3.11: every package, as it was installed.
# Made by `python tests/interop/run.py --lock {name}`; what torch's own build asks for is not here.
"""
_OF_TORCH = re.compile(r"(nvidia-|cuda-|triton)", re.IGNORECASE)


@dataclass(frozen=True)
class Peer:
    """Another project.

    Attributes:
        name: as `make interop PEER=` and, where there is one, `export --format` have it.
        requires: what is asked for when its versions are pinned anew.
        without: what that asks for and it can do without.
        exports: whether it reads an export; otherwise the data set itself.
        variable: of the environment, with a folder or a URL of it; None where pip knows its name.
    """

    name: str
    requires: tuple[str, ...]
    without: tuple[str, ...] = ()
    exports: bool = True
    variable: str | None = None

    @property
    def script(self) -> Path:
        """What is run in its environment."""
        return Path(__file__).with_name(f"try_{self.name.replace('-', '_')}.py")

    @property
    def constraints(self) -> Path:
        """Its pinned versions."""
        return CONSTRAINTS / f"{self.name}.txt"

    @property
    def source(self) -> str | None:
        """The folder or the URL that its variable says."""
        return os.environ.get(self.variable) if self.variable else None


# What crosslayer-coding imports; its own list asks for torchvision and torchaudio, too.
_OF_CROSSLAYER_CODING = ("numpy", "h5py", "requests", "tqdm", "transformers", "datasets")
_OF_CROSSLAYER_CODING += ("safetensors", "wandb", "psutil", "nnsight", "zstandard")
PEERS = (
    Peer("saelens", ("sae-lens==6.54.*", "transformer-lens<4")),
    Peer("llamascopium", ("llamascopium==2.0.0b34", "transformer-lens<4")),
    Peer("crosslayer-coding", _OF_CROSSLAYER_CODING, variable="CROSSLAYER_CODING"),
    # A torchvision for CUDA beside a torch for CPUs cannot be imported.
    Peer("dictionary-learning", ("dictionary-learning==0.1.0",), ("torchvision",), exports=False),
)


def environment_of(peer: Peer, folder: Path) -> Path:
    """Make a peer's environment, unless it is there; return its Python.

    Raises:
        SystemExit: pip failed.
    """
    python = folder / "bin" / "python"
    source = peer.source if peer.source and not Path(peer.source).is_dir() else None
    pins = peer.constraints.read_text(encoding="utf-8")
    made_of = hashlib.sha256(f"{sys.version_info[:2]} {source} {pins}".encode()).hexdigest()
    stamp = folder / ".made-of"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == made_of:
        return python
    print(f"{peer.name}: making {folder}", flush=True)
    _run(sys.executable, "-m", "venv", "--clear", folder)
    _pip(python, "install", _torch(pins))
    _pip(python, "install", "--no-deps", "--requirement", peer.constraints)
    if source:
        _pip(python, "install", "--no-deps", source)
    stamp.write_text(made_of, encoding="utf-8")
    return python


def lock(peer: Peer, folder: Path) -> None:
    """Pin what a peer asks for today, with the torch that is pinned already."""
    torch = _torch(peer.constraints.read_text(encoding="utf-8"))
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "venv", "--clear", folder)
    _pip(python, "install", torch)
    _pip(python, "install", torch, *peer.requires)
    lines = _pip(python, "freeze").splitlines()
    pins = [re.sub(r"\+\w+$", "", line) for line in lines if not _OF_TORCH.match(line)]
    kept = [line for line in pins if line.partition("==")[0] not in peer.without]
    text = "\n".join([*_HEAD.format(name=peer.name).splitlines(), *kept, ""])
    peer.constraints.write_text(text, encoding="utf-8")


def _torch(pins: str) -> str:
    return next(line for line in pins.splitlines() if line.startswith("torch=="))


def _pip(python: Path, *arguments: object) -> str:
    return _run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout
