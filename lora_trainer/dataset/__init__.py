"""Pictures and captions: find them, check them, group them by shape, order them, keep their encodings."""
