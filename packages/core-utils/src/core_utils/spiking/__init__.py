"""What the three spiking packages share: neurons, normalisation, networks, event frames, diagnostics.

Models and losses see [T, B, ...]; loaders, files and augmentation see [B, T, ...].
"""
