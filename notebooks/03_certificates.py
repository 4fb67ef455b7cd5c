# %% [markdown]
# # What a certificate says
#
# A block that is trained over *some* filters is optimal over those. Whether it is optimal over all filters is decided
# by the dual of Eq. 1: with the residual $\nu = y - f$ and $A(u) = \nu^\top \mathrm{pooled}(R u)_+$, no unit filter $u$
# may have
#
# $$ |A(u)| > \mathrm{reg}. $$
#
# Finding the $u$ that breaks this most is the *pricing* problem. For patches of two pixels a unit filter is an angle,
# so the whole problem can be drawn.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch

from cvxcnn import ConvexConvBlock, PricedGates
from cvxcnn.data import load_data
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty
from cvxcnn.pricing.branch_and_bound import bound_responses
from cvxcnn.program import filter_program
from cvxcnn.solvers import get_solver

plt.rcParams["figure.dpi"] = 110

# %% [markdown]
# ## Patches of 1 x 2 pixels
#
# Forty digits, threes and eights, each pixel shifted by the mean so that patches point in all directions.

# %%
train, _ = load_data("digits")
rows = np.flatnonzero(np.isin(train.labels, (3, 8)))[:40]
images = torch.from_numpy(train.images[rows] - train.images[rows].mean())
targets = torch.from_numpy(np.where(train.labels[rows] == 3, 1.0, -1.0))[:, None]

patches = Patches(images, PatchGeometry(kernel_size=(1, 2), pooling="mean"))
angles = torch.linspace(0, 2 * math.pi, 1441, dtype=torch.float64)[:-1]
circle = torch.stack([angles.cos(), angles.sin()], dim=1)
responses = patches.relu_features(circle)[:, 0]  # (n, angles): the features h(u) of every filter on the circle
reg = 0.02 * float((responses.T @ targets).abs().max())


# %% [markdown]
# ## Pricing by hand
#
# Begin with one filter. Each round solves the group lasso over the filters at hand, looks at $|A(u)| / \mathrm{reg}$ on
# the circle, and adds the angle where it is largest.

# %%
filters = circle[:1]
rounds = []
for _ in range(12):
    program = filter_program(patches, filters, targets, reg, penalty=DensePenalty())
    result = get_solver("auto", program, tol=1e-9).solve(program)
    nu = program.dual_point(program.design.predict(result.weights))
    prices = (responses.T @ nu).abs()[:, 0] / reg
    used = filters[result.weights.flatten(1).any(dim=1)]
    rounds.append((prices, used, result.objective, float(prices.max())))
    if prices.max() <= 1 + 1e-3:
        break
    filters = torch.cat([filters, circle[prices.argmax()][None]])
for index, (_, used, objective, worst) in enumerate(rounds):
    print(f"round {index}: {len(used)} filters in use, objective {objective:.4f}, worst price {worst:.4f}")

# %% tags=["picture"]
shown = sorted({0, 1, 2, len(rounds) - 1} & set(range(len(rounds))))
figure, panels = plt.subplots(1, len(shown), figsize=(10, 2.9), sharey=True, layout="constrained")
for axes, index in zip(panels, shown, strict=True):
    prices, used, objective, worst = rounds[index]
    axes.plot(torch.rad2deg(angles), prices, color="C0", linewidth=1.5)
    axes.fill_between(torch.rad2deg(angles), 1, prices, where=(prices > 1).numpy(), color="C3", alpha=0.35)
    axes.axhline(1, color="black", linewidth=1)
    places = torch.rad2deg(torch.atan2(used[:, 1], used[:, 0])) % 360
    axes.plot(places, torch.ones(len(used)), "o", color="C1", markersize=6)
    if worst > 1.001:
        axes.plot(math.degrees(float(angles[prices.argmax()])), worst, "v", color="C3", markersize=7)
    axes.set_title(f"round {index}: objective {objective:.2f}", fontsize=10)
    axes.set_xticks(range(0, 361, 90))
    axes.set_yscale("log")
    axes.set_ylim(0.05, 50)
    axes.set_xlabel("direction of the filter (degrees)")
_ = panels[0].set_ylabel("price, |A(u)| / reg")

# %% [markdown]
# Orange: filters in use, whose price is one. Red: filters that would lower the objective; the triangle is added next.
# In the last round none of the angles is more than 0.1 % above the line.
#
# That is no proof: between two of the 1,440 angles the price may be higher. Branch and bound covers the circle by arcs
# and bounds the price on each of them. With $m$ the proved bound, $\nu / m$ satisfies the constraint for every filter,
# and its dual value is a lower bound of Eq. 1 with any number of neurons.

# %%
found = bound_responses(patches, nu, DensePenalty(), floor=reg, tol=1e-6)
print(f"worst price: at least {float(found.best[0]) / reg:.6f}, at most {float(found.upper[0]) / reg:.6f} (proved)")
print(f"{found.regions} arcs bounded")
scale = (reg / found.upper).clamp_max(1.0)
bound = program.loss.dual_value(nu, targets, scale)
print(f"objective {result.objective:.5f}, proved bound {bound:.5f}")

# %% [markdown]
# ## The same by `fit`
#
# With `gates="priced"` a block does all this, and proves its last bound where patches have at most four numbers.

# %%
block = ConvexConvBlock(
    kernel_size=(1, 2), padding=0, pool_cells=1, bias=False, gates=PricedGates(gap=1e-6, starts=32), reg=reg
)
block.fit(images, targets)
print(block.certificate_)

# %% [markdown]
# ## Patches of 2 x 2 pixels
#
# The filters are now the points of a sphere in four dimensions. It can't be drawn, but it can be covered.

# %%
block = ConvexConvBlock(kernel_size=2, padding=0, pool_cells=1, bias=False, gates=PricedGates(gap=1e-3), reg=reg)
block.fit(images, targets)
certificate = block.certificate_
print(certificate)
print(f"Eq. 1 of the best network of all is between {certificate.global_bound:.4f} and {certificate.objective:.4f}")

# %% [markdown]
# Patches of more numbers are searched, not covered: the number of regions grows exponentially with the dimension. The
# certificate then says "if none of the directions that a search missed is worse", and `kind` is "searched".

# %%
wide = ConvexConvBlock(kernel_size=3, padding=0, pool_cells=1, bias=False, gates=PricedGates(gap=1e-2), reg=reg)
print(wide.fit(images, targets).certificate_)
