"""The commands of ``morel``: each takes parsed arguments and settings, and returns an exit code.

They import what they need themselves: one that trains nothing need not wait for torch.
"""
