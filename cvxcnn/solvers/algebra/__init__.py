"""Gram matrices, Newton steps and conjugate gradients: what the methods are made of."""
