# %% [markdown]
# # Landscapes
#
# When does ordinary training reach a global optimum? The literature answers for special cases: Gaussian images, wide
# networks, tangent kernels. `cvxcnn.theory` has the formulas, and the convex program says what the optimum is, so that
# they can be looked at side by side.

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch

from cvxcnn import ConvexConvBlock, nonconvex_objective, polish
from cvxcnn.activations.neurons import Neurons
from cvxcnn.data import load_data
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.theory import (
    block_ntk,
    critical_points,
    diagnose,
    infinite_gram,
    planted_gaussian,
    population_risk,
    spurious_minimum,
    two_layer_population_risk,
)

plt.rcParams["figure.dpi"] = 110

# %% [markdown]
# ## One filter on Gaussian images
#
# A filter $w$ looks at $k$ patches of standard normal numbers and adds its responses; a teacher $w^*$ of the same form
# gives the targets. The expected squared error is a formula in $|w|$ and the angle between $w$ and $w^*$
# (Brutzkus & Globerson 2017, with the constant that is missing in print). Three points are critical.

# %%
teacher, k = np.array([1.0, 0.0]), 4
points = critical_points(teacher, patches=k)
axis = np.linspace(-1.6, 1.6, 81)
risks = np.array([[population_risk([x, y], teacher, patches=k) for x in axis] for y in axis])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=(1.2, 1))
levels = np.geomspace(0.02, risks.max(), 16)
filled = left.contourf(axis, axis, risks.clip(levels[0]), levels=levels, cmap="viridis", norm="log")
figure.colorbar(filled, ax=left, format="%.2g", ticks=[0.02, 0.1, 0.5, 2, 10])
cut = np.linspace(-1.6, 1.6, 401)
right.plot(cut, [population_risk([x, 0.0], teacher, patches=k) for x in cut], color="C0")
for point, marker in zip(points, "*Xo", strict=True):
    place = np.asarray(point.filter)
    left.plot(*place, marker, color="white", markeredgecolor="black", markersize=13)
    right.plot(place[0], point.risk, marker, color="white", markeredgecolor="black", markersize=11, label=point.kind)
left.set(xlabel="$w_1$", ylabel="$w_2$", title=f"expected squared error, k = {k}", aspect="equal")
right.set(xlabel="$w_1$, along the teacher", ylabel="expected squared error")
_ = right.legend(frameon=False)

# %% [markdown]
# The circle, opposite to the teacher, looks like a minimum on the cut to the right, and is one for patches of a single
# number. Here there is a way out sideways, but the surface is flat there: the error falls with the third power of the
# step only.

# %% [markdown]
# ## A spurious minimum
#
# With a readout weight for each patch, the point opposite to the teacher is a true local minimum for some teachers (Du,
# Lee, Tian, Poczos & Singh 2018). Adam is started beside it, on 400 images.

# %%
teacher, readout = np.array([1.0, 0.5, -0.5]), np.array([1.0, -1.0, 1.0, -1.0])
point = spurious_minimum(teacher, readout)
print(f"a local minimum: {point.is_minimum}, expected squared error {point.risk:.3f}")

images, targets = planted_gaussian(400, teacher, 4, readout=readout, random_state=0)
geometry = PatchGeometry((1, 3), (1, 3), 0, "sum", 2)
rows, reg = Patches(images, geometry).unfold(), 4.0
generator = torch.Generator().manual_seed(1)
u = torch.as_tensor(point.filter)[None] + 0.1 * torch.randn(1, 3, generator=generator, dtype=torch.float64)
w = torch.as_tensor(point.readout).view(1, 4, 1).clone()
u.requires_grad_(), w.requires_grad_()
for rate in (1e-2, 1e-3, 1e-4, 1e-5):
    optimizer = torch.optim.Adam([u, w], lr=rate)
    for _ in range(300):
        optimizer.zero_grad()
        outputs = torch.einsum("nki,iko->n", (rows @ u.T).relu(), w)
        value = 0.5 * (outputs - targets).square().sum() + 0.5 * reg * (u.square().sum() + w.square().sum())
        value.backward()
        optimizer.step()
stuck = u.detach(), w.detach()
risk = two_layer_population_risk(stuck[0][0], stuck[1][0, :, 0], teacher, readout)
print(f"Adam ends at Eq. 1 = {value.item():.1f}, with an expected squared error of {risk:.3f}")

# %% [markdown]
# The convex program has no such minimum, and `polish`, which makes Adam's network its start, leaves it.

# %%
block = ConvexConvBlock(
    kernel_size=(1, 3), stride=(1, 3), padding=0, bias=False, pooling="sum", pool_cells=2, reg=reg
).fit(images, targets)
module = Neurons(*stuck, torch.zeros(1, dtype=torch.float64)).to_module(geometry, (1, 2, 6), intercept=False)
better = polish(module, images, targets, reg)
print(f"Adam     {nonconvex_objective(module, images, targets, reg):8.2f}")
print(f"polished {better.objective:8.2f}")
print(f"convex   {block.result_.objective:8.2f}, bound {block.certificate_.global_bound:.2f}")

