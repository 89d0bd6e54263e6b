"""The host run finds what it is there to find; and the CUDA kernels under AddressSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from host_run import HERE, compiler

from flowkern.cuda import code

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="host_run.h switches fibers of x86-64 only")

FAULTS = {
    "a barrier that not all threads reach": (
        "if (thread() < 32) sync();",
        "",
        "wait at a barrier that the others do not reach",
    ),
    "a shuffle in part of a warp": ("if (thread() < 8) shuffle_xor(1.0f, 1);", "", "wait at a barrier"),
    "a word that nobody sends": (
        "receive_word(reinterpret_cast<unsigned long long*>(arguments.data), 7);",
        "",
        "that the others do not reach, or for a word",
    ),
    "a copy that nobody waits for": ("copy_async(memory, arguments.data); copy_commit();", "", "ended with copies under way"),
    "an unaligned copy": ("copy_async(memory + 4, arguments.data);", "", "unaligned memory"),
    "a write past shared memory": ("memory[256] = 1;", "address", "heap-buffer-overflow"),
    "a read before the write is visible": (
        "memory[thread()] = 1; arguments.data[thread()] = memory[63 - thread()];",
        "thread",
        "data race",
    ),
    "a write while others may still read": (
        "memory[thread()] = 1; sync(); arguments.data[thread()] = memory[63 - thread()]; memory[thread()] = 2;",
        "thread",
        "data race",
    ),
}
SOURCE = """
#include "cuda/device.h"
namespace flowkern::FK_ISA {
struct Arguments { unsigned char* data; };
FK_KERNEL(64) planted(FK_ARGUMENTS(Arguments)) { unsigned char* memory = shared_memory(); %s }
}
"""
LAUNCH = """
import ctypes, sys
library, data = ctypes.CDLL(sys.argv[1]), (ctypes.c_double * 64)()
argument = ctypes.c_void_p(ctypes.addressof(data))
library.host_run_launch(ctypes.cast(library.planted, ctypes.c_void_p), 1, 64, 1, ctypes.c_long(256), ctypes.byref(argument))
"""


def environment(sanitizer: str) -> dict[str, str]:
    """Variables under which Python loads code that was compiled with a sanitizer."""
    names = {"address": ["libasan.so"], "thread": ["libtsan.so"], "": []}[sanitizer]
    files = [
        subprocess.check_output([compiler(), f"-print-file-name={n}"], text=True).strip() for n in [*names, "libstdc++.so"]
    ]
    return {
        **os.environ,
        **({"LD_PRELOAD": " ".join(files)} if names else {}),
        "ASAN_OPTIONS": "detect_leaks=0,alloc_dealloc_mismatch=0",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1:exitcode=66",
        "FLOWKERN_HOST_RUN_SANITIZERS": sanitizer,
    }


def fixed_addresses(sanitizer: str) -> list[str]:
    """ThreadSanitizer's runtime expects the address space without randomisation."""
    return ["setarch", "-R"] if sanitizer == "thread" else []


@pytest.mark.parametrize(("body", "sanitizer", "message"), FAULTS.values(), ids=FAULTS)
def test_planted_faults_are_found(body: str, sanitizer: str, message: str, tmp_path: Path) -> None:
    source, library = tmp_path / "planted.cu", tmp_path / "planted.so"
    source.write_text(SOURCE % body)
    flags = [f"-fsanitize={sanitizer}"] if sanitizer else []
    include = [f"-I{code.sources()}", f"-I{HERE}", "-DFK_HOST_RUN"]
    command = [compiler(), "-std=c++20", "-O1", "-g", "-w", "-fPIC", "-shared", *flags, *include, "-x", "c++"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    launch = [*fixed_addresses(sanitizer), sys.executable, "-c", LAUNCH, str(library)]
    done = subprocess.run(launch, env=environment(sanitizer), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr, done.stderr[-2000:]


def check_under(sanitizer: str, file: str, selection: str) -> None:
    """Runs the tests of a file that a selection names."""
    options = ["-x", "-s", "-p", "no:cacheprovider", "-k", selection]
    command = [*fixed_addresses(sanitizer), sys.executable, "-m", "pytest", *options]
    done = subprocess.run(
        [*command, str(HERE / "cuda" / file)],
        env={**environment(sanitizer), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sweeps_under_sanitizers(sanitizer: str) -> None:
    """Every shape of a launch once, and the matrix instructions."""
    selection = "small and (float32 or (tf32 and sixteen))"
    if sanitizer == "address":
        selection += " or (residual and float64) or (wide and bfloat16 and not counter and not cluster)"
    check_under(sanitizer, "test_sweep.py", selection)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sampling_loops_under_sanitizers(sanitizer: str) -> None:
    """Every way in which a network is cut, with classes and with numbers."""
    numbers = " or gaussians" if sanitizer == "address" else ""
    check_under(sanitizer, "test_generation.py", f"draws_what_the_oracle_draws and (three{numbers})")
