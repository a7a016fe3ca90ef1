"""Model families: what differs between SD1, SD2 and SDXL, behind one interface."""
