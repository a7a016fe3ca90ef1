"""Folders; the tests set them."""

data_path = ""
models_path = ""
