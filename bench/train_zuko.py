"""zuko's NSF trained on a table as `flowkern train nsf` does it, with its rows, batches and Adam, for so much computing time.

python bench/train_zuko.py galaxies.npy --seconds 92 --hidden 128 --batch 512
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
import zuko
from torch import Tensor

from flowkern import data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    torch.manual_seed(0)
    dataset = data.load(options.data, 0)
    scale = data.encoding(dataset)
    parts = (dataset.train, dataset.validation, dataset.test)
    train, held, test = (torch.cat([scale.encode(chunk) for chunk in rows.chunks()]) for rows in parts)
    flow = zuko.flows.NSF(train.shape[1], bins=8, transforms=5, hidden_features=(options.hidden,) * 2)
    optimizer = torch.optim.Adam(flow.parameters(), 5e-4, fused=True)

    @torch.no_grad()
    def scores(x: Tensor) -> Tensor:
        return torch.cat([flow().log_prob(rows) for rows in x.split(4096)]).double()

    best, kept, epochs = -float("inf"), flow.state_dict(), 0
    while time.process_time() < options.seconds:
        for rows in torch.randperm(len(train)).split(options.batch):
            loss = -flow().log_prob(train[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
            optimizer.step()
            if time.process_time() >= options.seconds:
                break
        epochs, found = epochs + 1, float(scores(held).mean())
        if found > best:
            best, kept = found, copy.deepcopy(flow.state_dict())
    flow.load_state_dict(kept)
    found_in_units = scores(test) + scale.log_det(test)
    error = float(found_in_units.std() / len(test) ** 0.5)
    print(f"{epochs} epochs; {float(found_in_units.mean()):.3f} +- {error:.3f} nats per row in the units of the data")


if __name__ == "__main__":
    main()
