"""What the libraries compute, written out from their definitions: the oracle of the tests, and of explanations.

Each of n_in samples lies at x + 0.5; output i of n_out is centred at (i + 0.5) * n_in / n_out unless said otherwise.
"""
