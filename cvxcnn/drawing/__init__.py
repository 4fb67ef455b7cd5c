"""What all figures have in common, and the figure of a regularisation path: matplotlib, without pyplot."""
