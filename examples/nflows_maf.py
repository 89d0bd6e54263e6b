"""A masked autoregressive flow of nflows: samples and training before and after one line."""

import torch
from nflows import distributions, flows, transforms
from timing import before_and_after, sizes

size = sizes(__doc__, features=64, hidden=512, batch=1024)
layers = []
for _ in range(5):
    layers.append(transforms.RandomPermutation(size.features))
    layers.append(transforms.MaskedAffineAutoregressiveTransform(size.features, size.hidden))
flow = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([size.features]))
x = torch.randn(size.batch, size.features)


def sample() -> torch.Tensor:
    with torch.no_grad():
        return flow.sample(size.batch)


def training_step() -> torch.Tensor:
    flow.zero_grad()
    loss = -flow.log_prob(x).mean()
    loss.backward()
    return loss.detach()


before_and_after(flow, sample=sample, training_step=training_step)
