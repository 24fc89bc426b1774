"""Rewards: text in, number out. One file each, found by name; what they share stands in `_contract`."""
