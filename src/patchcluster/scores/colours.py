"""The one colour scale of all pictures."""

import numpy as np
from numpy.typing import NDArray

# From little to much; dark to light, so that it can be read without telling red from green.
STOPS = np.array(
    [[48, 18, 98], [126, 31, 109], [196, 62, 76], [238, 115, 36], [250, 178, 45], [252, 246, 164]]
)


def colours(share: NDArray[np.floating]) -> NDArray[np.float64]:
    """Colours [..., 3], 0 to 255, for shares [...] of the scale from 0 to 1."""
    at = np.linspace(0, 1, len(STOPS))
    return np.stack([np.interp(share, at, STOPS[:, c]) for c in range(3)], axis=-1)
