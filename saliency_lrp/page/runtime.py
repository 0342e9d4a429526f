"""ONNX Runtime Web, which runs the graph in the browser: from an unpacked package, or fetched by npm.

Its licence is MIT; a note of that is written beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

PACKAGE = "onnxruntime-web"
#: the version that the page was tested with
RUNTIME_VERSION = "1.30.0"
#: file of the package -> its name in the page; ``.js``, which every server knows the type of
FILES = {
    "dist/ort.wasm.bundle.min.mjs": "ort.js",
    "dist/ort-wasm-simd-threaded.wasm": "ort.wasm",
}
NOTE = """ONNX Runtime Web {version} (ort.js, ort.wasm), from the npm package onnxruntime-web.
Copyright (c) Microsoft Corporation. Licensed under the MIT License:
https://github.com/microsoft/onnxruntime/blob/main/LICENSE
"""
HOW = (
    f"install Node.js, whose npm fetches it, or unpack the npm package {PACKAGE} yourself and name its folder by "
    "--runtime"
)


def copy_runtime(out: Path, given: str | os.PathLike[str] | None = None) -> str:
    """Put the runtime's files into a folder; return its version.

    Parameters
    ----------
    out : Path
        Where they go.
    given : path, optional
        The unpacked npm package; without it npm is asked for :data:`RUNTIME_VERSION`.

    Raises
    ------
    InputError
        Where there is neither, or the package lacks a file.
    """
    if given is not None:
        return copied(Path(given), out)
    with fetched() as package:
        return copied(package, out)


def copied(package: Path, out: Path) -> str:
    """The files that the page needs, and what licence they have."""
    package = package / "package" if (package / "package").is_dir() else package
    missing = [name for name in FILES if not (package / name).is_file()]
    if missing:
        raise InputError(f"{str(package)!r} is no unpacked npm package {PACKAGE}: it has no {missing[0]}")
    described = package / "package.json"
    version = json.loads(described.read_bytes()).get("version", "") if described.is_file() else ""
    for name, to in FILES.items():
        shutil.copyfile(package / name, out / to)
    (out / "ort.LICENSE.txt").write_text(NOTE.format(version=version), encoding="utf-8")
    return version


@contextmanager
def fetched() -> Iterator[Path]:
    """The package as npm packs it, unpacked into a folder that is removed afterwards."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"the page needs {PACKAGE}, and there is no npm here to fetch it: {HOW}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{PACKAGE}@{RUNTIME_VERSION}", "--silent", "--pack-destination", folder]
        made = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        found = sorted(Path(folder).glob("*.tgz"))
        if made.returncode or not found:
            said = " ".join((made.stderr or made.stdout).split())[:300]
            raise InputError(f"npm could not fetch {PACKAGE}@{RUNTIME_VERSION} ({said}): {HOW}")
        with tarfile.open(found[0]) as packed:
            members = [m for m in packed.getmembers() if m.name.removeprefix("package/") in {*FILES, "package.json"}]
            packed.extractall(folder, members=members, filter="data")
        yield Path(folder) / "package"
