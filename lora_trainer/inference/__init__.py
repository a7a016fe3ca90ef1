"""Draws pictures with a base model and LoRAs outside a WebUI, as the WebUI would draw them."""
