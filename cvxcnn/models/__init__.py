"""What users fit: a block, a stack, a path, a polished network, the estimators."""
