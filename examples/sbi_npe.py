"""Neural posterior estimation with sbi: posterior samples before and after one line."""

import torch
from sbi.inference import NPE
from timing import before_and_after, sizes

size = sizes(__doc__, features=10, simulations=2000, epochs=10, samples=100_000)
prior = torch.distributions.MultivariateNormal(torch.zeros(size.features), torch.eye(size.features))
theta = prior.sample((size.simulations,))
x = theta + 0.5 * torch.randn_like(theta)
inference = NPE(prior=prior, density_estimator="maf", show_progress_bars=False)
inference.append_simulations(theta, x).train(max_num_epochs=size.epochs)
posterior = inference.build_posterior().set_default_x(torch.zeros(size.features))
before_and_after(posterior, sample=lambda: posterior.sample((size.samples,), show_progress_bars=False))
