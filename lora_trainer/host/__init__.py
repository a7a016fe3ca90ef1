"""Where the trainer lives: in a WebUI, or alone. Everything that differs between them stands behind `base.Host`."""
