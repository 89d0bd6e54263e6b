"""sbi: estimators and posteriors hold flows of nflows and zuko; what they hold is accelerated."""

from __future__ import annotations

from flowkern.adapters.library import Library

POSTERIORS = "sbi.inference.posteriors."
SBI = Library(
    name="sbi",
    tested=("0.22", "0.28"),
    holders={
        POSTERIORS + "base_posterior.NeuralPosterior": ("posterior_estimator", "potential_fn", "_q", "_amortized_q"),
        POSTERIORS + "ensemble_posterior.EnsemblePosterior": ("posteriors",),
        "sbi.inference.potentials.base_potential.BasePotential": (
            "posterior_estimator",
            "likelihood_estimator",
            "ratio_estimator",
        ),
    },
)
