"""The scripts of this folder: what each answers, where it ran and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Script:
    """A module with a `main` part.

    Args:
        module: its name below `analysis`.
        question: what it answers.
        minutes: on `cores` cores of this project's machine, at kit scale.
        cores: that it uses.
        scales: at which it can run, with the arguments that each needs.
    """

    module: str
    question: str
    minutes: float
    cores: int = 2
    scales: tuple[tuple[str, tuple[str, ...]], ...] = (("kit", ()),)

    def arguments(self, scale: str) -> tuple[str, ...] | None:
        """What the command line needs for a scale; None where the script has no such scale."""
        return dict(self.scales).get(scale)


EVERYWHERE = (("demo", ()), ("kit", ()), ("full", ()))
WITH_DEMO = (("demo", ("--scale", "demo")), ("kit", ()))
WITH_FULL = (("kit", ()), ("full", ("--scale", "full")))

SCRIPTS = (
    Script("toy", "eq 7-8: where is nearest wrong?", 0.2, 1, EVERYWHERE),
    Script("headline", "five ways over the best bound, layer by layer", 20, 2, WITH_DEMO),
    Script("hard_problems", "what makes a problem hard, where nearest falls short", 2),
    Script("stochastic_draws", "Table 1 and Figure 1: cost against accuracy of 100 draws", 30),
    Script("relaxation_pictures", "Figures 2 and 3: the regulariser, where weights end", 1),
    Script("calibration_images", "Figure 4: how many images, and of which kind", 45),
    Script("literature", "Table 7: others' ways and ours, W4A32 and W4A8", 45),
    Script("energy_and_loss", "does lower energy mean a better network?", 25),
    Script("calibration_size", "64, 256, 1,000 images: what carries over, shrinking", 25),
    Script("whole_networks", "every solver on whole networks, bias kept and refitted", 70),
    Script("problem_files", "every solver on every problem file of two networks", 15),
    Script("proven_optima", "which rows can be proven, at 4 and 3 bits, in what time", 40, 1),
    Script("solver_ratios", "every solver against the proven optima, held out beside", 25, 1),
    Script("task_loss", "Table 2: is eq 13 worse than eq 20, or solved worse?", 60, 1),
    Script("dimod_samplers", "dimod's samplers, composites and ours on the same rows", 2, 1),
    Script("relaxation_tables", "Tables 3 to 6 and 8", 290, 2, WITH_FULL),
    Script("ablation", "what each ingredient brings, and the best networks", 600),
    Script("cost_model", "70 billion weights on many workers, on paper, and a check", 1),
    Script("exported_networks", "an exported network in onnxruntime, its packed size", 5),
    Script("what_holds", "under load, faults, bad input: what was tried, what lost", 5),
    Script("benchmarks.auto_against_adaround", "`auto` against AdaRound tuned per layer", 300),
    Script("benchmarks.annealing_against_adaround", "energy and time, layer by layer", 9),
    Script("benchmarks.network_speed", "minutes a network: AdaRound on Grams, `auto`", 30),
    Script("benchmarks.bounds_by_width", "lower bounds: seconds, floor, tightness", 5, 1),
    Script("benchmarks.k_best_widths", "K-best by width and order", 2, 1),
    Script("benchmarks.speed", "annealing, AdaRound, Grams, activations: floors", 2),
    Script("benchmarks.reconstruction_speed", "one reconstruction iteration, floor", 1),
    Script("benchmarks.allocator", "forward passes with freed memory reused", 2),
    Script("benchmarks.memory_budgets", "resident memory within the budget?", 15),
    Script("benchmarks.scaling", "annealing by rows, columns, sweeps and threads", 1),
    Script("benchmarks.wide_layer_memory", "d = 4,608: memory beside the Gram matrix", 4),
    Script("benchmarks.killed_runs", "runs killed at random moments: the same bits?", 20),
    Script("benchmarks.soak", "two hundred small networks in one process: memory", 5),
    Script("benchmarks.fuzzed_problems", "100,000 problem files of every wrongness", 25, 1),
)
# They need an environment or a device of their own, see their docstrings: no part of `all`.
APART = (
    Script("benchmarks.resnet18_shapes", "sweeps and iterations on a GPU", 3),
    Script("benchmarks.adaround_peers", "one layer by AIMET, brevitas and ours", 60),
    Script("benchmarks.other_samplers", "rows by openjij, dwave-samplers, SB and ours", 20, 1),
)
