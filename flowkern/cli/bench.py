"""``flowkern bench``: run the benchmarks; write JSON, a Markdown table and a chart."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from flowkern.cli.errors import CommandError, require
from flowkern.cli.output import OutputFolder, output_folder

# Suite: the implementation that the others are compared with. A file of bench/ belongs to the suite that its name begins
# with, as bench_gpu.py does, and else to "own": a family of operators or models is a file, and no line here.
SUITES = {"own": "zuko", "peers": "peer", "small": "peer", "gpu": "zuko"}
NO_TESTS = 5  # pytest's exit status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("-k", metavar="EXPRESSION", default="", help="only benchmarks whose name matches, as in pytest")
    parser.add_argument("--suite", choices=SUITES, default="own", help="own models, accelerated peers, small flows, or a GPU")
    parser.add_argument("--output", metavar="FOLDER", default="output/bench", help="where the files go (output/bench)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs pytest-benchmark on the folder bench/ of a checkout and summarises its JSON."""
    import torch

    require(("pytest", "pytest_benchmark", "matplotlib"), "bench")
    suites = Path(__file__).parents[2] / "bench"
    if not (suites / "conftest.py").exists():
        raise CommandError(
            "the benchmarks are in the folder bench/ of a checkout; install it from there with: pip install -e ."
        )
    name = {"own": "benchmarks"}.get(options.suite, options.suite)
    if options.suite == "gpu":
        if not torch.cuda.is_available():
            raise CommandError("torch sees no GPU; `flowkern doctor` says what it sees")
        name = re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower()
    with output_folder(options.output) as folder:
        folder.clear([f"{name}.{suffix}" for suffix in ("json", "md", "png")])
        _measure(suites, options, folder.path / f"{name}.json")
        _summarise(folder, name, SUITES[options.suite])
    return 0


def _files(suites: Path, suite: str) -> list[Path]:
    """The files of a suite, by name."""
    found: dict[str, list[Path]] = {name: [] for name in SUITES}
    for file in sorted(suites.glob("bench_*.py")):
        first = file.stem.split("_")[1]
        found[first if first in SUITES else "own"].append(file)
    return found[suite]


def _measure(suites: Path, options: argparse.Namespace, report: Path) -> None:
    """Runs the suite's benchmarks in a process of its own, which writes the report."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        *map(str, _files(suites, options.suite)),
        "-c",
        str(suites / "pytest.ini"),
        "-q",
        *(["--benchmark-timer=cuda_timer.now"] if options.suite == "gpu" else []),
        f"--benchmark-json={report}",
        "-k",
        options.k,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(suites), os.environ.get("PYTHONPATH", "")])}
    status = subprocess.run(command, check=False, env=environment).returncode
    if status == NO_TESTS and options.k:
        raise CommandError(f"-k: no benchmark of the suite {options.suite!r} matches {options.k!r}")
    if status != 0:
        raise CommandError(f"pytest ended with status {status}; nothing was summarised", status=1)


def _summarise(folder: OutputFolder, name: str, baseline: str) -> None:
    from flowkern.cli import pictures

    rows = summarise(json.loads((folder.path / f"{name}.json").read_text())["benchmarks"], baseline)
    text = markdown(rows, baseline)
    folder.write(f"{name}.md", text.encode())
    ratios = {row["group"]: row["ratio"] for row in rows if row["implementation"] == "flowkern" and row["ratio"]}
    if ratios:
        folder.write(f"{name}.png", pictures.ratios(ratios, baseline))
    print(text)
    print(f"{name}.json, {name}.md{f' and {name}.png' if ratios else ''} are in {folder.path}/")


def summarise(benchmarks: list[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """One row per benchmark: median, ratios to the baseline of its group, rate of useful multiply-adds, memory."""
    medians, fastest = (
        {(b["group"], b["extra_info"]["implementation"]): b["stats"][kind] for b in benchmarks} for kind in ("median", "min")
    )
    mm = next(
        (2e-9 * b["extra_info"]["multiply_adds"] / b["stats"]["median"] for b in benchmarks if "torch.mm" in b["group"]), None
    )
    rows = []
    for b in benchmarks:
        info, median = b["extra_info"], b["stats"]["median"]
        base = medians.get((b["group"], baseline))
        rate = 2e-9 * info["multiply_adds"] / median if "multiply_adds" in info else None
        copy = medians.get((b["group"], "copy"))
        bandwidth = 1e-9 * info["bytes"] / median if "bytes" in info else None
        if bandwidth and copy:
            copied = next(o["extra_info"]["bytes"] for o in benchmarks if o["extra_info"]["implementation"] == "copy")
            info["of_copy"] = bandwidth / (1e-9 * copied / copy)
        rows.append(
            {
                "group": b["group"],
                "implementation": info["implementation"],
                "milliseconds": 1e3 * median,
                "ratio": base / median if base else None,
                "fastest": fastest[b["group"], baseline] / b["stats"]["min"] if base else None,
                "gflops": rate,
                "of_mm": rate / mm if rate and mm else None,
                "memory": info.get("peak_memory_mb"),
                "gb": bandwidth,
                "of_copy": info.get("of_copy"),
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]], baseline: str) -> str:
    """The rows as a Markdown table, with what they were measured on."""

    def show(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    gpu = any(row["gb"] for row in rows)
    third, head = ("gb", "of_copy"), "GB/s | of a copy"
    if not gpu:
        third, head = ("gflops", "of_mm"), "GFLOP/s | of torch.mm"
    lines = [
        f"{_machine(gpu)}. Medians; ratios to {baseline} in the same run, of the medians and of the fastest rounds, "
        "which other work on the machine disturbs least. "
        + ("GB/s count the bytes that must move." if gpu else "GFLOP/s count unmasked weights only; also against torch.mm."),
        "",
        f"| work | implementation | ms | times {baseline} | fastest | {head} | peak MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            row["group"],
            row["implementation"],
            show(row["milliseconds"], ",.3f"),
            show(row["ratio"], ",.2f"),
            show(row["fastest"], ",.2f"),
            show(row[third[0]], ",.1f"),
            show(row[third[1]], ".2f"),
            show(row["memory"], ",.1f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _machine(gpu: bool) -> str:
    """What a table was measured on."""
    import torch

    from flowkern.backends import triton_version

    if gpu:
        versions = f"torch {torch.__version__}, Triton {triton_version()}"
        return f"{torch.cuda.get_device_name()}, {versions}, {datetime.date.today()}"
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
