"""The VAE files by name."""

vae_dict: dict[str, str] = {}
