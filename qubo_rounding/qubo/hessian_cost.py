"""What a task Hessian takes, told before it is computed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from tqdm import tqdm

from qubo_rounding.qubo.gauss_newton import SampleJacobian
from qubo_rounding.qubo.task_loss import Curvature, HessianColumns, TaskLoss, check_curvature
from qubo_rounding.room import size_of

MOST_TOGETHER = 32  # products
# Products computed together share the overhead of a call, but each needs activations of its own:
# beyond this many bytes of them a processor is faster with one after the other.
TOGETHER_BYTES = 2**23


@dataclass(frozen=True)
class Cost:
    """What a task Hessian takes, told before it is computed.

    Args:
        columns: d, weights of all its layers.
        chunk: products computed together.
        memory: bytes: the Hessian, two copies for the checks of a problem, the activations, and for
            Gauss-Newton the Jacobian of a batch, twice.
        seconds: for all products, judged by the first of them.
    """

    columns: int
    chunk: int
    memory: int
    seconds: float

    def __str__(self) -> str:
        size, duration = size_of(self.memory), tqdm.format_interval(self.seconds)
        return f"{self.columns} columns, {self.chunk} together, {size}, about {duration}"


def judged_cost(task: TaskLoss, curvature: Curvature, chunk: int | None, memory: float) -> Cost:
    """The cost of one curvature; its first products are computed to judge it.

    Args and Raises: as for `task_problem`.
    """
    check_curvature(curvature)
    if chunk is not None and not 1 <= chunk <= MOST_TOGETHER:
        raise ValueError(f"chunk is {chunk}; give 1 to {MOST_TOGETHER} products, or None.")
    d, n = len(task.weights), len(task.batches[0][0])
    products, activations = _traced(task, curvature)
    chunk = chunk or int(min(max(TOGETHER_BYTES // max(activations, 1), 1), MOST_TOGETHER, d))
    # A problem compares its Gram matrix with its transpose: twice more.
    needed, terms = 3 * 8 * d * d + (1 + chunk) * activations, f"3 x 8 x {d}^2"
    if isinstance(products, SampleJacobian):
        jacobian = 8 * n * products.outputs.numel() * d
        needed, terms = needed + 2 * jacobian, f"{terms}, 2 x {jacobian} for a batch's Jacobian"
    if needed > memory:
        raise ValueError(
            f"the {curvature} of {d} weights needs {needed} bytes ({terms}, and {1 + chunk} x "
            f"{activations} for activations); memory allows {memory:.0f}. Raise it, or take fewer "
            "layers, smaller batches or a smaller chunk."
        )
    first = min(chunk, products.count)
    products.products(0, first)  # libraries prepare themselves at their first call
    began = time.perf_counter()
    products.products(0, first)
    seconds = (time.perf_counter() - began) * products.count / first
    samples = n if curvature == "hessian" else 1
    return Cost(d, chunk, needed, seconds * task.images / samples)


def _traced(task: TaskLoss, curvature: Curvature) -> tuple[HessianColumns | SampleJacobian, int]:
    """What gives the first products, and the bytes that its graph keeps."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output kept with its own graph would never be freed

    inputs, labels = task.batches[0]
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        if curvature == "hessian":
            products = HessianColumns(task, (inputs, labels))
        else:
            products = SampleJacobian(task, inputs[:1])
    return products, sum(sizes.values())
