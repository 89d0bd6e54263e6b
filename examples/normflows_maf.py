"""normflows evaluates the density of its MAF in its slow direction: maximum likelihood before and after one line."""

import normflows as nf
import torch
from timing import before_and_after, sizes

size = sizes(__doc__, features=64, hidden=512, batch=256)
layers = [nf.flows.MaskedAffineAutoregressive(size.features, size.hidden, num_blocks=1) for _ in range(3)]
flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(size.features), layers)
x = torch.randn(size.batch, size.features)


def training_step() -> torch.Tensor:
    flow.zero_grad()
    loss = flow.forward_kld(x)
    loss.backward()
    return loss.detach()


before_and_after(flow, training_step=training_step)
