"""What every golden script shares: pinned versions, a reproducible setting, and a writer of safetensors files.

A script calls `run(main, crate, name, libraries)`. `main` returns the tensors as a dict from name to numpy array;
they go to `DIR/<crate>/tests/golden/<name>.safetensors`, where DIR is `--out` or the repository root. Texts go to
`<name>.json` by `run_json`.

The file is written here and not by the safetensors library, because that one leaves the order of the metadata to a
randomised hash map. Layout: names sorted within descending element size, so that every tensor is aligned to its
element; header padded with spaces to a multiple of 8.
"""

import argparse
import importlib.metadata
import json
import os
import sys
from pathlib import Path

# Reduction order inside torch depends on the vector length it picks and on the thread count. The baseline code and one
# thread give the same bits on every x86-64 machine. These take effect only before torch and numpy are imported.
os.environ["ATEN_CPU_CAPABILITY"] = "default"
os.environ["MKL_CBWR"] = "COMPATIBLE"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

_DTYPES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint16): "U16",
    np.dtype(np.uint8): "U8",
}


def pinned():
    """The versions of requirements.txt: name -> version."""
    lines = Path(__file__).with_name("requirements.txt").read_text().splitlines()
    return dict(line.split("#")[0].strip().split("==") for line in lines if "==" in line)


def check_versions(libraries):
    """Versions of `libraries`, or an exit with a message when one of them is not the pinned one."""
    pins = pinned()
    versions = {}
    for library in sorted(libraries):
        try:
            # Without the local part, which says for what device a torch was built; everything here runs on the CPU.
            installed = importlib.metadata.version(library).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            sys.exit(f"{library} is not installed; requirements.txt asks for {pins[library]}")
        if installed != pins[library]:
            sys.exit(f"{library} {installed} is installed; requirements.txt asks for {pins[library]}")
        versions[library] = installed
    return versions


def save(path, tensors, metadata):
    """Writes `tensors` to `path` as safetensors, with the same bytes for the same arguments."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": _DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(arrays[name].tobytes())


def setting(libraries):
    """What the command line and the environment say: the folder that stands for the repository root, and versions."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--out", type=Path, default=ROOT, help="folder that stands for the repository root")
    out = parser.parse_args().out
    versions = check_versions({*libraries, "ml-dtypes", "numpy"})
    if "torch" in versions:
        import torch

        torch.set_num_threads(1)
        torch.backends.mkldnn.enabled = False
        torch.use_deterministic_algorithms(True)
    script = Path(sys.modules["__main__"].__file__).name
    return out, {"script": f"tools/golden/{script}", **versions}


def run(main, crate, name, libraries, metadata=None):
    """Checks versions, calls `main()` for the tensors and writes them where the crate's tests look for them."""
    out, versions = setting(libraries)
    tensors = main()
    path = out / crate / "tests" / "golden" / f"{name}.safetensors"
    save(path, tensors, {**versions, **(metadata or {})})
    print(f"{crate}/tests/golden/{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes")


def run_json(main, crate, name, libraries):
    """As `run`, for a `main()` that returns an object of texts and lists; it is written as JSON, under the versions."""
    out, versions = setting(libraries)
    value = {"versions": versions, **main()}
    path = out / crate / "tests" / "golden" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Characters beyond ASCII are escaped, so that those which look alike or combine can be told apart in the file.
    path.write_bytes(json.dumps(value, indent=1).encode() + b"\n")
    print(f"{crate}/tests/golden/{path.name}: {len(value) - 1} members, {path.stat().st_size} bytes")


def bits_f32(bits):
    """Floats of the given u32 bit patterns."""
    return np.asarray(bits, dtype=np.uint32).view(np.float32)


def up(x):
    """The next f32 toward +inf."""
    return np.nextafter(np.asarray(x, np.float32), np.float32(np.inf))


def down(x):
    """The next f32 toward -inf."""
    return np.nextafter(np.asarray(x, np.float32), np.float32(-np.inf))
