"""What the scripts that write docs/kernels.md share: NVIDIA's tools, which Triton brings, and the page's marked parts."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import triton

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def read_cubin(cubin: bytes, *commands: tuple[str, ...]) -> list[str]:
    """What tools such as cuobjdump and nvdisasm print of compiled code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = [
            subprocess.run([_TOOLS / name, *options, file.name], capture_output=True, text=True, check=True)
            for name, *options in commands
        ]
    return [done.stdout for done in run]


def put(page: str, name: str, text: str) -> str:
    """The page with a marked part replaced."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, rest = page.split(begin)
    return head + begin + text + "\n" + end + rest.split(end)[1]
