# %% [markdown]
# # A first block
#
# A block is a small convolutional network, Conv -> ReLU -> pooling -> Linear. `cvxcnn` trains it by convex optimisation
# and says how far from optimal it is. Here it tells threes from eights in scikit-learn's digits.

# %%
import matplotlib.pyplot as plt
import numpy as np

from cvxcnn import ConvexConvBlock, PricedGates, nonconvex_objective
from cvxcnn.data import load_data

plt.rcParams["figure.dpi"] = 110

# %% [markdown]
# ## Ten lines
#
# `reg` is the factor of the weights' squares in Eq. 1, $\frac12 \|f - y\|^2 + \frac{\mathrm{reg}}2 \sum_i (\|u_i\|^2 +
# w_i^2)$: sums over images, not means. `reg_max` is the value from which on the best network is zero, so a share of it
# is a choice that doesn't depend on the scale of the images.

# %%
train, test = load_data("digits")
train, test = (part.subset(np.isin(part.labels, (3, 8))) for part in (train, test))
targets = np.where(train.labels == 3, 1.0, -1.0)

block = ConvexConvBlock(padding=0, pool_cells=1, bias=False, gates=PricedGates(gap=1e-3))
block.set_params(reg=0.02 * block.reg_max(train.images, targets))
block.fit(train.images, targets)

print(block.certificate_)
print(f"{np.mean((block.predict(test.images) > 0) == (test.labels == 3)):.1%} of {len(test)} test images are right")

# %% [markdown]
# The certificate has two parts. Over the filters that the block ended with, the gap is proved, and recomputed in
# float64 from the weights. Over *all* networks, with any number of filters of this size, the bound rests on a search
# for a filter that is missing: it is evidence, not proof, and the certificate says so. (Notebook 3 shows where it is a
# proof.)
#
# ## It is an ordinary network
#
# `to_torch` gives a module. Eq. 1 of that module, computed from its weights alone, is the objective of the block.

# %%
network = block.to_torch()
print(network)
print(block.result_.objective, nonconvex_objective(network, train.images, targets, reg=block.reg))

# %% [markdown]
# ## What it learned
#
# Each filter is drawn with the sign and size of its output weight. Red pixels count for the filter, blue ones against
# it.

# %%
filters = network[0].weight.detach().numpy()[:, 0]
readout = network[-1].weight.detach().numpy()[0]
order = np.argsort(-np.abs(readout))[:10]
figure, panels = plt.subplots(1, len(order), figsize=(9, 1.5), layout="constrained")
for axes, index in zip(panels, order, strict=True):
    size = np.abs(filters[index]).max()
    axes.imshow(filters[index], cmap="RdBu_r", vmin=-size, vmax=size)
    axes.set_title(f"{readout[index]:+.2f}", fontsize=9)
    axes.axis("off")
_ = figure.suptitle(f"the strongest of {block.n_neurons_} filters: + speaks for a three, - for an eight", fontsize=10)

# %% [markdown]
# ## How the search went
#
# After each round of pricing the block reports the objective and the bound over all filters found in the search.
# Training stops when their relative gap is at most the 0.1 % that was asked for.

# %%
history = block.result_.history
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot([step.iteration for step in history], [step.objective for step in history], "o-", label="objective (Eq. 1)")
axes.plot([step.iteration for step in history], [step.dual_bound for step in history], "k_-", label="searched bound")
axes.set_xticks(range(len(history)))
axes.set_xlabel("round of pricing")
_ = axes.legend(frameon=False)
