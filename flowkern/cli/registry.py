"""The models that commands know: every public one that can be built from options and the shape of the data."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from flowkern._checks import meant
from flowkern.cli.errors import CommandError
from flowkern.model import Model


def models() -> dict[str, type[Model]]:
    """Model classes by the names that commands give them."""
    from flowkern import flows
    from flowkern import models as others

    public = [getattr(home, name) for home in (flows, others) for name in home.__all__]
    classes = [c for c in public if inspect.isclass(c) and issubclass(c, Model)]
    return {c.__name__.lower(): c for c in classes if "features" in inspect.signature(c).parameters}


def model_class(name: str) -> type[Model]:
    """The class of a name."""
    known = models()
    if name not in known:
        raise CommandError(f"MODEL: {name!r} is none; {meant(name, 'models', known)}")
    return known[name]


def distillation_class() -> Callable[..., Model]:
    """What trains a student from a teacher."""
    from flowkern import models as others

    return others.Distillation
