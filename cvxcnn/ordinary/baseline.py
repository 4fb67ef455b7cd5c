"""The rival: the same Conv+ReLU+pooling+Linear block, trained on Eq. 1 with Adam or SGD as torch users would."""

from __future__ import annotations

import time

from torch import Tensor

from ..core.checks import as_int, as_number, is_number
from ..core.plainly import plainly
from ..data.checks import check_weights
from ..errors import InputError
from ..patches.patches import Patches
from .minibatch import OPTIMIZERS, BaselineCallback, BaselineResult, Minibatches, check_problem
from .two_phase import two_phases

__all__ = ["BaselineCallback", "BaselineResult", "train_baseline"]

TRAININGS = (*OPTIMIZERS, "two-phase")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not is_number(value, above=0):
            raise InputError(f"{name} must be a positive number; got {value!r}.")


@plainly
def train_baseline(
    patches: Patches,
    targets: Tensor,
    reg: float,
    width: int,
    *,
    connect: str = "dense",
    optimizer: str = "adam",
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch_size: int = 64,
    warmup: float = 0.05,
    tol: float = 1e-3,
    seed: int = 0,
    loss: str = "squared",
    sample_weight: Tensor | None = None,
    softplus: float | None = None,
    callback: BaselineCallback | None = None,
) -> BaselineResult:
    """Train one Conv+ReLU+pooling+Linear block on Eq. 1 by minibatch Adam or SGD, or in two phases.

        minimise  loss(f, Y) + reg/2 (sum_i ||u_i||^2 + sum_ico w_ico^2),
        f_jo = sum_ic w_ico sum_k P_ck (x_jk . u_i)_+

    with sums over images and outputs, not means; for the squared loss, 1/2 ||f - Y||_F^2.

    Parameters
    ----------
    patches : Patches
        Patches of the n training images. Training runs in float32, whatever their dtype.
    targets : Tensor, shape (n, outputs)
        Y.
    reg : float
        lam > 0, as in Eq. 1; in two phases, lam >= 0.
    width : int
        m, number of neurons, 1 or more.
    connect : {"dense", "group"}
        "dense": every neuron feeds every (cell, output). "group": each feeds one, fixed at the start and
        spread evenly over cells, outputs and signs: the network of the group program. Take a multiple of
        2 * cells * outputs neurons then.
    optimizer : {"adam", "sgd", "two-phase"}
        Adam with betas (0.9, 0.99), or SGD with Nesterov momentum 0.9. "two-phase" is Adam, a perturbation of the
        filters, and a convex second phase for the readout (``train_two_phase``, which hands back its certificate).
    learning_rate : float or None
        Peak rate of the first cycle; steps follow gradients of Eq. 1 divided by n. None for
        ``default_learning_rate``; see ``tune``.
    epochs : int or None
        Most passes over the images; None for as many as make 8,050 steps, and at least 20.
    batch_size : int
        Images a step.
    warmup : float
        Part of each cycle in which the rate rises, in [0, 1).
    tol : float
        Stop after a cycle that improves the objective by less than this, relatively.
    seed : int
        Of the starting weights and the order of the images. The same seed on the same machine gives the
        same result.
    loss : str
        Name of a loss.
    sample_weight : Tensor, shape (n,), optional
        The loss is sum_j s_j l(f_j, Y_j) with these s_j >= 0.
    softplus : float, optional
        The zeta of softplus neurons log(1 + exp(zeta t)) / zeta in place of ReLUs. The objective is then Eq. 1 with
        them, and no bound on that of ReLU networks says anything of it.
    callback : callable, optional
        Called as ``callback(epoch, seconds, objective)`` about ten times a cycle; may raise to stop.

    Returns
    -------
    BaselineResult
        The best weights of all cycle ends.

    Raises
    ------
    InputError
        If an argument is out of its range, unknown, or the targets don't fit the patches.
    SolverError
        If training diverges at every one of six learning rates, each a quarter of the one before.

    Notes
    -----
    The learning rate rises linearly, then falls by half a cosine to a thousandth of its peak, in cycles of
    1,150, 2,300, 4,600, ... steps (whole epochs), each peak lower by sqrt(2) (warm restarts, Loshchilov &
    Hutter 2017, arXiv:1608.03983). Training goes on until a whole cycle gains less than ``tol``. Weights
    start at random with ||u_i|| = ||w_i||, scaled so that ||f|| = 0.1 ||Y||. At each cycle's end every neuron
    is rebalanced (``rebalance``), which changes no output and never raises the penalty, and neurons shorter
    than 3 % of the longest become zero if Eq. 1 is no higher without them.

    Tuned on the training objective alone, reached in about 15 s, on two blocks: the 1,437 training digits
    (3x3 patches, 2x2 cells, d = 10, reg 3.5, 200 neurons) and 64 ReLU maps of such a block (d = 577, reg 2).
    Tried: rates in factors of 1.4 to 3; batches of 32, 64, 128, 256 and all images; second-moment decay 0.99
    to 0.999; starting scales; one cycle against several; a full-batch finish. On the digits, batches of 64
    reached 297.7 to 298.1, full-batch Adam in the same time 311.6.

    Examples
    --------
    >>> import torch
    >>> from cvxcnn.patches import PatchGeometry
    >>> images = torch.linspace(-1, 1, 36, dtype=torch.float64).view(4, 1, 3, 3)
    >>> patches = Patches(images, PatchGeometry(kernel_size=2))
    >>> targets = torch.tensor([[1.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    >>> result = train_baseline(patches, targets, reg=0.1, width=4, epochs=50)
    >>> result.readout.shape, result.objective < 1.0  # zero weights give 1/2 ||Y||^2 = 1
    (torch.Size([4, 1, 1]), True)
    """
    check_problem(patches, targets, width, connect, optimizer, TRAININGS)
    width, batch_size = int(width), as_int("batch_size", batch_size)
    epochs = None if epochs is None else as_int("epochs", epochs)
    if optimizer == "two-phase":
        if not is_number(reg) or reg < 0:
            raise InputError(f"reg must be a number >= 0; got {reg!r}.")
    else:
        _check_positive(reg=reg)
    _check_positive(tol=tol, **({} if learning_rate is None else {"learning_rate": learning_rate}))
    if not is_number(warmup, below=1) or warmup < 0:
        raise InputError(f"warmup is the part of a cycle in which the rate rises, in [0, 1); got {warmup!r}.")
    how = Minibatches(
        connect=connect,
        optimizer="adam" if optimizer == "two-phase" else optimizer,
        learning_rate=None if learning_rate is None else float(learning_rate),
        epochs=epochs,
        batch_size=batch_size,
        warmup=float(warmup),
        tol=float(tol),
        seed=int(seed),
        loss=loss,
        weights=None if sample_weight is None else check_weights(sample_weight, len(targets), device=targets.device),
        softplus=None if softplus is None else as_number("softplus", softplus),
        callback=callback,
    )
    if optimizer != "two-phase":
        return how.train(patches, targets, float(reg), width)
    began = time.perf_counter()
    found = two_phases(patches, targets, float(reg), width, how)
    return found.as_baseline(float(reg), time.perf_counter() - began)
