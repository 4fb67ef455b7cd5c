"""The command line: train, explain, predict."""
