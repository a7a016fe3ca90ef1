"""First captions for pictures, by models that look at them. A captioner is one file in this room and one line in its table."""
