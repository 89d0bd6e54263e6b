"""The copy of nflows that glasflow carries, with a context: both directions before and after one line."""

import torch
from glasflow.nflows import distributions, flows, transforms
from timing import before_and_after, sizes

size = sizes(__doc__, features=32, context=4, hidden=256, batch=512)
layers = [transforms.MaskedAffineAutoregressiveTransform(size.features, size.hidden, size.context) for _ in range(3)]
flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([size.features]))
x, context = torch.randn(size.batch, size.features), torch.randn(size.batch, size.context)


def sample() -> torch.Tensor:
    with torch.no_grad():
        return flow.sample(1, context)


def log_prob() -> torch.Tensor:
    with torch.no_grad():
        return flow.log_prob(x, context)


before_and_after(flow, sample=sample, log_prob=log_prob)
