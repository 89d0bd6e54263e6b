"""Room for another family of univariate maps: one that nobody asked for goes in by three files of its own.

two_sided/ holds them as a contributor would write them: the value with its oracle, the C++ header of the CPU and CUDA kernels,
the Triton functions. They are put into a copy of the package, which is built, and check.py holds every kernel to the oracle.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from building import PATH, ROOT, build_extension, run

HERE = Path(__file__).parent
FILES = {
    "value.py": "flowkern/univariate/two_sided.py",
    "two_sided.h": "csrc/include/flowkern/maps/two_sided.h",
    "in_triton.py": "flowkern/kernels/maps/two_sided.py",
}


@pytest.mark.slow
def test_a_family_is_added_by_its_own_files(tmp_path: Path) -> None:
    if shutil.which("cmake", path=PATH) is None or not (ROOT / "csrc").exists():
        pytest.skip("needs the sources and CMake")
    ignore = shutil.ignore_patterns("*.so", "*.cubin", "__pycache__")
    for source, target in (("flowkern", "flowkern"), ("kernels", "flowkern/kernels"), ("csrc", "csrc")):
        shutil.copytree(ROOT / source, tmp_path / target, ignore=ignore)
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    for file, place in FILES.items():
        shutil.copy(HERE / "two_sided" / file, tmp_path / place)
    build_extension(tmp_path, tmp_path, "-DFLOWKERN_ISAS=")  # the baseline alone: a family has no code of an instruction set
    options = ["-x", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    check = [sys.executable, "-P", "-m", "pytest", *options, "--confcutdir", str(HERE.parent)]
    environment = {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE.parent}",
        "FLOWKERN_SECOND_FAMILY": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),  # code for another instruction set has other sizes
    }
    run([*check, str(HERE / "two_sided" / "check.py")], tmp_path, **environment)
