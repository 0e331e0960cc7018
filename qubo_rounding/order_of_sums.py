"""Matrix products whose bits do not depend on the number of threads."""

from __future__ import annotations

import os


def fix_order_of_sums() -> None:
    """Let Intel's MKL add up in one order, however many threads share a product.

    By default it splits long sums among them on some processors, and Gram matrices then differ in
    their last bits. MKL reads the setting before its first product in a process, so that importing
    this package is soon enough where nothing was multiplied before; one that is set already stays.

    Source: Intel oneMKL developer guide, "Conditional Numerical Reproducibility", strict mode.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
