"""The miniature: a small but real base model, captioner and data sets, so that everything can be tried offline."""
