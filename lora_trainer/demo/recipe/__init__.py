"""The scripts that made the miniature from seeds: drawing, training, export. See README.md here."""
