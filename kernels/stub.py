"""Prints the stub of the installed kernels, which is kept as `autotune/_kernels.pyi`: see CONTRIBUTING.md."""

import re

import nanobind
import torch  # noqa: F401 first: the kernels must share the OpenMP library that torch carries
from nanobind.stubgen import StubGen

from autotune import _kernels


def stub() -> str:
    """The text of `_kernels.pyi`: what nanobind writes, except that arguments are arrays of torch or of NumPy."""
    generator = StubGen(_kernels, include_docstrings=True)
    generator.put(_kernels)
    text = re.sub(r"NDArray(?=[],])", "NDArray[Any]", generator.get())
    text = re.sub(r"Annotated\[(NDArray\[[\w.]+\])(?=, dict\(shape=\([^)]*\), device='cpu')", r"Annotated[Tensor | \1", text)
    text = text.replace("from typing import Annotated", "from typing import Annotated, Any", 1)
    text = text.replace("from numpy.typing import NDArray\n", "from numpy.typing import NDArray\nfrom torch import Tensor\n", 1)
    version = ".".join(nanobind.__version__.split(".")[:2])
    return f"# Written by kernels/stub.py with nanobind {version}; not to be edited.\n{text.rstrip()}\n"


if __name__ == "__main__":
    print(stub(), end="")
