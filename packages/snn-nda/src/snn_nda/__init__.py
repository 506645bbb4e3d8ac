"""Event-data augmentation that closes the generalisation gap of spiking networks (arXiv 2203.06145)."""
