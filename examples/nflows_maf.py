"""A masked autoregressive flow of nflows: samples and training before and after one line."""

import torch
from nflows import distributions, flows, transforms
from timing import before_and_after, sizes

size = sizes(__doc__, features=64, hidden=512, batch=1024)
layers = []
for _ in range(5):
    layers.append(transforms.RandomPermutation(size.features))
    layers.append(transforms.MaskedAffineAutoregressiveTransform(size.features, size.hidden))
    # As nflows initialises it, errors in a sample grow with every feature (samples exceed 1e30 at these sizes) and nothing can
    # be compared. With small last weights the flow begins as little more than a scaling.
    with torch.no_grad():
        layers[-1].autoregressive_net.final_layer.weight.mul_(0.01)
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
