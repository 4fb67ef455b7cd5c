"""The command line: train, explain, diagnose, predict, completion."""

__all__ = ["COMMANDS"]

# The module of each, and what it does.
COMMANDS = {
    "train": ("cvxcnn.commands.train", "train a network layer by layer, write its folder and report.html"),
    "explain": ("cvxcnn.commands.explain", "what the predictions of a finished run rest on, into its folder"),
    "diagnose": (
        "cvxcnn.commands.diagnose",
        "whether each layer of a finished run is a minimum, a saddle or neither",
    ),
    "predict": ("cvxcnn.commands.predict", "images in, labels out, by the network of a finished run"),
    "completion": ("cvxcnn.commands.completion", "a script with which bash, zsh or tcsh completes all of this"),
}
