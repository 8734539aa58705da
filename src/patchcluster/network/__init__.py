"""Pixels -> patches: the pretrained network.

backbones.py       networks, the stages that are taken of them
weights.py         their weights
backbone_table.py  which are tested, and their licences
tiling.py          large images tile by tile
patches.py         stages -> one grid of patches an image
devices.py         which devices there are; batches that turn out to be too large for a GPU
"""
