"""An inverse autoregressive flow of Pyro: the density of values that are not in its cache, before and after one line."""

import pyro.distributions as dist
import torch
from pyro.nn import AutoRegressiveNN
from timing import before_and_after, sizes

size = sizes(__doc__, features=64, hidden=512, batch=1024)
transform = dist.transforms.AffineAutoregressive(AutoRegressiveNN(size.features, [size.hidden, size.hidden]), stable=True)
base = dist.Normal(torch.zeros(size.features), torch.ones(size.features)).to_event(1)
flow = dist.TransformedDistribution(base, [transform])
x = torch.randn(size.batch, size.features)


def log_prob() -> torch.Tensor:
    with torch.no_grad():
        return flow.log_prob(x.clone())


before_and_after(flow, log_prob=log_prob)
