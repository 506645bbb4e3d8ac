"""The commands of the program `fedcl`, by what they work on."""
