"""Reference values for a field on 48 x 48 pixels, from the specification's section 10 (found there in two ways)."""

import numpy as np

from diffract import Grid

GRID = Grid((48, 48), 0.3e-3, 0.75e-3)
ENERGY = 98.073594
ENERGIES = {  # z in m: rs; asm with decaying waves, P = 96; relative L2 difference
    2e-3: (95.503652, 95.533246, 0.016585),
    7e-3: (92.616600, 92.953247, 0.060483),
    40e-3: (56.049185, 59.733816, 0.262369),
}


def golden_field():
    y, x = np.mgrid[:48, :48].astype(float)
    box = (np.abs(x - 20) < 7) & (np.abs(y - 26) < 4)
    bump = 0.5 * np.exp(-((x - 33) ** 2 + (y - 15) ** 2) / 18)
    return (box + bump) * np.exp(1j * (0.3 * x - 0.1 * y + 0.5 * np.sin(0.4 * y)))


def energy(field):
    return float((np.abs(np.asarray(field, np.complex128)) ** 2).sum())