# %% [markdown]
# ## What `diagnose` says
#
# It doesn't know the teacher, only the two networks and the bound.

# %%
for found in diagnose(block, images, targets, rivals=[stuck]).blocks:
    print(f"{found.method}: {found.verdict.upper()}")
    print(textwrap.fill("Measured: " + " ".join(found.measured), 110, subsequent_indent="    "))
    print(textwrap.fill("Theorems: " + " ".join(found.theory), 110, subsequent_indent="    "), end="\n\n")

# %% [markdown]
# Read aloud: both gradients are small once the slopes at kinks are chosen well, so both networks are stationary. Only
# the bound tells them apart. One is optimal within its certificate; of the other a better network is known, and nothing
# near it is better: a spurious local minimum. What theorems say of either is little, as most of their premises fail,
# and none of them is about a loss with a regulariser.

# %% [markdown]
# ## The tangent kernel along training
#
# Theorems on wide networks rest on the smallest eigenvalue of $K = J J^\top$, $J$ the Jacobian of the outputs in the
# weights: while it is positive, the loss falls at a rate of twice that. Forty digits, threes and eights, and sixty
# neurons trained by Adam; beside it the optimum of the same Eq. 1, and the kernel of infinite width.

# %%
train, _ = load_data("digits")
chosen = np.flatnonzero(np.isin(train.labels, (3, 8)))[:40]
images = torch.from_numpy(train.images[chosen])
targets = torch.from_numpy(np.where(train.labels[chosen] == 3, 1.0, -1.0))[:, None]
reg = 0.5
block = ConvexConvBlock(reg=reg).fit(images, targets)
patches = Patches(images, block.geometry_)
rows, pool = patches.unfold(), patches.pool

generator = torch.Generator().manual_seed(0)
u = 0.3 * torch.randn(60, patches.dim, generator=generator, dtype=torch.float64)
w = 0.1 * torch.randn(60, 4, 1, generator=generator, dtype=torch.float64)
u.requires_grad_(), w.requires_grad_()
optimizer = torch.optim.Adam([u, w], lr=1e-2)
steps, spectra = [], []
for step in range(601):
    optimizer.zero_grad()
    outputs = torch.einsum("ck,nki,ico->no", pool, (rows @ u.T).relu(), w)
    value = 0.5 * (outputs - targets).square().sum() + 0.5 * reg * (u.square().sum() + w.square().sum())
    value.backward()
    if step in (0, 3, 10, 30, 60, 100, 200, 400, 600):
        steps.append(step)
        spectra.append(np.linalg.eigvalsh(np.asarray(block_ntk(rows, u, w, pool)))[::-1])
    optimizer.step()
optimum = np.linalg.eigvalsh(np.asarray(block_ntk(rows, block.neurons_.filters, block.neurons_.readout, pool)))[::-1]
infinite = np.linalg.eigvalsh(np.asarray(infinite_gram(rows, pool)))[::-1]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for place, label in ((0, "largest"), (19, "20th"), (39, "smallest")):
    (line,) = left.plot(
        np.maximum(1, steps), [spectrum[place] for spectrum in spectra], "o-", markersize=4, label=label
    )
    left.axhline(optimum[place].clip(1e-12), color=line.get_color(), linestyle="--", linewidth=1)
left.set(xscale="log", yscale="log", xlabel="step of Adam", ylabel="eigenvalue of K", ylim=(1e-8, None))
left.legend(frameon=False, title="dashed: the convex optimum", loc=(0.05, 0.13))
kernels = {"at the start": spectra[0], "after Adam": spectra[-1], "convex optimum": optimum, "infinite width": infinite}
for label, spectrum in kernels.items():
    right.plot(np.arange(1, 41), (spectrum / spectrum[0]).clip(1e-12), label=label)
right.set(yscale="log", xlabel="number", ylabel="eigenvalue, of the largest", ylim=(1e-9, None))
right.legend(frameon=False)
bound = block.certificate_.global_bound
print(f"Eq. 1: Adam {value.item():.3f} with 60 neurons, convex {block.result_.objective:.3f} with {block.n_neurons_}")
print(f"       bound over all networks {bound:.3f}")
print(f"the guarantee: {spectra[-1][0] / spectra[-1][-1]:.1e} times ln(1/eps) steps; Adam took {steps[-1]}")

# %% [markdown]
# The smallest eigenvalue stays positive for Adam's sixty neurons: the guarantee of zero loss (without a regulariser) is
# true, and useless, as the number of steps says. Training isn't lazy either: the eigenvalues fall on the way to the
# optimum. There a few neurons are enough, and their kernel is the least regular of all. What is guaranteed by width and
# what is optimal are different things, and the bound is about the second one.
