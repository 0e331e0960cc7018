"""Packages that only an extra installs, imported where they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


def imported(package: str, extra: str) -> ModuleType:
    """The module of this name.

    Args:
        package: its name.
        extra: of this package, which installs it.

    Raises:
        ValueError: it is missing, or was built for another torch.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"The package {package} cannot be imported ({error}); "
            f'pip install "qubo-rounding[{extra}]".'
        ) from error
    except RuntimeError as error:  # torchvision registers its operators with torch
        raise ValueError(
            f"The package {package} is installed but cannot be imported ({error}): it, or "
            "torchvision beneath it, was built for another torch than "
            f"{torch.__version__}; reinstall torchvision to match."
        ) from error
