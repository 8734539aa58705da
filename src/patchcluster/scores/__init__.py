"""Score grids -> maps, image scores, flags, regions and groups; what labels add; metrics.

maps.py             the parts of the next
finish.py           a score grid -> the map, image score and regions of one image
probability.py      how probable it is that an image is anomalous
thresholds.py       which images are flagged
remarks.py          what is odd about an image as a whole
groups.py           similar regions over all images
labels.py           what a person said; feedback.py: what it says of other images
metrics.py          AUROC, PRO and the like
colours.py          the one colour scale
"""

# Rules by which a map gives its image a score; methods have more of their own.
MAP_SCORES = ("baseline-corrected", "top1%", "max")
