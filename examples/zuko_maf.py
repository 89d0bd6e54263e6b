"""A masked autoregressive flow of zuko, conditional on a context: samples and densities before and after one line."""

import torch
import zuko
from timing import before_and_after, sizes

size = sizes(__doc__, features=64, context=4, hidden=512, batch=1024)
flow = zuko.flows.MAF(size.features, size.context, transforms=5, hidden_features=[size.hidden, size.hidden])
context = torch.randn(size.batch, size.context)
x = torch.randn(size.batch, size.features)


def training_step() -> torch.Tensor:
    flow.zero_grad()
    loss = -flow(context).log_prob(x).mean()
    loss.backward()
    return loss.detach()


before_and_after(flow, sample=lambda: flow(context).sample(), training_step=training_step)
