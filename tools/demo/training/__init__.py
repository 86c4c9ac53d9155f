"""The parts of the demonstration family's training program."""
