"""LoRA variants, their file for the WebUI, its self-test, and its place in the LoRA folder."""
