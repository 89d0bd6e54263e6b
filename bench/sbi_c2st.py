"""sbi on tasks of sbibm, trained with and without `accelerate`: how well a classifier tells samples of the posterior from
the reference's (C2ST, 0.5 at best). Two trainings of one seed differ by rounding only, so means should be within the spread.

    python bench/sbi_c2st.py two_moons gaussian_linear --estimator nsf --simulations 1000 --seeds 3
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import sbibm
import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from sbi.utils.metrics import c2st

import flowkern as fk


def posterior_samples(
    task: Any, estimator: str, simulations: int, seed: int, accelerated: bool, count: int
) -> tuple[Any, float]:
    """Samples given the task's first observation, and the seconds of computing that training and sampling took."""
    torch.manual_seed(seed)
    theta = task.get_prior()(num_samples=simulations)
    x = task.get_simulator()(theta)
    build, begin = posterior_nn(model=estimator), time.process_time()

    def built(batch_theta: Any, batch_x: Any) -> Any:
        model = build(batch_theta, batch_x)
        return fk.accelerate(model) if accelerated else model

    inference = NPE(prior=task.get_prior_dist(), density_estimator=built, show_progress_bars=False)
    inference.append_simulations(theta, x).train()
    posterior = inference.build_posterior()
    drawn = posterior.sample((count,), x=task.get_observation(1), show_progress_bars=False)
    return drawn, time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--estimator", default="nsf")
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.tasks:
        task = sbibm.get_task(name)
        reference = task.get_reference_posterior_samples(num_observation=1)[: options.samples]
        for accelerated in (False, True):
            scores, seconds = [], 0.0
            for seed in range(options.seeds):
                drawn, took = posterior_samples(
                    task, options.estimator, options.simulations, seed, accelerated, options.samples
                )
                scores.append(float(c2st(reference, drawn, classifier="mlp")))
                seconds += took
            shown = " ".join(f"{score:.3f}" for score in scores)
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            how = "accelerated" if accelerated else "plain"
            found = f"C2ST {statistics.mean(scores):.3f} +- {spread:.3f} ({shown}), {seconds:.0f} s"
            print(f"{name}, {options.estimator}, {how}: {found}", flush=True)


if __name__ == "__main__":
    main()
