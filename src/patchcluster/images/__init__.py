"""Files -> pixels, and masks of what is scored.

finding.py   what a user names -> files, here or at URLs
inputs.py    files, here or at URLs -> bytes
decode.py    bytes of an image file -> pixels, by stated rules
looks.py     pixels -> how an image looks as a whole, in four figures
jpeg.py      bytes of a JPEG file -> pixels, unless they are damaged
window.py    the values of deep images that become black and white
shapes.py    limits of images: which are read, and what the network sees
formats.py   formats by the beginning of a file, and what to do about those that are not read
tiff.py      TIFF files -> pixels
png.py       what Pillow does not do for PNG files
raster.py    arrays of pixels: alpha, orientation, masks on grids, polygons, bytes of image files
matching.py  names in label files, and of masks -> images
masks.py     masks as files, regions of interest among them
"""
