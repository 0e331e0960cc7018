"""Rounding the weights of neural networks as QUBOs: exact, by annealing, and relaxed (AdaRound).

The whole flow, on a network of your own and batches of images:

    import qubo_rounding as qr

    model, preprocessing = qr.load_model("efficientnet_lite0")
    images = qr.open_images("calibration/", preprocessing, limit=256)

    problems = dict(qr.problems(model, images))              # one RoundingProblem a layer
    problem = problems["_conv_stem"]
    nearest = qr.Nearest().solve(problem)
    better = qr.Annealing(sweeps=1000).solve(problem, seed=0)
    print(better.energy.sum() / nearest.energy.sum())        # how far nearest falls short

    rounded = qr.quantise(model, images, solver=qr.Annealing())
    # or learned on the layers' inputs, activation functions and quantised activations included
    learned = qr.quantise(
        model,
        images,
        reconstruction=qr.Reconstruction(iterations=1000, lr=1e-2, lam=1, normalise=True),
        settings=qr.LayerSettings(act_bits=8),
    )
    logits, float_logits = qr.predict(rounded.model, images), qr.predict(model, images)
    print(qr.evaluate(logits, images.labels, float_logits))
"""

from qubo_rounding.activation_finish import ActivationFinish
from qubo_rounding.allocator import reuse_freed_memory
from qubo_rounding.batch_norm import fold_batch_norm
from qubo_rounding.compare import compare
from qubo_rounding.equalisation import equalise
from qubo_rounding.evaluation import Evaluation, evaluate, predict
from qubo_rounding.frozen_grids import FrozenGrid, read_encodings
from qubo_rounding.gram_reduction import all_reduce_grams
from qubo_rounding.grid import Grid, MinMax, OutputMSE, WeightMSE, fit_grid
from qubo_rounding.imagenet import open_images
from qubo_rounding.layer_problem import LayerSettings, layer_problem
from qubo_rounding.layers import Layer, find_layers
from qubo_rounding.local_loss import bias_shift, local_problem, output_error
from qubo_rounding.models import Preprocessing, load_model
from qubo_rounding.network import QuantisedNetwork, nearest_network, problems, quantise
from qubo_rounding.network_comparison import compare_networks
from qubo_rounding.network_study import NetworkCase, NetworkMethod
from qubo_rounding.order_of_sums import fix_order_of_sums
from qubo_rounding.problem import ProblemError, RoundingProblem
from qubo_rounding.qubo.bounds import eigenvalue_bound, sdp_bound
from qubo_rounding.qubo.bqm import from_bqm, levels_from_sample, to_bqm, to_quadratic_model
from qubo_rounding.qubo.hessian import task_cost, task_hessian, task_problem
from qubo_rounding.qubo.layer_decisions import rounded_network, split_layers
from qubo_rounding.qubo.output_curvature import kronecker_hessian, output_hessians
from qubo_rounding.qubo.row_hessian import row_hessian_problem, row_weights
from qubo_rounding.qubo.samplers import SolverSampler
from qubo_rounding.qubo.true_loss import every_energy, every_loss, true_losses
from qubo_rounding.record_files import read_records, write_records
from qubo_rounding.records import NetworkRecord, Record
from qubo_rounding.relaxed.activations import (
    ActivationMinMax,
    ActivationMSE,
    ActivationPercentile,
    ActivationQuantisers,
    attach,
    calibrate_activations,
)
from qubo_rounding.relaxed.reconstruction import BlockReconstruction, Reconstruction
from qubo_rounding.relaxed.softening import (
    KeptLevels,
    PlainSigmoid,
    RectifiedSigmoid,
    Relaxation,
    StraightThrough,
    TemperatureSigmoid,
)
from qubo_rounding.scale_refit import refit_scale, round_with_scales
from qubo_rounding.segmentation import evaluate_dense
from qubo_rounding.solution import Solution
from qubo_rounding.solvers import (
    SOLVERS,
    AdaRound,
    Annealing,
    Auto,
    BestOf,
    Certified,
    CrossEntropy,
    Descent,
    DimodSampler,
    Enumeration,
    FirstThatAccepts,
    Given,
    Gptq,
    KBest,
    Klein,
    Nearest,
    RefusedError,
    Solver,
    Stochastic,
    Tabu,
    TreeSearch,
    make_solver,
)
from qubo_rounding.spread import Spread
from qubo_rounding.statistics import Gram, collect_grams, load_grams, save_grams
from qubo_rounding.study import Case
from qubo_rounding.watch import watching
from qubo_rounding.workers import cluster, processes

__version__ = "0.1.0"

fix_order_of_sums()

__all__ = [
    "SOLVERS",
    "ActivationFinish",
    "ActivationMSE",
    "ActivationMinMax",
    "ActivationPercentile",
    "ActivationQuantisers",
    "AdaRound",
    "Annealing",
    "Auto",
    "BestOf",
    "BlockReconstruction",
    "Case",
    "Certified",
    "CrossEntropy",
    "Descent",
    "DimodSampler",
    "Enumeration",
    "Evaluation",
    "FirstThatAccepts",
    "FrozenGrid",
    "Given",
    "Gptq",
    "Gram",
    "Grid",
    "KBest",
    "KeptLevels",
    "Klein",
    "Layer",
    "LayerSettings",
    "MinMax",
    "Nearest",
    "NetworkCase",
    "NetworkMethod",
    "NetworkRecord",
    "OutputMSE",
    "PlainSigmoid",
    "Preprocessing",
    "ProblemError",
    "QuantisedNetwork",
    "Reconstruction",
    "Record",
    "RectifiedSigmoid",
    "RefusedError",
    "Relaxation",
    "RoundingProblem",
    "Solution",
    "Solver",
    "SolverSampler",
    "Spread",
    "Stochastic",
    "StraightThrough",
    "Tabu",
    "TemperatureSigmoid",
    "TreeSearch",
    "WeightMSE",
    "all_reduce_grams",
    "attach",
    "bias_shift",
    "calibrate_activations",
    "cluster",
    "collect_grams",
    "compare",
    "compare_networks",
    "eigenvalue_bound",
    "equalise",
    "evaluate",
    "evaluate_dense",
    "every_energy",
    "every_loss",
    "find_layers",
    "fit_grid",
    "fold_batch_norm",
    "from_bqm",
    "kronecker_hessian",
    "layer_problem",
    "levels_from_sample",
    "load_grams",
    "load_model",
    "local_problem",
    "make_solver",
    "nearest_network",
    "open_images",
    "output_error",
    "output_hessians",
    "predict",
    "problems",
    "processes",
    "quantise",
    "read_encodings",
    "read_records",
    "refit_scale",
    "reuse_freed_memory",
    "round_with_scales",
    "rounded_network",
    "row_hessian_problem",
    "row_weights",
    "save_grams",
    "sdp_bound",
    "split_layers",
    "task_cost",
    "task_hessian",
    "task_problem",
    "to_bqm",
    "to_quadratic_model",
    "true_losses",
    "watching",
    "write_records",
]
