"""The proven optimum of a row by depth-first search, or the best bound that a limit allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event

import numpy as np
import torch

from qubo_rounding.parallel import for_each_row
from qubo_rounding.problem import RoundingProblem
from qubo_rounding.qubo.bounds import eigenvalue_bound, sdp_bound_of
from qubo_rounding.qubo.spins import SpinRow, spin_row
from qubo_rounding.solution import Solution
from qubo_rounding.solvers.annealing import Annealing
from qubo_rounding.solvers.composites import FirstThatAccepts
from qubo_rounding.solvers.depth_first import Tree, grow_tree, restart, search
from qubo_rounding.solvers.ellipsoid import first_shift, fit_shift
from qubo_rounding.solvers.idle_weights import fix_idle
from qubo_rounding.solvers.nearest import Nearest
from qubo_rounding.solvers.solver import Solver
from qubo_rounding.solvers.tabu import Tabu
from qubo_rounding.watch import alarm
from qubo_rounding.whole_numbers import check_whole

_EASY_NODES = 2**18  # tens of milliseconds: most rows up to d = 80 end here
_EASY_SPINS_PER_FIT = 10  # so that tables take no longer than the search they shorten
_HARD_FITS = 48
_NODES_PER_CALL = 2**20  # some tenths of a second between two looks at the clock
_GROWTH = 8.0  # each radius takes about this many times the nodes of the one before
_TOLERANCE = 2e-10  # relative: leaves that undercut the incumbent by less do not count
_MATRICES = 16  # (d, d) float64 of a row that is searched; the upper end of what was measured
_ROUNDING = 1e-15  # of a row's size: ten times what float64 adds to energies of real rows


def _default_start() -> Solver:
    # GPTQ, tabu's own start, needs a definite matrix, and tabu itself two levels a weight.
    return FirstThatAccepts((Tabu(rounds=30), Tabu(rounds=30, start=Nearest()), Annealing()))


@dataclass(frozen=True)
class TreeSearch(Solver):
    """The proven optimum of every row: Schnorr-Euchner search in the smallest ellipsoid.

    An up/down weight's squared error is constant up to linear terms, so a diagonal may move from
    the Gram matrix into a constant. The diagonal is chosen so that the ellipsoid of all real points
    no worse than the incumbent has the least volume (see ellipsoid.py); the search then fixes
    weights one by one, those first whose deviation costs most, and leaves a branch when the cost of
    what is fixed and a bound on the rest reach the incumbent. Rows are searched in parallel; each
    gives the same result in any company.

    A row that does not end quickly is searched in growing radii: once no levels are found below
    some energy, that energy is a certified lower bound. At a limit a row returns its incumbent and
    the greatest energy certified, at least the bound of the semidefinite relaxation, or the
    eigenvalue bound if it had not begun. Ctrl-C is such a limit.

    Integers of any range; the Gram matrix must be positive semidefinite for weights with more than
    two levels, and may be indefinite otherwise.

    Args (change often):
        max_nodes: limit for each row, 5 to 10 million take a second; time limits come from
            `watching(time_limit=...)`.
    Args (with caution):
        start: gives the first incumbent; a good one saves much of the search.

    Source: Schnorr, Euchner 1994, Math. Program. 66, 181 (order of levels); Buchheim, Caprara,
        Lodi 2012, Math. Program. 135, 369 (fixed order, tables per depth); Poljak, Rendl,
        Wolkowicz 1995 (diagonal shifts).
    """

    max_nodes: int = 10**8
    start: Solver = field(default_factory=_default_start)

    def __post_init__(self) -> None:
        check_whole(1, max_nodes=self.max_nodes)

    def refuses(self, problem: RoundingProblem) -> str | None:
        """Not convex and with more than two levels somewhere? Or what the start refuses."""
        if not problem.is_binary:
            values = torch.linalg.eigvalsh(problem.gram)
            if bool((values[:, 0] < -1e-10 * values.abs().amax(dim=1)).any()):
                return (
                    "the Gram matrix is indefinite and some weights have more than two levels, "
                    "which no diagonal shift makes convex; give up/down candidates or annealing."
                )
        return self.start.refuses(problem)

    def memory(self, problem: RoundingProblem) -> int:
        """Tables and work space of every row that is searched at once."""
        rows = min(torch.get_num_threads(), problem.g * problem.r)
        return super().memory(problem) + rows * _MATRICES * 8 * problem.d**2

    def find(self, problem: RoundingProblem, seed: int) -> Solution:
        """Optimum or incumbent of every row, with its lower bound."""
        start = self.start.solve(problem, seed=seed)
        levels = start.levels.cpu().numpy().copy()
        bound = torch.full(start.energy.shape, torch.nan, dtype=torch.float64)
        nodes = np.zeros(levels.shape[:2], np.int64)
        moving = fix_idle(problem)  # a weight that does not matter would double the search
        stop, late = Event(), alarm()

        def search_row(group: int, row: int) -> None:
            if (late() and (group, row) != (0, 0)) or stop.is_set():
                return
            one = RowSearch(
                spin_row(moving, group, row),
                levels[group, row],
                self.max_nodes,
                lambda: late() or stop.is_set(),
            )
            one.run()
            levels[group, row], nodes[group, row] = one.levels, one.nodes
            bound[group, row] = one.lower_bound

        for_each_row(problem.g, problem.r, search_row, "tree search", stop)
        if bool(bound.isnan().any()):  # rows that a limit kept from beginning
            bound = torch.where(bound.isnan(), eigenvalue_bound(problem).cpu(), bound)
        found = torch.from_numpy(levels).to(problem.device)
        return problem.solution(
            found,
            lower_bound=bound.to(problem.device),
            nodes=int(nodes.sum()),
            energy_start=float(start.energy.sum()),
            interrupted=stop.is_set(),
        )


class RowSearch:
    """The search of one row: incumbent, certified energy and nodes spent so far.

    Energies here are in the row's unit and without its offset.
    """

    def __init__(
        self, row: SpinRow, levels: np.ndarray, max_nodes: int, halted: Callable[[], bool]
    ) -> None:
        self._row, self._max_nodes, self._halted = row, max_nodes, halted
        self._spins = row.spins(levels)
        self._incumbent = self._energy(self._spins)
        self._certified = -np.inf  # below this energy there are no levels
        self._size = row.size(row.ends)  # of the terms that energies are summed from
        self.nodes = 0
        self._trusted = True  # what trees certify: their leaves have had the energies they tell
        # Steps so small that their products underflow leave nothing to search either.
        self.proven = not (row.matrix.any() or row.slope.any())

    @property
    def levels(self) -> np.ndarray:
        """(d,) int16 levels of the incumbent."""
        return self._row.levels(self._spins)

    @property
    def lower_bound(self) -> float:
        """Certified lower bound on the row's energy, output^2 per position."""
        if self._row.n == 0:
            return self._row.energy(self._spins)
        if self.proven:
            return self._absolute(self._incumbent - self._slack())
        return self._absolute(self._certified)

    def run(self) -> None:
        """Search until the optimum is proven or a limit is reached."""
        if self.proven:
            return
        if not self._halted():
            self._search_easily()
        if self.proven:
            return
        sdp = sdp_bound_of(self._row) / self._row.unit - self._row.offset
        self._certified = max(self._certified, sdp)
        if self._trusted and not self._spent():
            self._search_radii(*self._grow(fits=_HARD_FITS))
        if not self._trusted:
            self._certified = sdp

    def _search_easily(self) -> None:
        """Spend few nodes in a tree that takes no longer."""
        tree, _ = self._grow(min(1 + self._row.n // _EASY_SPINS_PER_FIT, _HARD_FITS))
        self._search_below(tree, self._ceiling(), min(_EASY_NODES, self._max_nodes))

    def _grow(self, fits: int) -> tuple[Tree, float]:
        """The tree in the smallest ellipsoid of the incumbent, and its lower bound, certified."""
        row = self._row
        shift, fitted = first_shift(row.matrix, row.slope, row.wide)
        charge = np.where(row.wide & (shift < 0), row.ends**2, 1.0)
        held = row.wide & fitted
        own = (shift, charge, fitted, held)
        base = fit_shift(row.matrix, row.slope, self._incumbent, 0.0, *own, self._halted)
        tree = grow_tree(row, shift, charge, fits, self._halted)
        # A root far below all energies leaves its rounding errors in those of the leaves.
        self._size = max(row.size(self._reach(tree, base)), row.n * abs(base))
        self._certified = max(self._certified, base - self._slack())
        return tree, base

    def _reach(self, tree: Tree, base: float) -> np.ndarray:
        """(n,) how far from 0 spins lie: the relaxed minimum's, and any not above the incumbent.

        One spin's way from the minimum costs at least its square times its price. The farthest
        level of a wide range is far outside the ellipsoid, and its rounding errors are no matter.
        """
        centre = np.abs(tree.centre[-1])
        radius = np.sqrt(max(self._incumbent - base, 0.0) / tree.price[-1])
        reach = np.empty(self._row.n)
        reach[tree.order] = np.maximum(
            centre, np.minimum(self._row.ends[tree.order], centre + radius)
        )
        return reach

    def _search_radii(self, tree: Tree, base: float) -> None:
        """Certify growing energies until the incumbent's is reached.

        Nodes grow like a power of the radius^2 = energy - base: at most n / 2, the volume's, and
        in between learned from the last two radii.
        """
        known = (self._certified - base) / (self._ceiling() - base)
        share, exponent, growth, before = max(0.5, known), self._row.n / 4, 1.0, 0
        while not self.proven and not self._spent():
            spent = self.nodes
            ceiling = base + share * (self._ceiling() - base) if share < 1 else self._ceiling()
            if not self._search_below(tree, ceiling, self._max_nodes - spent):
                return
            self._certified = max(self._certified, ceiling - self._slack())
            used = self.nodes - spent
            if before:
                exponent = np.log(max(used, 1) / before) / np.log(growth)
            growth = _GROWTH ** (1 / np.clip(exponent, 1, self._row.n / 2))
            share, before = share * growth, used

    def _search_below(self, tree: Tree, ceiling: float, budget: int) -> bool:
        """Search all of the tree below a ceiling; False if the budget or a limit ended it.

        Where leaves are found, the least of them is the optimum as soon as the tree is done. A leaf
        that does not have the energy it was found with also ends the search: its tables are wrong.
        """
        restart(tree)
        n, found = self._row.n, False
        while True:
            reached, used = search(tree, ceiling, min(budget, _NODES_PER_CALL))
            self.nodes += used
            budget -= used
            if reached < ceiling:
                ceiling, found = reached, True
                self._trusted = self._accept(tree, reached)
                if not self._trusted:
                    return False
            if tree.place[0] > n:
                self.proven = found or ceiling >= self._ceiling()
                return True
            if budget <= 0 or self._halted():
                return False

    def _accept(self, tree: Tree, cost: float) -> bool:
        """Take the tree's best leaf where it is better; False if `cost` is not its energy."""
        spins = np.empty_like(self._spins)
        spins[tree.order] = tree.best
        energy = self._energy(spins)
        if energy < self._incumbent:
            self._spins, self._incumbent = spins, energy
        return abs(energy - cost) <= self._slack()

    def _energy(self, spins: np.ndarray) -> float:
        return self._row.energy(spins) / self._row.unit - self._row.offset

    def _spent(self) -> bool:
        return self.nodes >= self._max_nodes or self._halted()

    def _ceiling(self) -> float:
        """What a better leaf has to undercut."""
        return self._incumbent - _TOLERANCE * abs(self._incumbent + self._row.offset)

    def _slack(self) -> float:
        """How far below a completed search's ceiling an overlooked leaf could be."""
        return _TOLERANCE * abs(self._incumbent + self._row.offset) + _ROUNDING * self._size

    def _absolute(self, energy: float) -> float:
        return self._row.unit * (energy + self._row.offset)
