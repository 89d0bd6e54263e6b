"""What ends a training run."""


class TrainingError(RuntimeError):
    """A run that cannot go on: the message says where it is and what is kept."""
