"""Training: the loop around torch's own engines, for every model; checkpoints; several processes."""

from flowkern.training.batches import Batches
from flowkern.training.checkpoints import Checkpoints
from flowkern.training.distributed import Processes, processes
from flowkern.training.errors import TrainingError
from flowkern.training.evaluation import Score, evaluate, mean_terms, sample
from flowkern.training.history import History
from flowkern.training.loop import Training
from flowkern.training.progress import Progress
from flowkern.training.settings import Settings

__all__ = [
    "Batches",
    "Checkpoints",
    "History",
    "Processes",
    "Progress",
    "Score",
    "Settings",
    "Training",
    "TrainingError",
    "evaluate",
    "mean_terms",
    "processes",
    "sample",
]
