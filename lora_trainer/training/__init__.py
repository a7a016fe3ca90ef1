"""The one training loop and what is handed to it: feeder, optimizer, schedule, precision, state."""
