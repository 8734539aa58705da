"""The methods by name. A new one is a file in this folder and a line here."""

from .base import Comparison, Method
from .patchcluster import PatchCluster
from .patchcluster_plus import PatchClusterPlus

METHODS: dict[str, type[Method]] = {
    "patchcluster-plus": PatchClusterPlus,
    "patchcluster": PatchCluster,
}

__all__ = ["METHODS", "Comparison", "Method", "PatchCluster", "PatchClusterPlus"]
