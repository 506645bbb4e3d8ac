"""What the three spiking packages share: neurons, surrogates, normalisation and layout (torch), and events (NumPy).

Models and losses see [T, B, ...]; loaders, files and augmentation see [B, T, ...].
"""
