# %% [markdown]
# # Circular networks and sparse spectra
#
# Let the filters of a convolution be as long as the images, and the convolution circular. Then $U w$, what filter $u$
# and weights $w$ make together, has a spectrum that is a product, and weight decay on both is a norm of that spectrum:
#
# $$ \min_{u, w :\, U w = z} \tfrac{\lambda}{2} (\|u\|^2 + \|w\|^2) = \tfrac{\lambda}{\sqrt d} \|F z\|_1, $$
#
# with $F$ the unitary Fourier transform. Weight decay on a linear circular network looks for *few frequencies* (Ergen &
# Pilanci 2021). Here are such spectra, with proofs that no training finds a better network.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from cvxcnn import CircularCNN, nonconvex_objective
from cvxcnn.arrangements import EnumeratedGates, GaussianGates, WaveGates
from cvxcnn.data import load_data

plt.rcParams["figure.dpi"] = 110

# %% [markdown]
# ## Two waves in noise
#
# Eighty signals of 64 places, white noise. The target is their response to a sum of two waves, with 3 and with 10
# periods, and noise. Least squares fits 64 unknowns; the circular network looks for few waves.

# %%
random = np.random.default_rng(0)
places = np.arange(64)
truth = np.cos(2 * np.pi * 3 * places / 64) + 0.5 * np.sin(2 * np.pi * 10 * places / 64)
signals, test = random.normal(size=(80, 1, 64)), random.normal(size=(2000, 1, 64))
targets = signals[:, 0] @ truth + random.normal(size=80)

model = CircularCNN(reg=60.0).fit(signals, targets)
print(model.certificate_)

gram = signals[:, 0].T @ signals[:, 0]
least_squares = np.linalg.lstsq(signals[:, 0], targets, rcond=None)[0]
ridges = [np.linalg.solve(gram + penalty * np.eye(64), signals[:, 0].T @ targets) for penalty in np.logspace(-2, 3, 30)]
ridge = min(ridges, key=lambda z: np.sum((z - truth) ** 2))  # the best there is
figure, axes = plt.subplots(1, 4, figsize=(11, 2.6), sharey=True)
spectra = {
    "truth": truth,
    "least squares": least_squares,
    "ridge": ridge,
}
shown = {name: np.abs(np.fft.fft(z, norm="ortho")) for name, z in spectra.items()}
shown["circular network"] = model.spectra()[0, 0]
for axis, (name, spectrum) in zip(axes, shown.items(), strict=True):
    axis.stem(places[:33], spectrum[:33], basefmt=" ", markerfmt=".")
    axis.set(title=name, xlabel="periods")
axes[0].set_ylabel("|F z|")
figure.tight_layout()

errors = {name: np.mean((test[:, 0] @ (z - truth)) ** 2) for name, z in spectra.items() if name != "truth"}
errors["circular network"] = np.mean((model.predict(test) - test[:, 0] @ truth) ** 2)
for name, error in errors.items():
    print(f"{name:>16}: mean squared error on new signals {error:.3f}")

# %% [markdown]
# ## No training is below it
#
# The network is one `Conv2d` with circular padding and one `Linear`. Trained the ordinary way from ten starts, with
# four filters instead of the one that is enough, it comes down to the bound and no further.

# %%
module = model.to_torch()
print(module)
result = model.result_
found = nonconvex_objective(module, signals, targets, reg=60.0)
print(
    f"Eq. 1 of the module {found:.8f}, the program {model.result_.objective:.8f}, bound {model.result_.dual_bound:.8f}"
)


def train(seed, filters=4, steps=400):
    """Adam on Eq. 1; the objective after each step."""
    torch.manual_seed(seed)
    conv = torch.nn.Conv2d(1, filters, (1, 64), padding="same", padding_mode="circular", bias=False)
    linear = torch.nn.Linear(filters * 64, 1, bias=False)
    network = torch.nn.Sequential(conv, torch.nn.Flatten(), linear).double()
    inputs, wanted = torch.tensor(signals)[:, None], torch.tensor(targets)[:, None]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        decay = sum(parameter.square().sum() for parameter in network.parameters())
        objective = 0.5 * (network(inputs) - wanted).square().sum() + 0.5 * 60.0 * decay
        objective.backward()
        optimizer.step()
        history.append(float(objective.detach()))
    return history


