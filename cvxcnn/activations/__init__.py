"""What a neuron is."""
