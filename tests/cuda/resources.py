"""What the compiled CUDA kernels need of each architecture, read from their code.

    python tests/cuda/resources.py --write    puts the table into docs/kernels.md

The code is what the build left in the package, else what NVRTC makes.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from kernel_page import PAGE, put, read_cubin
from networks import network

from flowkern.cuda import code, launch, wavenet_generate

# Compute capability, and the shared memory that a block may have there.
ARCHITECTURES = {"sm_80": ((8, 0), 163), "sm_90a": ((9, 0), 227), "sm_100": ((10, 0), 227), "sm_120": ((12, 0), 99)}
VARIANTS = [
    *(f"f32_{s}" for s in ("r1", "r16", "r32", "s32")),
    *(f"tf32_{s}" for s in ("r16", "r32", "s32")),
    *(f"f64_{s}" for s in ("r1", "r16", "s32")),
    *(f"{low}_{s}" for low in ("bf16", "f16") for s in ("r1", "r16", "r32", "s32")),
]
SWEEPS = [f"{name}_{v}" for name in ("autoregressive_inverse", "autoregressive_inverse_backward") for v in VARIANTS]
PACKS = ["pack_f32", "pack_f64", "pack_bf16", "pack_f16"]
LOOPS = [f"wavenet_generate_{number}_r{rows}" for number in ("f32", "f64", "bf16") for rows in (1, 8)]


@dataclass(frozen=True)
class Usage:
    """Of one kernel: registers of a thread, bytes of its stack and local memory, machine instructions by name."""

    registers: int
    stack: int
    local: int
    instructions: frozenset[str]


@lru_cache(None)
def usage(architecture: str) -> dict[str, Usage]:
    """Of every kernel of an architecture; of the sweeps those for affine maps, whose few parameters stay in registers.

    Splines have too many: theirs lie in local memory, which counts as stack and is no spill.
    """
    found: dict[str, Usage] = {}
    for one in (one for one in code.every_code() if one.map in ("", "affine")):
        built = code.built_file(one, ARCHITECTURES[architecture][0])
        cubin = built.read_bytes() if built else code.compile_kernels(one, architecture)
        needs, listing = read_cubin(cubin, ("cuobjdump", "--dump-resource-usage"), ("cuobjdump", "--dump-sass"))
        bodies = dict(re.findall(r"Function : (\w+)\n(.*?)(?=\n\s*Function : |\Z)", listing, re.DOTALL))
        pattern = r"Function (\w+):\s*\n?\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
        for name, registers, stack, local in re.findall(pattern, needs):
            instructions = frozenset(
                re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)", bodies[name], re.MULTILINE)
            )
            found[name] = Usage(int(registers), int(stack), int(local), instructions)
    return found


def threads(name: str) -> int:
    """Of a block of a kernel."""
    if name in LOOPS:
        return wavenet_generate.THREADS
    return 128 if name in PACKS else launch.Shape(int(name.split("_")[-1][1:])).threads


def faults(architecture: str) -> list[str]:
    """What is wrong with an architecture's kernels; nothing, it is hoped."""
    found, wrong = usage(architecture), []
    missing = set(SWEEPS + PACKS + LOOPS) - set(found)
    if missing:
        return [f"{architecture}: no code for {sorted(missing)}"]
    for name, u in found.items():
        if u.stack or u.local or u.instructions & {"LDL", "STL"}:
            wrong.append(f"{architecture} {name}: spills {u.stack} bytes")
        if u.registers * threads(name) > 65536:
            wrong.append(f"{architecture} {name}: {u.registers} registers for {threads(name)} threads")
        if name in SWEEPS + LOOPS and "LDGSTS" not in u.instructions:
            wrong.append(f"{architecture} {name}: no asynchronous copies")
        dtype, shape = name.split("_")[-2:]
        if name in SWEEPS and dtype in ("tf32", "bf16", "f16") and shape != "r1" and "HMMA" not in u.instructions:
            wrong.append(f"{architecture} {name}: no matrix instructions")
    return wrong


class Card:
    """A GPU as the launch heuristic sees it."""

    def __init__(self, shared: int) -> None:
        self.multiprocessors, self.shared_bytes, self.clusters = 132, shared * 1024, True


NETWORKS = [(8, (128, 128)), (64, (512, 512)), (784, (1024, 1024)), (64, (4096, 4096))]


CYCLE = tuple(1 << i for i in range(10))
WAVENETS = [
    wavenet_generate.Network(64, 64, 256, 256, 256, 2, 0, 2 * CYCLE),
    wavenet_generate.Network(64, 64, 128, 256, 256, 2, 0, 2 * CYCLE),
    wavenet_generate.Network(64, 64, 128, 128, 30, 2, 80, 3 * CYCLE),
]


def table() -> str:
    """Markdown: registers by architecture, and what a tile of some networks needs of shared memory."""
    lines = ["| kernel | threads | " + " | ".join(f"{a}, registers" for a in ARCHITECTURES) + " |"]
    lines.append("|---|---:|" + "---:|" * len(ARCHITECTURES))
    for name in SWEEPS + LOOPS:
        lines.append(
            f"| `{name}` | {threads(name)} | " + " | ".join(str(usage(a)[name].registers) for a in ARCHITECTURES) + " |"
        )
    lines += ["", "| network, large batch | dtype | " + " | ".join(f"{a}, shape and KB" for a in ARCHITECTURES) + " |"]
    lines.append("|---|---|" + "---:|" * len(ARCHITECTURES))
    for features, hidden in NETWORKS:
        plan = network(features, hidden).plan
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            cells = [_shape(plan, dtype, shared) for _, shared in ARCHITECTURES.values()]
            lines.append(f"| D={features}, {hidden[0]}x2 | {str(dtype)[6:]} | " + " | ".join(cells) + " |")
    lines += ["", "| WaveNet, one row | weights | " + " | ".join(f"{a}, blocks and KB" for a in ARCHITECTURES) + " |"]
    lines.append("|---|---|" + "---:|" * len(ARCHITECTURES))
    for of in WAVENETS:
        sizes = f"L={len(of.dilations)}, R={of.residual}, S={of.skip}, A={of.outputs}"
        for dtype in (torch.float32, torch.bfloat16):
            cells = [_blocks(of, dtype, shared) for _, shared in ARCHITECTURES.values()]
            lines.append(f"| {sizes} | {str(dtype)[6:]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _blocks(of: wavenet_generate.Network, dtype: torch.dtype, shared: int) -> str:
    found = wavenet_generate.chain_of(of, 1, dtype, torch.float32, wavenet_generate.Card(132, shared * 1024))
    return f"{found.stages} + {len(found.members) - found.stages}, {found.shared() / 1024:.0f}{'' if found.on_chip else ' *'}"


def _shape(plan: Any, dtype: torch.dtype, shared: int) -> str:
    programs = launch.programs_of(plan, False, dtype)
    shape = launch.shape_of(programs, 1 << 20, dtype, Card(shared))  # type: ignore[arg-type]
    size = shape.shared_bytes(programs[0].header, dtype.itemsize, launch.accumulated(dtype).itemsize)
    return f"{shape.name}, {size / 1024:.0f}"


def main() -> int:
    """Prints the table and what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    options = parser.parse_args()
    text, wrong = table(), [fault for a in ARCHITECTURES for fault in faults(a)]
    if options.write:
        PAGE.write_text(put(PAGE.read_text(), "cuda", text))
    print(text, *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
