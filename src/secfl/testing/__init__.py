"""The forge of evidence and the simulator of a federation with an adversary."""
