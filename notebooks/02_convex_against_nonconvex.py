# %% [markdown]
# # Convex against non-convex
#
# The same layers, trained twice on the same inputs with the same `reg`: by convex optimisation, and in the ordinary way
# with Adam, warm-up and cosine restarts. How low does each get on Eq. 1, and how low could anything get?
#
# To be quick this uses 200 training digits, small networks and 2,300 to 3,450 steps of Adam; `python -m cvxcnn.train`
# does the same on all the digits, with 200 neurons and up to 8,050 steps.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from cvxcnn import ConvexConvBlock, LayerwiseCNN, PricedGates
from cvxcnn.activations.neurons import Neurons
from cvxcnn.data import limit, load_data, one_hot
from cvxcnn.models.stage import Stage
from cvxcnn.ordinary import train_baseline
from cvxcnn.patches import Patches

plt.rcParams["figure.dpi"] = 110
BLUE, ORANGE = "C0", "C1"

# %%
train, test = load_data("digits")
train = limit(train, 200, seed=0)
targets = one_hot(train.labels, 10)

# %% [markdown]
# ## One block, several seeds
#
# Ordinary training ends somewhere else for each seed. The convex block comes with a lower bound under all of them,
# which for filters of 2 x 2 pixels is proved. First, threes against eights.

# %%
pair = train.subset(np.isin(train.labels, (3, 8)))
signs = np.where(pair.labels == 3, 1.0, -1.0)
block = ConvexConvBlock(kernel_size=2, padding=0, pool_cells=1, bias=False, gates=PricedGates(gap=1e-3))
block.set_params(reg=0.02 * block.reg_max(pair.images, signs)).fit(pair.images, signs)
bound = block.certificate_.global_bound

patches = Patches(torch.from_numpy(pair.images), block.geometry_)
outputs = torch.from_numpy(signs)[:, None]
objectives = [train_baseline(patches, outputs, block.reg, 50, epochs=3450, seed=seed).objective for seed in range(3)]
print(f"convex {block.result_.objective:.4f}, bound {bound:.4f} ({block.certificate_.kind})")
print("Adam  ", *(f"{objective:.4f}" for objective in objectives))

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
above = [100 * (objective / bound - 1) for objective in objectives]
axes.bar(range(3), above, color=ORANGE, label="Adam, 50 neurons")
axes.bar([3], [100 * (block.result_.objective / bound - 1)], color=BLUE, label="convex")
axes.set_xticks(range(4), [*(f"seed {seed}" for seed in range(3)), "convex"])
axes.set_ylabel("Eq. 1 above the bound (%)")
_ = axes.legend(frameon=False)

# %% [markdown]
# ## Layer by layer
#
# Two blocks, ten digits; after four seconds no new round of search begins. Each layer's rival in torch gets the images
# that the convex block was fitted on: `on_layer` hands them over. The figures are those of the method's poster, the
# training objective and the accuracy by layer.

# %%
rivals = []


def train_rival(layer: int, block: ConvexConvBlock, stage: Stage) -> None:
    """Train the layer's rival on the same inputs."""
    patches = Patches(stage.inputs, block.geometry_)
    rivals.append(train_baseline(patches, stage.targets, block.reg, 64, epochs=575))


block = ConvexConvBlock(
    bias=False,
    gates=PricedGates(gap=1e-2, time_limit=4, starts=64, initial_filters=64),
)
stack = LayerwiseCNN(layers=2, block=block, downsample=2, reg_fraction=0.02)
stack.fit(train.images, targets, on_layer=train_rival)

for layer, (block, rival) in enumerate(zip(stack.blocks_, rivals, strict=True), start=1):
    print(f"layer {layer}: convex {block.result_.objective:.3f}, Adam {rival.objective:.3f}")
    print("  ", block.certificate_)


# %%
def accuracy(layer: int, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the accuracy in per cent of the convex network and of its rival."""
    filters, readout = rivals[layer].filters, rivals[layer].readout
    other = stack.to_torch(layer, neurons=Neurons(filters, readout, filters.new_zeros(10)))
    with torch.no_grad():
        predictions = stack.predict(images, layer), other(torch.from_numpy(images)).numpy()
    first, second = (100 * float((found.argmax(axis=1) == labels).mean()) for found in predictions)
    return first, second


layers = [1, 2]
convex = [block.result_.objective for block in stack.blocks_]
ordinary = [rival.objective for rival in rivals]
bounds = [block.certificate_.global_bound for block in stack.blocks_]
rates = {
    (part, side): [accuracy(layer, images.images, images.labels)[index] for layer in range(2)]
    for part, images in (("training", train), ("test", test))
    for index, side in enumerate(("convex", "Adam"))
}

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot(np.array(layers) - 0.08, convex, "o", color=BLUE, label="convex")
left.plot(np.array(layers) + 0.08, ordinary, "s", color=ORANGE, label="Adam")
left.hlines(
    bounds, np.array(layers) - 0.25, np.array(layers) + 0.25, color="black", label="bound over all networks (searched)"
)
left.set_ylabel("training objective (Eq. 1)")
for (part, side), values in rates.items():
    colour = BLUE if side == "convex" else ORANGE
    right.plot(layers, values, "o-" if part == "test" else "o:", color=colour, label=f"{side}, {part}")
right.set_ylabel("correct images (%)")
for axes in (left, right):
    axes.set_xticks(layers)
    axes.set_xlim(0.5, 2.5)
    axes.set_xlabel("layer")
    axes.legend(frameon=False, fontsize=8)

# %% [markdown]
# What this does and doesn't say: the convex side has the lower objective here and, more to the point, knows how far it
# can be from the lowest. That is a statement about training. More steps bring Adam closer, without its knowing how
# close. Accuracy on new images is another matter: a lower Eq. 1 need not mean more correct test images.
