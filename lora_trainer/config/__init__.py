"""The settings of a run: declared once in `schema`, read by `parse`, judged by `check`, proposed by `presets`."""
