"""What importing flowkern costs and needs: torch, and nothing besides."""

from __future__ import annotations

import subprocess
import sys


def python(program: str, *options: str) -> str:
    """Runs a program in a new interpreter and returns what it printed; fails with its errors."""
    done = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_importing_it_imports_nothing_but_torch_and_itself() -> None:
    """The compiler alone, torch._dynamo, takes as long to import as torch does."""
    found = python(
        """
import sys, torch
before = set(sys.modules)
import flowkern
names = {name for name in sys.modules if name not in before and name.split(".")[0] not in sys.stdlib_module_names}
print(*sorted(name for name in names if name.split(".")[0] != "flowkern"))
assert "flowkern.flows" in names
"""
    )
    assert found.split() == []


def test_torch_alone_is_enough() -> None:
    """With safetensors, as in an environment of nothing else: there torch has no NumPy. Also where assertions are off."""
    others = (
        "numpy",
        "triton",
        "zuko",
        "nflows",
        "normflows",
        "FrEIA",
        "pyro",
        "FrEIA",
        "sbi",
        "wavenet_vocoder",
        "matplotlib",
        "rich",
        "sklearn",
        "scipy",
        "PIL",
        "cuda",
    )
    text = python(
        f"""
import sys, warnings
sys.modules.update(dict.fromkeys({others}))
warnings.simplefilter("ignore")  # torch says that NumPy is missing
import torch, flowkern as fk
flow = fk.flows.MAF(4, 2, (8,), context=2)
context = torch.randn(5, 2)
x = flow.sample((3,), context)
flow.log_prob(x, context).sum().backward()
if any(p.grad is None for p in flow.parameters()):
    raise SystemExit("no gradient")
import tempfile
if len(flow.fit(torch.randn(50, 4), torch.randn(50, 2), epochs=2).train) != 2:
    raise SystemExit("not trained")
with tempfile.TemporaryDirectory() as folder:
    flow.save_pretrained(folder)
    fk.Model.from_pretrained(folder).log_prob(x, context)
from flowkern.cli import main
raise SystemExit(main(["doctor"]))
""",
        "-O",
    )
    assert "CPU kernels            yes" in text


def test_without_the_extension_the_first_use_may_be_a_compiled_one() -> None:
    """The warning is given, and the sweep of the inverse does not read the plan's tensors while it is traced."""
    python(
        """
import sys; sys.modules['flowkern._C'] = None
import torch, flowkern as fk, warnings
flow = fk.flows.MAF(4, 2, (8,), residual=True)
x = torch.randn(5, 4)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for call in (flow.log_prob, lambda x: flow.transform.inverse(x)[0].sum(-1)):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), call(x))
        compiled(x).sum().backward()
assert sum("runs without its kernels" in str(w.message) for w in seen) == 1
"""
    )
