"""A VAE of Pyro whose guide is an inverse autoregressive flow: a step of SVI, before and after one line."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import ConditionalAutoRegressiveNN
from pyro.optim import Adam
from timing import before_and_after, sizes
from torch import Tensor, nn

size = sizes(__doc__, features=784, latent=32, hidden=512, context=32, transforms=4, batch=256)


class VAE(nn.Module):
    """p(z) = N(0, I), p(x | z) Bernoulli; q(z | x) a diagonal Gaussian and the steps of the flow after it."""

    def __init__(self) -> None:
        super().__init__()
        z, h = size.latent, size.hidden
        self.encoder = nn.Sequential(nn.Linear(size.features, h), nn.ELU(), nn.Linear(h, 2 * z + size.context))
        self.decoder = nn.Sequential(nn.Linear(z, h), nn.ELU(), nn.Linear(h, size.features))
        networks = (ConditionalAutoRegressiveNN(z, size.context, [h, h]) for _ in range(size.transforms))
        self.steps = nn.ModuleList(dist.transforms.ConditionalAffineAutoregressive(net, stable=True) for net in networks)

    def model(self, x: Tensor) -> None:
        """How x comes about."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), size.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x): Pyro draws z and, from what its steps remember of the draw, takes log q(z | x)."""
        pyro.module("encoder", self.encoder)
        pyro.module("steps", self.steps)
        mean, log_std, h = self.encoder(x).split((size.latent, size.latent, size.context), -1)
        flow = dist.ConditionalTransformedDistribution(dist.Normal(mean, log_std.exp()).to_event(1), list(self.steps))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", flow.condition(h))


torch.manual_seed(0)
vae, x = VAE(), torch.bernoulli(torch.full((size.batch, size.features), 0.3))
svi = SVI(vae.model, vae.guide, Adam({"lr": 0.0}), Trace_ELBO())  # a rate of 0: both timings see the same weights


def step() -> Tensor:
    return torch.tensor(svi.step(x)) / size.batch


before_and_after(vae, step_of_svi=step)
