"""Find the anomalous images in a folder nobody has labelled, and where the anomaly is."""

__version__ = "0.1.0"
