"""Folders; the tests set them."""

data_path = ""
