"""Which pixels a network's output for a class rests on: maps, how sparse they are, and whether they can be trusted.

``attribute`` gives maps of any torch module with ``nn.ReLU`` modules by six methods; ``gini`` and
``half_mass_share`` measure their sparsity, with ``bootstrap_interval`` around a mean; ``sanity_check`` says whether
the maps change when the weights do. ``cvxcnn.runs.explain_run`` does all of it for the folder of a
training run, as does

    python -m cvxcnn.explain DIR [--layer J] [--method NAME ...] [--images N] [--class C] [--seed N]

which writes ``explanations.png``, ``sparsity.csv``, ``sanity.png`` and ``explanations.json`` into DIR and leaves its
other files as they are. It compares two networks of layer J: the convex one is blocks 1 to J; the non-convex one has
the same blocks 1 to J - 1, and on top of them block J as trained in torch on the same inputs. Both are asked about the
same class, the true one unless ``--class`` names another.

What maps are good for has limits. Grad-CAM and CAM have the resolution of the feature maps, and are enlarged to the
image; after two poolings of 8 x 8 pixels that is 2 x 2. Guided backpropagation and deconvolution may show the edges of
the image whatever the class is: look at sanity.png before trusting them. Gated networks have no ReLU to guide the
gradient, so those two methods and Guided Grad-CAM refuse them.
"""

from .attribution import METHODS, attribute
from .exciting import Exciting, exciting_patches
from .figures import plot_exciting, plot_explanations, plot_sanity
from .sanity import SanityStep, rank_correlation, sanity_check
from .sparsity import Interval, bootstrap_interval, gini, half_mass_share

__all__ = [
    "METHODS",
    "Exciting",
    "Interval",
    "SanityStep",
    "attribute",
    "bootstrap_interval",
    "exciting_patches",
    "gini",
    "half_mass_share",
    "plot_exciting",
    "plot_explanations",
    "plot_sanity",
    "rank_correlation",
    "sanity_check",
]
