# %% [markdown]
# # Explaining a prediction
#
# Which pixels does the output for a class rest on? `cvxcnn.explain` answers with maps, for the exported network of a
# block as for any torch module with `nn.ReLU` modules, measures how sparse they are, and checks whether they depend on
# the weights at all.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from cvxcnn import ConvexConvBlock, PricedGates
from cvxcnn.activations.neurons import Neurons, to_module
from cvxcnn.data import limit, load_data, one_hot
from cvxcnn.explain import attribute, bootstrap_interval, gini, sanity_check
from cvxcnn.ordinary import train_baseline
from cvxcnn.patches import Patches

plt.rcParams["figure.dpi"] = 110

# %% [markdown]
# ## Two networks
#
# One block for ten digits, and the same architecture trained with Adam on the same images and with the same `reg`.

# %%
train, test = load_data("digits")
train = limit(train, 300, seed=0)
targets = one_hot(train.labels, 10)

block = ConvexConvBlock(bias=False, gates=PricedGates(gap=5e-3))
block.set_params(reg=0.01 * block.reg_max(train.images, targets)).fit(train.images, targets)
convex = block.to_torch()

patches = Patches(torch.from_numpy(train.images), block.geometry_)
rival = train_baseline(patches, torch.from_numpy(np.asarray(targets)), block.reg, 100, epochs=460)
used = rival.filters.any(dim=1)
neurons = Neurons(rival.filters[used], rival.readout[used], torch.zeros(10, dtype=torch.float64))
ordinary = to_module(neurons, block.geometry_, block.image_shape_, intercept=False)

networks = {"convex": convex, "Adam": ordinary}
for name, network in networks.items():
    with torch.no_grad():
        right = (network(torch.from_numpy(test.images)).argmax(dim=1).numpy() == test.labels).mean()
    print(f"{name}: {right:.1%} of the test images are right")

# %% [markdown]
# ## Maps
#
# For the class that each image has. "cam" and "gradcam" have the resolution of the feature maps, "gradient" that of the
# image.

# %%
chosen = [int(np.flatnonzero(test.labels == digit)[0]) for digit in (0, 3, 8)]
images, labels = test.images[chosen], test.labels[chosen]
methods = ("cam", "gradcam", "gradient")
figure, grid = plt.subplots(3, 7, figsize=(9, 4), layout="constrained")
for row, image in enumerate(images):
    grid[row, 0].imshow(image[0], cmap="gray")
columns = [(method, name) for method in methods for name in networks]
for column, (method, name) in enumerate(columns, start=1):
    maps = attribute(networks[name], images, labels, method)
    for row, values in enumerate(maps):
        size = np.abs(values).max() or 1.0
        grid[row, column].imshow(values, cmap="RdBu_r", vmin=-size, vmax=size)
    grid[0, column].set_title(f"{method}\n{name}", fontsize=9)
grid[0, 0].set_title("image", fontsize=9)
for axes in grid.flat:
    axes.set_xticks([])
    axes.set_yticks([])

# %% [markdown]
# CAM is exact for these networks: summed over the map's pixels, with each cell's mean, it gives the output itself. Here
# the whole output for the class is compared with the sum.

# %%
maps = attribute(convex, images, labels, "cam")
outputs = block.predict(images)[np.arange(3), labels]
# A cell of mean pooling has 4 x 4 of the 8 x 8 places.
print(np.round(maps.sum(axis=(1, 2)) / 16, 6), np.round(outputs, 6))

# %% [markdown]
# ## How sparse are they?
#
# The Gini index is 0 for a map whose pixels all count the same, and near 1 for a map that rests on a few. Means over
# 100 test images, with 95 % bootstrap intervals.

# %%
for method in methods:
    for name, network in networks.items():
        interval = bootstrap_interval(gini(attribute(network, test.images[:100], test.labels[:100], method)))
        print(f"{method:>9} {name:>7}: {interval.mean:.3f}  [{interval.low:.3f}, {interval.high:.3f}]")

# %% [markdown]
# ## Can they be trusted?
#
# A map that explains a network has to change when the network's weights are replaced by random ones (Adebayo et al.
# 2018). Rank correlation with the original maps: 1 means that nothing has changed, about 0 that nothing was left.

# %%
for method in methods:
    for step in sanity_check(convex, test.images[:50], test.labels[:50], method):
        changed = step.randomised or "nothing"
        print(f"{method:>9}, randomised: {changed}: rank correlation {np.nanmean(step.correlation):+.2f}")

# %% [markdown]
# With random weights the gradient and Grad-CAM lose nearly all of their order. CAM keeps much of it: part of what it
# shows is where the image has ink, whatever the network.
