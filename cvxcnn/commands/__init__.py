"""The command line: train, explain, diagnose, predict."""
