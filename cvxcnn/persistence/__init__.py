"""Model files: a folder with ``model.safetensors`` and ``config.json``, which hold numbers and can't run code."""