figure, axis = plt.subplots(figsize=(6, 3.2))
for seed in range(10):
    above = np.array(train(seed)) / result.dual_bound - 1
    axis.semilogy(above, color="0.6", lw=1, label="Adam, ten starts" if seed == 0 else None)
axis.axhline(result.relative_gap, color="C3", ls="--", label="the convex program")
axis.set(xlabel="steps", ylabel="Eq. 1 above the bound, relative")
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## Digits
#
# Images have frequencies in two directions. Threes against eights: as $\lambda$ falls from its largest value,
# frequencies come in. The mean is in the middle; each other frequency is there with its mirror image.

# %%
train_set, test_set = load_data("digits")


def pair(data):
    """Return threes and eights, -1 and +1."""
    rows = np.isin(data.labels, (3, 8))
    return data.images[rows], np.where(data.labels[rows] == 3, 1.0, -1.0)


(images, labels), (others, expected) = pair(train_set), pair(test_set)
largest = CircularCNN().reg_max(images, labels)
figure, axes = plt.subplots(1, 4, figsize=(11, 3))
for axis, share in zip(axes, (0.5, 0.1, 0.02, 0.002), strict=True):
    digits = CircularCNN(reg=share * largest).fit(images, labels)
    spectrum = np.fft.fftshift(digits.spectra()[0])
    axis.imshow(spectrum, cmap="viridis")
    accuracy = np.mean(np.sign(digits.predict(others)) == expected)
    kept = int((spectrum > 1e-9 * spectrum.max()).sum())
    axis.set(title=f"{share:g} of reg_max\n{kept} of 64, {accuracy:.0%} right", xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## With a ReLU
#
# Three layers, $f = \sum_i s_i (x U_i w_i)_+$ with $\|u_i\| \le 1$, are Eq. 2 over sign patterns, with the same norm in
# the place of the Euclidean one. Signals of three places have few enough patterns for all of them, and the bound is
# then over all such networks.

# %%
short = random.normal(size=(25, 1, 3))
bent = np.maximum(short[:, 0] @ [1.0, -0.5, -0.5], 0) - 0.5 * np.maximum(short[:, 0].sum(axis=1), 0)
relu = CircularCNN(layers=3, gates=EnumeratedGates(), reg=1.0).fit(short, bent)
print(f"{len(relu.gates_)} patterns, {relu.n_neurons_} neurons\n{relu.certificate_}")
print(relu.to_torch())

# %% [markdown]
# Of longer signals patterns are sampled; the answer is then the best over those. Waves are the extreme points of the
# ball $\|F v\|_1 \le 1$, and so a better choice than Gaussian gates, which is what other solvers draw. The target is a
# sum of two waves' ReLUs; neurons are shown by their spectra, the largest first.

# %%
waves = [np.cos(2 * np.pi * 2 * places[:16] / 16), np.sin(2 * np.pi * 5 * places[:16] / 16)]
noise = random.normal(size=(60, 1, 16))
rectified = sum(np.maximum(noise[:, 0] @ wave, 0) for wave in waves)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for axis, gates in zip(axes, (GaussianGates(40), WaveGates(40)), strict=True):
    sampled = CircularCNN(layers=3, gates=gates, reg=2.0).fit(noise, rectified)
    order = np.argsort(-sampled.neurons_.norms().numpy())[:8]
    picture = axis.imshow(sampled.spectra()[order, 0, :9], aspect="auto", cmap="viridis", vmin=0, vmax=2)
    axis.set(title=f"{type(gates).__name__}: Eq. 1 {sampled.result_.objective:.2f}", xlabel="periods")
    print(f"{gates}: {sampled.certificate_}")
axes[0].set_ylabel("neuron")
_ = figure.colorbar(picture, ax=axes, label="|F v|")
